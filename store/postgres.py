"""PostgreSQL: the teller's own connection, a few more for the rest, each made anew when it is lost."""

import asyncio
import os
import secrets
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, TypeVar

import asyncpg

from store import ledger
from store.buckets import Judge
from store.records import Contended, NotFound, StoreError, StoreUnavailable
from store.script import Script, Statement
from store.teller import Answers, Clock, Outcome, Teller

T = TypeVar("T")

CONNECTING, ASKING, RUNNING, MIGRATING = 2.0, 5.0, 30.0, 600.0
"""Seconds for a connection, and for a whole transaction: one of the teller's, another one, a migration. Every
request asks the teller first, so that a server that hangs is noticed there."""
ABANDONED = 3.0
"""Seconds after which the server ends a transaction whose process stalls or is cut off: before others, who wait for
its rows, lose their patience."""
REST = 60.0
"""Seconds after which an idle connection is made anew: what stands in between may have forgotten it, without a word."""
CONNECTIONS = 4
"""At most, besides the teller's."""

BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
LOCK = int.from_bytes(b"conch", "big")
SERVER_TIME = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS bigint)"

# https://www.postgresql.org/docs/current/errcodes-appendix.html: classes that tell what is wrong with a statement or
# its values, and of them what tells the state of the database: no right to a table, or none such (yet).
OF_STATEMENT = ("0A", "22", "23", "42", "P0")
OF_STATE = ("42501", "42703", "42P01")


class Session:
    """One connection, opened when it is first needed and again after a failure."""

    def __init__(self, url: str, clock: Callable[[], int], patience: float, begin: str = BEGIN) -> None:
        self._url, self._clock, self._patience, self._start = url, clock, patience, begin
        self._connection: Any = None  # asyncpg has no types
        self._used = 0.0

    async def transact(self, compose: Callable[[], Script[T]]) -> T:
        """Begins, composes the script, runs it and commits. Raises its errors, Contended or StoreUnavailable.

        Where only the acknowledgement of a commit was lost, it did take place: nobody can tell.
        """
        try:
            async with asyncio.timeout(self._patience):
                await self._begin()
                result = await self._complete(compose)
        except BaseException as error:
            if _breaks(error):
                self._drop()
            if refusal := _refusal(error):
                raise refusal from error
            raise
        self._used = time.monotonic()
        return result

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                await connection.close(timeout=CONNECTING)
        except Exception as error:
            if not _breaks(error):  # else it was lost before
                raise

    async def _begin(self) -> None:
        if self._connection is not None and time.monotonic() - self._used < REST:
            try:
                await self._connection.execute(self._start)
            except Exception as error:
                if not _breaks(error):
                    raise
            else:
                return
        # Nothing was asked of the old connection yet, so that a new one may take over at once.
        self._drop()
        await self._connect()
        await self._connection.execute(self._start)

    async def _connect(self) -> None:
        try:
            self._connection = await asyncpg.connect(
                self._url,
                timeout=CONNECTING,
                max_cached_statement_lifetime=0,
                server_settings={
                    "application_name": "conch",
                    "statement_timeout": _milliseconds(self._patience),
                    "idle_in_transaction_session_timeout": _milliseconds(ABANDONED),
                },
            )
        except (ValueError, OverflowError):  # whose text may hold a part of the password
            raise ValueError(
                "The store URL cannot be read: use postgresql://USER:PASSWORD@HOST:PORT/DATABASE, "
                "with %XX for what is neither a letter nor a digit."
            ) from None
        if isinstance(self._clock, Clock):
            asked = time.monotonic_ns()
            now = await self._connection.fetchval(SERVER_TIME)
            self._clock.set(now + (time.monotonic_ns() - asked) // 2000)

    async def _complete(self, compose: Callable[[], Script[T]]) -> T:
        try:
            result = await self._run(compose())
            await self._connection.execute("COMMIT")
        except Exception as error:
            if not _breaks(error):
                await self._connection.execute("ROLLBACK")
            raise
        return result

    async def _run(self, script: Script[T]) -> T:
        try:
            statement = next(script)
            while True:
                statement = script.send(await self._connection.fetch(statement.sql, *statement.params))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))


def _breaks(error: BaseException) -> bool:
    """Whether the connection is not to be used again after this error."""
    if not isinstance(error, Exception):
        return True
    refusal = _refusal(error)
    return isinstance(refusal, StoreUnavailable) and not isinstance(refusal, Contended)


def _refusal(error: BaseException) -> StoreError | None:
    """What to raise where the database cannot answer; None for a statement or a script that broke a rule."""
    match error:
        case asyncpg.CharacterNotInRepertoireError():  # a NUL, which no text here can hold
            return NotFound("There is nothing of that name.")
        # A plan that no longer fits, after a migration elsewhere, is made anew in the next transaction.
        case (
            asyncpg.SerializationError()
            | asyncpg.DeadlockDetectedError()
            | asyncpg.InvalidCachedStatementError()
            | asyncpg.OutdatedSchemaCacheError()
        ):
            return Contended("The database cannot answer: another transaction was in the way.")
        case asyncpg.PostgresError(sqlstate=code) if code not in OF_STATE and (code or "").startswith(OF_STATEMENT):
            return None
        case asyncpg.PostgresError() | asyncpg.InternalClientError():
            reason = str(error.args[0])
        case asyncpg.InterfaceError() if not isinstance(error, ValueError):
            reason = str(error.args[0])
        case TimeoutError():
            reason = "it takes too long"
        case ssl.SSLError() | socket.gaierror():
            reason = str(error.strerror)
        case OSError():  # whose own text names the address
            reason = os.strerror(error.errno) if error.errno else "it cannot be reached"
        case _:
            return None
    return StoreUnavailable(f"The database cannot answer: {reason.rstrip('.')}.")


class TaskDriver:
    """The teller's transactions, each in a task of its own, on one connection."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._task: asyncio.Task[None] | None = None

    def transact(self, compose: Callable[[], Script[Answers]], finish: Callable[[Outcome], None]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._transact(compose, finish))

    async def _transact(self, compose: Callable[[], Script[Answers]], finish: Callable[[Outcome], None]) -> None:
        outcome: Outcome
        try:
            outcome = await self._session.transact(compose)
        except Exception as error:  # noqa: BLE001 - those who asked will hear of it
            outcome = error
        finish(outcome)


class PostgresStore:
    """One database, shared by any number of processes on any number of machines. Nothing is opened before it is used.

    A `clock` that is a Clock is set by that of the server, at each connection, so that the machines agree.
    """

    def __init__(self, url: str, judge: Judge, clock: Callable[[], int]) -> None:
        self._url, self._clock = url, clock
        # One at a time, also where a commit that was given up is still under way at the server: what is closed
        # after it must find what it made.
        turn = f"{BEGIN}; SELECT pg_advisory_xact_lock({secrets.randbits(62)})"
        self._session = Session(url, clock, ASKING, turn)
        self.teller = Teller(TaskDriver(self._session), judge, clock)
        self._idle: list[Session] = []
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._closed = False

    async def migrate(self) -> list[int]:
        """Brings the schema up to date; returns the numbers applied.

        Raises StoreUnavailable, or ValueError for a URL that cannot be read.
        """
        session = Session(self._url, self._clock, MIGRATING)
        try:
            return await session.transact(lambda: _locked(self._clock))
        finally:
            await session.close()

    async def run(self, script: Script[T]) -> T:
        """Runs a script as one transaction. Raises what it raises, or StoreUnavailable: Contended to try anew."""
        async with self._turns:
            if self._closed:
                raise StoreUnavailable("The store is closed.")
            session = self._idle.pop() if self._idle else Session(self._url, self._clock, RUNNING)
            try:
                return await session.transact(lambda: script)
            finally:
                await self._rest(session)

    async def ping(self) -> None:
        """Returns when a transaction can be had. Raises StoreUnavailable."""
        await self.teller.ping()

    async def close(self) -> None:
        await self.teller.close()
        self._closed = True
        for session in (self._session, *self._idle):
            await session.close()

    async def _rest(self, session: Session) -> None:
        if self._closed:
            await session.close()
        else:
            self._idle.append(session)


def _locked(clock: Callable[[], int]) -> Script[list[int]]:
    """One process migrates, and then those that waited for it find nothing to do."""
    yield Statement("SELECT pg_advisory_xact_lock(CAST($1 AS bigint))", (LOCK,))
    return (yield from ledger.migrate(clock()))
