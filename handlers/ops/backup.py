"""`conch backup FILE`: a copy of the live SQLite store in one file, while gateways go on writing."""

import argparse
import contextlib
import fcntl
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from config import Config
from handlers.door.admission import judge
from handlers.ops.progress import Progress
from handlers.ops.tables import show
from store import open_store
from store.records import Conflict
from store.sqlite import SqliteStore


class Backup(msgspec.Struct):
    """What was written: the size is in bytes, `rows` by table."""

    file: str
    size: int
    rows: dict[str, int]


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """The verb."""
    text = "Copy the live SQLite store into FILE; gateways go on writing meanwhile."
    verb = verbs.add_parser("backup", help=text, description=text, parents=[common])
    verb.add_argument("file", type=Path, metavar="FILE")
    verb.add_argument("--force", action="store_true", help="replace FILE if it exists")
    verb.set_defaults(handler=run)


def run(options: argparse.Namespace, config: Config) -> int:
    """Writes the backup and prints what it holds. Raises StoreError, ValueError."""
    backup = write(config, options.file, force=options.force)
    if options.json:
        return show(options, backup)
    rows = {table: f"{count:,} rows" for table, count in backup.rows.items() if count}
    return show(options, {"file": backup.file, "size": f"{backup.size:,} bytes", **rows})


def write(config: Config, file: Path, *, force: bool = False) -> Backup:
    """Under the name FILE.partial until it is whole, checked and on disk. Raises StoreError, ValueError."""
    store = open_store(config.store.url, judge(config.plans))
    if not isinstance(store, SqliteStore):
        raise ValueError("conch backup is for SQLite: back up a PostgreSQL store with pg_dump --format=custom.")
    if file.exists() and store.is_at(file):
        raise Conflict(f"{file} is the store itself.")
    if file.exists() and not force:
        raise Conflict(f"{file} exists: give another name, or --force to replace it.")
    try:
        with _partial(file) as partial_file, Progress("pages") as progress:
            rows = store.backup(partial_file, partial(progress, "copying"))
            size = partial_file.stat().st_size
            partial_file.replace(file)
        _sync(file.absolute().parent)
    except OSError as error:
        raise ValueError(f"{error.filename or file} cannot be written: {error.strerror}.") from error
    return Backup(str(file), size, rows)


@contextlib.contextmanager
def _partial(file: Path) -> Iterator[Path]:
    """The name to write under, for its owner only and for one backup at a time; it goes if it does not become whole."""
    path = file.with_name(f"{file.name}.partial")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"Another backup is writing {path}.") from None
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, 0)
        try:
            yield path
        except BaseException:
            path.unlink()
            raise
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    """The name on disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
