"""The teller: one queue in front of the database. What is asked in one tick of a loop is one transaction."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

from store import ledger, responses
from store.ledger import Judge, Script
from store.records import StoredResponse, StoreUnavailable, Take

Kind: TypeAlias = Callable[[Sequence[Any], int], Script[list[Any]]]
"""A kind of ask: the script that answers a tick's asks of that kind, in their order, at a time in µs."""
Answers: TypeAlias = list[tuple["Ask", Any]]
Outcome: TypeAlias = Answers | Exception


class Clock:
    """Wall clock at the start plus monotonic time since, in µs: it neither jumps nor goes back."""

    def __init__(self) -> None:
        self._origin = time.time_ns() - time.monotonic_ns()

    def __call__(self) -> int:
        return (self._origin + time.monotonic_ns()) // 1000


class Driver(Protocol):
    """A connection that runs one script at a time, each as one transaction."""

    def transact(self, compose: Callable[[], Script[Answers]], finish: Callable[[Outcome], None]) -> None:
        """Begins, composes as late as it can, runs the script, commits, finishes; calls back in the loop.

        Finishes with the answers once committed, or with StoreUnavailable or what the script raised once
        rolled back. StoreUnavailable may come without a call to `compose`.
        """


class Ask:
    """A request for something, and the future that is waiting for it."""

    __slots__ = ("future", "item", "kind")

    def __init__(self, kind: Kind, item: Any, future: asyncio.Future[Any]) -> None:
        self.kind, self.item, self.future = kind, item, future

    def refuse(self, error: Exception, cause: Exception | None = None) -> None:
        if not self.future.done():
            error.__cause__ = cause
            self.future.set_exception(error)


class Teller:
    """Serves everything that must be exact. Bound to the loop that first asks."""

    def __init__(self, driver: Driver, judge: Judge, clock: Callable[[], int]) -> None:
        self._driver, self._clock = driver, clock
        self._take: Kind = partial(ledger.take, judge)
        self._kinds: tuple[Kind, ...] = (self._take, responses.keep, ledger.ping)
        self._waiting: list[Ask] = []
        self._batch: list[Ask] = []
        self._singly: list[Ask] = []
        self._working = self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def take(self, digest: bytes) -> asyncio.Future[Take]:
        """One token for this digest's key; none if cancelled before its tick. Raises StoreUnavailable."""
        return self._ask(self._take, digest)

    def keep(self, response: StoredResponse, since: int) -> asyncio.Future[None]:
        """Stores a response that is not large; those older than `since` (µs) go. Raises StoreUnavailable."""
        return self._ask(responses.keep, (response, since))

    def ping(self) -> asyncio.Future[None]:
        """Answers when a transaction can be had. Raises StoreUnavailable."""
        return self._ask(ledger.ping, None)

    async def close(self) -> None:
        """Refuses new asks and returns when the last is answered."""
        self._closed = True
        if pending := [ask.future for ask in self._waiting + self._batch + self._singly]:
            await asyncio.wait(pending)

    def _ask(self, kind: Kind, item: Any) -> asyncio.Future[Any]:
        loop = self._loop
        if loop is None:  # once: in Python 3.11 it is a system call
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self._closed:
            future.set_exception(StoreUnavailable("The store is closed."))
            return future
        self._waiting.append(Ask(kind, item, future))
        if not self._working:
            self._working = True
            loop.call_soon(self._tick)
        return future

    def _tick(self) -> None:
        self._driver.transact(self._compose, self._finish)

    def _compose(self) -> Script[Answers]:
        """Called when the transaction has begun, so that who came while it waited for its lock is in it."""
        if self._singly:
            self._batch = [self._singly.pop()]
        else:
            self._batch, self._waiting = self._waiting, []
        self._batch = [ask for ask in self._batch if not ask.future.done()]
        return self._script(self._batch)

    def _script(self, batch: list[Ask]) -> Script[Answers]:
        answers: Answers = []
        now = self._clock()
        for kind in self._kinds:
            if asks := [ask for ask in batch if ask.kind is kind]:
                answers += zip(asks, (yield from kind([ask.item for ask in asks], now)), strict=True)
        return answers

    def _finish(self, outcome: Outcome) -> None:
        batch, self._batch = self._batch, []
        if isinstance(outcome, StoreUnavailable):
            # Who waits for the next transaction has waited for this one too.
            batch += self._singly + self._waiting
            self._singly, self._waiting = [], []
            for ask in batch:
                ask.refuse(StoreUnavailable(str(outcome)), outcome)
        elif isinstance(outcome, list):
            for ask, answer in outcome:
                if not ask.future.done():
                    ask.future.set_result(answer)
        elif len(batch) == 1:
            batch[0].refuse(outcome)
        else:
            # One ask broke the transaction of all: now each gets its own.
            self._singly = batch[::-1]
        self._working = bool(self._singly or self._waiting)
        if self._working:
            asyncio.get_running_loop().call_soon(self._tick)
