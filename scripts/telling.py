"""The gateway, `python -m scripts.telling serve …`, that says on SIGUSR1 what it holds: for `make soak`, and tests."""

import asyncio
import gc
import logging
import re
import signal
from types import FrameType

TOLD = re.compile(r"holds (\d+) tasks, and had (\d+) objects that only the collector finds")
"""The line in its log."""


def _tell(number: int, frame: FrameType | None) -> None:
    """In the main thread, between two steps of its loop."""
    found = gc.collect()
    line = "holds %d tasks, and had %d objects that only the collector finds"
    logging.getLogger("conch").info(line, len(asyncio.all_tasks()), found)


if __name__ == "__main__":
    import app

    signal.signal(signal.SIGUSR1, _tell)
    app.main()
