"""The teller: one queue in front of the database. What is asked in one tick of a loop is one transaction."""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import msgspec

from store import accounts, buckets, claims, ledger, processes, responses
from store.buckets import Judge
from store.records import (
    Claim,
    Claimed,
    Closing,
    Contended,
    Held,
    Hold,
    StoredResponse,
    StoreUnavailable,
    Take,
)
from store.script import Script

Kind: TypeAlias = Callable[[Sequence[Any], int], Script[list[Any]]]
"""A kind of ask: the script that answers a tick's asks of that kind, in their order, at a time in µs."""
Answers: TypeAlias = list[tuple["Ask", Any]]
Outcome: TypeAlias = Answers | Exception
Watch: TypeAlias = Callable[[float, int, str, int], None]
"""Told of each transaction: its seconds, how many asks it had, its OUTCOMES' one, and how much is owed."""
OUTCOMES = ("committed", "contended", "unavailable", "failed")

AGAIN = 0.25
"""Seconds after which what is owed is tried again while the database is away."""
PATIENCE = 10.0
"""Seconds for which a settlement is tried, before its request is told that it failed."""
BUSY, ROUNDS = 4, 4
"""Asks in a transaction from which on the next one waits so many rounds of the loop longer."""
FOR_EVER = float("inf")

log = logging.getLogger("conch.store")


class Clock:
    """Wall clock at the start plus monotonic time since, in µs: it neither jumps nor goes back."""

    def __init__(self) -> None:
        self._origin = time.time_ns() - time.monotonic_ns()
        self._served = False

    def __call__(self) -> int:
        return (self._origin + time.monotonic_ns()) // 1000

    def wall(self) -> int:
        """The time by which processes know of each other: the machine's of now, or that of the server they share."""
        return self() if self._served else time.time_ns() // 1000

    def set(self, now: int) -> None:
        """Goes on from `now` (µs): machines that share a database share its clock."""
        self._origin = now * 1000 - time.monotonic_ns()
        self._served = True


class Driver(Protocol):
    """A connection that runs one script at a time, each as one transaction."""

    def transact(self, compose: Callable[[], Script[Answers]], finish: Callable[[Outcome], None]) -> None:
        """Begins, composes as late as it can, runs the script, commits, finishes; calls back in the loop.

        Finishes with the answers once committed, or with StoreUnavailable or what the script raised once
        rolled back. StoreUnavailable may come without a call to `compose`; Contended means: once more.
        """


class Ask(msgspec.Struct):
    """A request for something, and the future that is waiting for it.

    What is owed, `until` a time of the loop, is done also when nobody waits any longer, and when the database is
    away for a while; it must not matter if it is done twice.
    """

    kind: Kind
    item: Any
    future: asyncio.Future[Any]
    until: float

    def refuse(self, error: Exception, cause: Exception | None = None) -> None:
        if not self.future.done():
            error.__cause__ = cause
            self.future.set_exception(error)
        if self.until:
            if not self.future.cancelled():
                self.future.exception()  # as good as retrieved: nobody need wait for it
            log.error("what was owed to the store could not be done (%s): %s", error, _told(self.item))


class Teller:
    """Serves everything that must be exact. Bound to the loop that first asks."""

    def __init__(self, driver: Driver, judge: Judge, clock: Callable[[], int]) -> None:
        self._driver, self._clock = driver, clock
        self.process = f"proc_{secrets.token_hex(8)}"
        wall = clock.wall if isinstance(clock, Clock) else clock
        self._lives: Kind = lambda asks, _: processes.beat(asks, wall())
        self._take: Kind = partial(buckets.take, judge, self.process)
        self._kinds: tuple[Kind, ...] = (
            self._take,
            accounts.settle,
            claims.claim,  # after the accounts, as what settles ends its claims: the other way round deadlocks
            responses.keep,
            buckets.recount,
            self._lives,
            processes.leave,
            processes.touch,
            ledger.ping,
        )
        self._waiting: list[Ask] = []
        self._batch: list[Ask] = []
        self._singly: list[Ask] = []
        self._owed: list[Ask] = []
        self._working = self._closed = self._busy = False
        self._now = 0  # of the last transaction
        self.away = False  # the database did not answer the last time
        self.alone = False  # whoever asks is the only one who can: nobody will come to share the transaction
        self.watch: Watch | None = None
        self.ring: Callable[[], object] = lambda: None  # with each heartbeat, as long as there is a webhook
        self._began = 0.0
        self._in_doubt = False  # what became of a take or a leaving
        self._places: Counter[str] = Counter()
        self._used: dict[str, int] = {}
        self._heart: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def take(self, digest: bytes) -> asyncio.Future[Take]:
        """One token for this digest's key; none if cancelled before its tick. Raises StoreUnavailable."""
        return self._ask(self._take, digest)

    def leave(self, workspace: str) -> asyncio.Future[None]:
        """Gives back the place that a take with a concurrency got; not to be waited for without bounds."""
        return self._ask(self._take, workspace, FOR_EVER)

    def claim(self, claim: Claim) -> asyncio.Future[Claimed]:
        """An idempotency key. Raises StoreUnavailable: it may be claimed all the same, so close it then too."""
        return self._ask(claims.claim, claim)

    def hold(self, hold: Hold) -> asyncio.Future[Held]:
        """Credits. Raises StoreUnavailable: they may be held all the same, so close it then too."""
        return self._ask(accounts.settle, hold)

    def settle(self, closing: Closing) -> asyncio.Future[None]:
        """Ends a request: once it returns, the ledger has it. Raises StoreUnavailable after 10 s of trying."""
        return self._ask(accounts.settle, closing, time.monotonic() + PATIENCE)

    def release(self, closing: Closing) -> asyncio.Future[None]:
        """Ends a request as soon as the database can; not to be waited for without bounds."""
        return self._ask(accounts.settle, closing, FOR_EVER)

    def keep(self, response: StoredResponse, since: int) -> asyncio.Future[None]:
        """Stores a response that is not large; those older than `since` (µs) go. Raises StoreUnavailable."""
        return self._ask(responses.keep, (response, since))

    def ping(self) -> asyncio.Future[None]:
        """Answers when a transaction can be had; where the last could not, one that writes. Raises StoreUnavailable."""
        return self._ask(processes.touch, self.process) if self.away else self._ask(ledger.ping, None)

    @property
    def owed(self) -> int:
        """How many asks wait for a database that is away."""
        return len(self._owed)

    async def live(self) -> None:
        """From now on this process has a row, and its heart beats. Raises StoreUnavailable."""
        await self._beat()

    def _beat(self) -> asyncio.Future[bool]:
        self._heart = asyncio.get_running_loop().call_later(processes.BEAT, self._beat)
        used, self._used = self._used, {}
        beaten: asyncio.Future[bool] = self._ask(self._lives, (self.process, used))
        beaten.add_done_callback(self._beaten)
        return beaten

    def _beaten(self, beaten: asyncio.Future[bool]) -> None:
        if beaten.cancelled():
            return
        if error := beaten.exception():
            log.warning("the heartbeat failed: %s", error)
        elif beaten.result():
            self.ring()

    async def close(self) -> None:
        """Refuses new asks and returns when the last is answered; the process gives up what it holds."""
        self._try_again()
        if self._heart is not None:
            self._heart.cancel()
            self._ask(processes.leave, self.process, time.monotonic())
        self._closed = True
        if pending := [ask.future for ask in self._waiting + self._batch + self._singly]:
            await asyncio.wait(pending)

    def _ask(self, kind: Kind, item: Any, until: float = 0.0) -> asyncio.Future[Any]:
        future = self._loop.create_future() if self._loop is not None else self._future()
        if self._closed:
            future.set_exception(StoreUnavailable("The store is closed."))
            return future
        self._waiting.append(Ask(kind, item, future, until))
        if not self._working:
            self._working = True
            if self.alone:
                self._tick()
            else:
                future.get_loop().call_soon(self._gather if self._busy else self._tick)
        return future

    def _future(self) -> asyncio.Future[Any]:
        if self._loop is None:  # once: in Python 3.11 it is a system call
            self._loop = asyncio.get_running_loop()
        return self._loop.create_future()

    def _gather(self, rounds: int = ROUNDS) -> None:
        """Under load, more rounds of the loop bring more into the transaction, of which each costs the same."""
        assert self._loop is not None
        if rounds:
            self._loop.call_soon(self._gather, rounds - 1)
        else:
            self._tick()

    def _tick(self) -> None:
        self._began = time.perf_counter()
        self._driver.transact(self._compose, self._finish)

    def _compose(self) -> Script[Answers]:
        """Called when the transaction has begun, so that who came while it waited for its lock is in it."""
        if self._in_doubt:  # alone: so that what this process knows is all that there is to know
            self._in_doubt = False
            known = {workspace: count for workspace, count in self._places.items() if count}
            self._batch = [Ask(buckets.recount, (self.process, known), self._future(), 0.0)]
        elif self._singly:
            self._batch = [self._singly.pop()]
        else:
            self._batch, self._waiting = self._waiting, []
        self._batch = [ask for ask in self._batch if ask.until or not ask.future.done()]
        self._busy = len(self._batch) >= BUSY
        return self._script(self._batch)

    def _script(self, batch: list[Ask]) -> Script[Answers]:
        answers: Answers = []
        self._now = self._clock()
        waiting: dict[Kind, list[Ask]] = {}
        for ask in batch:
            waiting.setdefault(ask.kind, []).append(ask)
        for kind in self._kinds if len(waiting) > 1 else tuple(waiting):
            if asks := waiting.get(kind):
                answers += zip(asks, (yield from kind([ask.item for ask in asks], self._now)), strict=True)
        return answers

    def _finish(self, outcome: Outcome) -> None:
        batch, self._batch = self._batch, []
        seconds, asked = time.perf_counter() - self._began, len(batch)
        if isinstance(outcome, list):
            self.away = False
            self._answer(outcome)
        else:
            self._fail(batch, outcome)
        self._working = bool(self._singly or self._waiting)
        if self._working:
            asyncio.get_running_loop().call_soon(self._tick)
        if self.watch is not None:
            self.watch(seconds, asked, _outcome(outcome), len(self._owed))

    def _fail(self, batch: list[Ask], outcome: Exception) -> None:
        self.away = isinstance(outcome, StoreUnavailable) and not isinstance(outcome, Contended)
        if isinstance(outcome, StoreUnavailable) and any(ask.kind in (self._take, buckets.recount) for ask in batch):
            self._in_doubt = True
            batch = [ask for ask in batch if ask.kind is not buckets.recount]  # which is made anew
        if isinstance(outcome, Contended):
            self._waiting = batch + self._waiting
        elif isinstance(outcome, StoreUnavailable):
            # Who waits for the next transaction has waited for this one too.
            batch += self._singly + self._waiting
            self._singly, self._waiting = [], []
            self._put_off(batch, outcome)
        elif len(batch) == 1:
            batch[0].refuse(outcome)
        else:
            # One ask broke the transaction of all: now each gets its own.
            self._singly = batch[::-1]

    def _answer(self, answers: Answers) -> None:
        for ask, answer in answers:
            waits = not ask.future.done()
            if waits:
                ask.future.set_result(answer)
            if ask.kind is self._take:
                self._note_take(ask.item, answer, waits)

    def _note_take(self, item: bytes | str, answer: Take | None, waits: bool) -> None:
        if answer is None:
            assert isinstance(item, str), "a workspace, in which a place was given back"
            self._places[item] -= 1
        elif answer.granted and answer.authority and answer.budget:
            self._used[answer.authority.key.id] = self._now
            if answer.budget.concurrency is not None:
                workspace = answer.authority.workspace.name
                self._places[workspace] += 1
                if not waits:
                    self.leave(workspace)  # whoever took it has gone meanwhile

    def _put_off(self, asks: list[Ask], outcome: StoreUnavailable) -> None:
        """The database is away: what is owed is tried again later, the rest is refused."""
        loop, now = asyncio.get_running_loop(), time.monotonic()
        for ask in asks:
            if ask.until > now and not self._closed:
                if not self._owed:
                    loop.call_later(AGAIN, self._try_again)
                self._owed.append(ask)
            else:
                ask.refuse(StoreUnavailable(str(outcome)), outcome)

    def _try_again(self) -> None:
        owed, self._owed = self._owed, []
        self._waiting = owed + self._waiting
        if self._waiting and not self._working:
            self._working = True
            self._tick()


def _outcome(outcome: Outcome) -> str:
    if isinstance(outcome, list):
        return "committed"
    if isinstance(outcome, Contended):
        return "contended"
    return "unavailable" if isinstance(outcome, StoreUnavailable) else "failed"


def _told(item: Any) -> str:
    """What was owed, for the log; an answer is nobody else's."""
    return f"{item.id}: {item.usage}" if isinstance(item, Closing) else str(item)
