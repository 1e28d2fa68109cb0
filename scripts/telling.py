"""The gateway, `python -m scripts.telling serve …`, that says on SIGUSR1 what it holds: for `make soak`, and tests."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import re
import signal
import sys
from collections import Counter
from types import FrameType

import msgspec

LINE = "holds "
TOLD = re.compile(rf"{LINE}(\{{.*\}})\n")
"""The line in its log."""
MOST = 40


class Holding(msgspec.Struct):
    """What a process holds. `garbage`: objects that only the collector found; `objects`: that it knows of by their
    type, the MOST frequent; `blocks`: of Python's allocator, up to 512 bytes each. The last three are bytes of the C
    library's: `used`, and `free`, which it keeps for later, and `mapped`, each large one by itself."""

    tasks: int
    garbage: int
    objects: dict[str, int]
    blocks: int
    used: int
    free: int
    mapped: int


class _Mallinfo(ctypes.Structure):
    """mallinfo2(3), of glibc 2.33."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    ]


_mallinfo2 = ctypes.CDLL(None).mallinfo2
_mallinfo2.restype = _Mallinfo


def holding() -> Holding:
    """Of this process, now."""
    garbage = gc.collect()
    heap = _mallinfo2()
    objects = Counter(type(each).__qualname__ for each in gc.get_objects())
    return Holding(
        tasks=len(asyncio.all_tasks()),
        garbage=garbage,
        objects=dict(objects.most_common(MOST)),
        blocks=sys.getallocatedblocks(),
        used=heap.uordblks,
        free=heap.fordblks,
        mapped=heap.hblkhd,
    )


def _tell(number: int, frame: FrameType | None) -> None:
    """In the main thread, between two steps of its loop."""
    logging.getLogger("conch").info("%s%s", LINE, msgspec.json.encode(holding()).decode())


if __name__ == "__main__":
    import app

    signal.signal(signal.SIGUSR1, _tell)
    app.main()
