"""`conch copy --from URL --to URL`: moves a shop into another database, as when it has outgrown one machine."""

import argparse
import asyncio
import contextlib
import sys
from typing import Any

from config import Config
from handlers.door.admission import judge
from handlers.ops.progress import Progress
from handlers.ops.tables import show
from store import Clock, open_store
from store.copying import Copy, copy


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """The verb."""
    text = "Copy a whole store into an empty one, of either kind; run it again to go on after an interruption."
    verb = verbs.add_parser("copy", help=text, description=text, parents=[common])
    verb.add_argument("--from", required=True, dest="source", metavar="URL", help="sqlite:PATH or postgresql://…")
    verb.add_argument("--to", required=True, dest="target", metavar="URL", help="the same")
    verb.set_defaults(handler=run)


def run(options: argparse.Namespace, config: Config) -> int:
    """Copies, compares and prints both; 1 where they differ. Raises StoreError, ValueError."""
    copied = asyncio.run(_copy(options.source, options.target, config))
    width = None if options.json else 16
    rows = [
        {
            "table": table.name,
            "rows": table.source.rows,
            "copied": table.target.rows,
            "checksum": table.source.checksum[:width],
            "checksum_of_copy": table.target.checksum[:width],
            "same": table.same,
        }
        for table in copied.tables
    ]
    show(options, rows)
    if copied.finished_before:
        print("conch: this copy was finished before, as shown; nothing was done.", file=sys.stderr)
    if all(table.same for table in copied.tables):
        return 0
    print(
        "conch: the copy differs, as the source does when it changed meanwhile: copy again into an empty store.",
        file=sys.stderr,
    )
    return 1


async def _copy(source_url: str, target_url: str, config: Config) -> Copy:
    async with contextlib.AsyncExitStack() as stack:
        clock = Clock()
        source = open_store(source_url, judge(config.plans), clock=clock)
        stack.push_async_callback(source.close)
        target = open_store(target_url, judge(config.plans))
        stack.push_async_callback(target.close)
        with Progress("rows") as progress:
            return await copy(source, target, clock, progress)
