"""SQLite: the teller's own connection in the loop, checkpoints on a side thread, aiosqlite for the rest."""

import asyncio
import logging
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from store import ledger
from store.buckets import Judge
from store.records import StoreUnavailable
from store.script import Script
from store.teller import Answers, Outcome, Teller

T = TypeVar("T")

logger = logging.getLogger("conch.store")

PATIENCE = 2.0
"""Seconds that a transaction waits for the write lock."""
RETRY = (0.0003, 0.001)
"""Seconds until the teller's second attempt to get it, and between later ones: SQLite's busy handler would sleep
in the loop. uvloop counts in milliseconds, so that the second attempt follows at once and the others do not spin."""
STALE_ROWS, STALE_SECONDS, LONG_PAGES = 4096, 1.0, 16384
"""The write-ahead log is checkpointed when it is this many changed rows or seconds behind. From this length
on, writers are held up for it: an endless stream of commits would never let it start over."""
HOLD_UP = 0.02
"""Seconds for which at most, since a checkpoint that waits for a slow reader meanwhile keeps the write lock."""

PAGES = 1024
"""Pages of 4 KiB that one step of a backup copies."""

TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'migrations' ORDER BY rowid"


class Busy(StoreUnavailable):
    """Another connection holds the write lock."""


class Session:
    """One connection, opened when it is first needed and again after a failure."""

    def __init__(self, path: Path, patience: float, synchronous: str) -> None:
        self._path, self._patience, self._synchronous = path, patience, synchronous
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor  # of that connection

    def transact(self, script: Script[T]) -> tuple[T, int]:
        """The script's result and the number of rows it changed. Raises its errors, or StoreUnavailable."""
        self.begin()
        return self.complete(script)

    def begin(self) -> None:
        """Takes the write lock. Raises Busy or another StoreUnavailable."""
        try:
            if self._connection is None:
                self._connection = _connect(self._path, self._patience, self._synchronous)
                self._cursor = self._connection.cursor()
            self._cursor.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            refusal = _unavailable(error)
            if not isinstance(refusal, Busy):
                self.close()
            raise refusal from error

    def complete(self, script: Script[T]) -> tuple[T, int]:
        """The rest of `transact`."""
        connection = self._connection
        assert connection is not None, "begin comes first"
        before = connection.total_changes
        try:
            result = _run(self._cursor, script)
            self._cursor.execute("COMMIT")
        except BaseException as error:
            self.close()  # The surest rollback: it works whatever became of the disk or the file.
            if _of_state(error):
                raise _unavailable(error) from error
            raise
        return result, connection.total_changes - before

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _connect(path: Path, patience: float, synchronous: str) -> sqlite3.Connection:
    """Never makes the file: a store that went missing is an error, not an empty store."""
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=patience, isolation_level=None, check_same_thread=False
    )
    for pragma in (
        "journal_mode = WAL",
        f"synchronous = {synchronous}",
        "foreign_keys = ON",
        "wal_autocheckpoint = 0",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _run(cursor: sqlite3.Cursor, script: Script[T]) -> T:
    try:
        statement = next(script)
        while True:
            statement = script.send(_rows(cursor, *statement))
    except StopIteration as stop:
        result: T = stop.value
        return result


def _rows(cursor: sqlite3.Cursor, sql: str, params: tuple[Any, ...], reads: str) -> list[Any]:
    """What a statement returns."""
    if not reads:
        return cursor.execute(_own(sql), params).fetchall()
    change, read, count = _halves(sql, reads)
    if change.startswith("DELETE"):
        if rows := cursor.execute(read, params).fetchall():
            cursor.execute(change, params)
        return rows
    if not cursor.execute(change, params).rowcount:
        return []
    return cursor.execute(read, params[:count]).fetchall()


class Table(NamedTuple):
    """A table as the migrations make it; `link` is the column, if any, that refers to other rows of the same table."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    link: str | None


def schema() -> list[Table]:
    """Every table but that of the migrations, none before one that it refers to."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        cursor = connection.cursor()
        _run(cursor, ledger.migrate(0))
        return [_table(cursor, name) for (name,) in cursor.execute(TABLES).fetchall()]


def _table(cursor: sqlite3.Cursor, name: str) -> Table:
    columns = cursor.execute("SELECT name, pk FROM pragma_table_info(?) ORDER BY cid", (name,)).fetchall()
    key = [column for column, place in sorted(columns, key=lambda each: each[1]) if place]
    links = cursor.execute('SELECT "from" FROM pragma_foreign_key_list(?) WHERE "table" = ?', (name, name)).fetchall()
    return Table(name, tuple(column for column, _ in columns), tuple(key), links[0][0] if links else None)


@cache
def _own(sql: str) -> str:
    """A statement as SQLite has it. $1 is a name to it, looked up for each value, and ?1 a number: half the time of a
    statement with many values."""
    return re.sub(r"\$(\d+)", r"?\1", sql).replace("/* WITHOUT ROWID */", "WITHOUT ROWID")


@cache
def _halves(sql: str, reads: str) -> tuple[str, str, int]:
    """A change without its RETURNING, the SELECT that stands for that, and how many values this takes."""
    return _own(sql.rpartition("RETURNING")[0]), _own(reads), len(set(re.findall(r"\$\d+", reads)))


def _of_state(error: BaseException) -> bool:
    """Whether it is the database that cannot answer, and not a statement that broke a rule."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


def _unavailable(error: BaseException) -> StoreUnavailable:
    busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    return (Busy if busy else StoreUnavailable)(f"The database cannot answer: {error}.")


class Checkpoints:
    """Moves the write-ahead log into the database on a side thread, so that no commit does it in the loop."""

    def __init__(self, path: Path) -> None:
        self._path, self._rows = path, 0
        self._timer: asyncio.TimerHandle | None = None
        self._running: asyncio.Future[None] | None = None

    def note(self, rows: int) -> None:
        """So many rows were committed just now."""
        self._rows += rows
        if self._running or not self._rows:
            return
        if self._rows >= STALE_ROWS:
            self._start()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(STALE_SECONDS, self._start)

    def _start(self) -> None:
        self._stop_timer()
        self._rows = 0
        self._running = asyncio.get_running_loop().run_in_executor(None, self._checkpoint)
        self._running.add_done_callback(self._done)

    def _done(self, running: asyncio.Future[None]) -> None:
        self._running = None
        if error := running.exception():
            logger.warning("The write-ahead log could not be checkpointed: %s", error)
        self.note(0)  # For what was committed meanwhile.

    def _checkpoint(self) -> None:
        with closing(_connect(self._path, HOLD_UP, "NORMAL")) as connection:
            _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages > LONG_PAGES:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    async def close(self) -> None:
        while self._running:
            await asyncio.wait([self._running])
        self._stop_timer()


class LoopDriver:
    """Runs the teller's transactions in the loop: a commit without a sync takes microseconds."""

    def __init__(self, path: Path, checkpoints: Checkpoints) -> None:
        self._session = Session(path, 0, "NORMAL")
        self._note = checkpoints.note

    def transact(self, compose: Callable[[], Script[Answers]], finish: Callable[[Outcome], None]) -> None:
        self._attempt(compose, finish, monotonic() + PATIENCE, RETRY[0])  # the clock of loop.time()

    def _attempt(
        self,
        compose: Callable[[], Script[Answers]],
        finish: Callable[[Outcome], None],
        deadline: float,
        pause: float,
    ) -> None:
        try:
            self._session.begin()
        except StoreUnavailable as refusal:
            loop = asyncio.get_running_loop()
            if isinstance(refusal, Busy) and loop.time() < deadline:
                loop.call_later(pause, self._attempt, compose, finish, deadline, RETRY[1])
            else:
                finish(refusal)
            return
        outcome: Outcome
        rows = 0
        try:
            outcome, rows = self._session.complete(compose())
        except Exception as error:  # noqa: BLE001 - those who asked will hear of it
            outcome = error
        finish(outcome)
        self._note(rows)

    def close(self) -> None:
        self._session.close()


class ThreadDriver:
    """Runs them in a thread: with synchronous=FULL each commit waits for the disk."""

    def __init__(self, path: Path, checkpoints: Checkpoints) -> None:
        self._session = Session(path, PATIENCE, "FULL")
        self._note = checkpoints.note

    def transact(self, compose: Callable[[], Script[Answers]], finish: Callable[[Outcome], None]) -> None:
        def done(running: asyncio.Future[tuple[Answers, int]]) -> None:
            error = running.exception()
            if isinstance(error, Exception):
                finish(error)
            else:
                answers, rows = running.result()
                finish(answers)
                self._note(rows)

        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, self._session.transact, compose()).add_done_callback(done)

    def close(self) -> None:
        self._session.close()


class SqliteStore:
    """One file, shared by any number of processes on one machine. Nothing is opened before it is used."""

    def __init__(self, path: Path, judge: Judge, clock: Callable[[], int], synchronous: str = "normal") -> None:
        self._path, self._clock = path.absolute(), clock
        self._checkpoints = Checkpoints(self._path)
        driver = ThreadDriver if synchronous == "full" else LoopDriver
        self._driver = driver(self._path, self._checkpoints)
        self.teller = Teller(self._driver, judge, clock)

    async def migrate(self) -> list[int]:
        """Makes the file (0600) and brings its schema up to date; returns the numbers applied.

        Raises StoreUnavailable.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(0o600)
        except OSError as error:
            reason = "its folder is a file" if isinstance(error, FileExistsError) else error.strerror
            raise StoreUnavailable(f"The store {self._path} cannot be made: {reason}.") from error
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while True:
            try:
                with closing(Session(self._path, 0, "FULL")) as session:
                    return session.transact(ledger.migrate(self._clock()))[0]
            except Busy:
                if loop.time() > deadline:
                    raise
            await asyncio.sleep(RETRY[1])

    async def run(self, script: Script[T]) -> T:
        """Runs a script as one transaction, synced to disk. Raises what it raises, or StoreUnavailable."""
        from aiosqlite import Connection  # 75 ms to import, which serving need not spend.

        try:
            async with Connection(partial(_connect, self._path, PATIENCE, "FULL"), 64) as connection:
                await connection.execute("BEGIN")
                try:
                    statement = next(script)
                    while True:
                        rows = await connection.execute_fetchall(_own(statement.sql), statement.params)
                        statement = script.send(list(rows))
                except StopIteration as stop:
                    await connection.execute("COMMIT")
                    self._checkpoints.note(connection.total_changes)
                    result: T = stop.value
                    return result
        except sqlite3.Error as error:
            if _of_state(error):
                raise _unavailable(error) from error
            raise

    def is_at(self, file: Path) -> bool:
        """Whether the store is this file."""
        return self._path.exists() and self._path.samefile(file)

    def backup(self, file: Path, tell: Callable[[int, int], None]) -> dict[str, int]:
        """Copies the store as it stands now into `file`, checks the copy, and returns the rows of each table in it.

        Blocks; `tell` hears the pages done and of how many. Writers go on meanwhile: the copy is of one read
        transaction, without which every commit would make it begin again. Raises StoreUnavailable.
        """
        try:
            with closing(sqlite3.connect(file)) as copy:
                with closing(_connect(self._path, PATIENCE, "FULL")) as live:
                    live.execute("BEGIN")
                    live.execute("SELECT version FROM migrations").fetchone()
                    live.backup(copy, pages=PAGES, progress=lambda _, left, total: tell(total - left, total))
                copy.execute("PRAGMA journal_mode = DELETE")  # One file that needs no others beside it.
                (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
                if verdict != "ok":
                    raise StoreUnavailable(f"The copy is damaged, and so may be the database: {verdict}.")
                names = [name for (name,) in copy.execute(TABLES)]
                return {name: copy.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names}
        except sqlite3.Error as error:
            raise _unavailable(error) from error

    async def ping(self) -> None:
        """Returns when a transaction can be had. Raises StoreUnavailable."""
        await self.teller.ping()

    async def close(self) -> None:
        await self.teller.close()
        await self._checkpoints.close()
        self._driver.close()
