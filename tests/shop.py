"""Gateways of one database and their requests: what they ask for in one tick, and what they must be told."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from store import Store
from store.ledger import Minted
from store.records import (
    Authority,
    Budget,
    Claim,
    Claimed,
    Closing,
    Held,
    Hold,
    Key,
    Recorded,
    StoreUnavailable,
    Take,
    Units,
    Usage,
)
from store.script import Script
from store.teller import Answers, Driver, Outcome
from tests.books import Books
from tests.stores import SECOND, Hands

T = TypeVar("T")

RETENTION = 25 * SECOND

PLANS: dict[str, tuple[int | None, int | None]] = {"open": (None, None), "small": (2, 70), "narrow": (1, None)}
"""Requests that may run at once, and what a month may cost. "none" is a plan without keys."""

NEXT = {
    "admitted": ("claim", "hold", "claim", "hold", "free", "fail"),
    "claimed": ("hold", "hold", "free", "fail"),
    "held": ("settle", "settle", "left", "fail"),
    "failed": ("fail",),
    "closed": ("again", "end", "end"),
}
"""What a request may do next. It has failed where it was refused, or where nobody knows what the store did."""


def judge(authority: Authority, now: int) -> Budget | None:
    key, plan = authority.key, PLANS.get(authority.workspace.plan)
    if plan is None or key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        return None
    return Budget(10**6, 10**6, plan[0])


class Line:
    """The line to a database, which may be cut once: "before" a transaction or "after" its commit."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.cut = driver, ""

    def transact(self, compose: Callable[[], Script[Answers]], finish: Callable[[Outcome], None]) -> None:
        cut, self.cut = self.cut, ""
        if cut == "before":
            finish(StoreUnavailable("The line is cut."))
        elif cut == "after":
            self.driver.transact(compose, lambda outcome: finish(lost(outcome)))
        else:
            self.driver.transact(compose, finish)


def lost(outcome: Outcome) -> Outcome:
    return StoreUnavailable("The line is cut.") if isinstance(outcome, list) else outcome


@dataclass(eq=False)
class Gateway:
    store: Store
    line: Line

    @property
    def process(self) -> str:
        return self.store.teller.process

    async def beat(self) -> None:
        self.hush()
        await self.store.teller.live()

    def hush(self) -> None:
        """Its heart beats when the test says so."""
        teller = self.store.teller
        if teller._heart is not None:
            teller._heart.cancel()

    async def crash(self) -> None:
        """Nothing is told to the database any more."""
        self.hush()
        self.store.teller._heart = None
        await self.store.close()


@dataclass(eq=False)
class Job:
    """A request that has been admitted."""

    id: str
    gateway: Gateway
    take: Take
    state: str = "admitted"
    held: int = 0
    claim: bytes | None = None
    closing: Closing | None = None

    @property
    def workspace(self) -> str:
        assert self.take.authority is not None
        return self.take.authority.workspace.name

    def hold(self, amount: int) -> Hold:
        assert self.take.authority is not None
        self.held = amount
        limit = PLANS[self.take.authority.workspace.plan][1]
        return Hold(self.id, self.gateway.process, self.workspace, amount, limit)

    def close(self, verb: str, amount: int, now: int) -> Closing:
        self.state, self.closing = "closed", Closing(self.id, self.held > 0, None, self.claim)
        if verb != "fail":
            assert self.take.authority is not None
            cost = min(amount, self.held)
            self.closing.usage = Usage(
                now, self.workspace, self.take.authority.key.id, "m", Units(output_tokens=cost), cost, verb != "left"
            )
        if verb in ("settle", "free") and self.claim is not None:
            self.closing.answer = Recorded([(b"of", self.id.encode())], self.id.encode() * 9, amount % 2 == 1)
            self.closing.expires_at = now + RETENTION
        return self.closing


@dataclass
class Bank:
    """A database, and the loop in which all gateways live."""

    url: str
    loop: asyncio.AbstractEventLoop
    desk: Store
    numbers: Iterator[int]

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    async def read(self, script: Script[T]) -> T:
        """Through the driver of the teller, which has nothing else to do: the fastest way."""
        told: asyncio.Future[Any] = self.loop.create_future()
        self.desk.teller._driver.transact(lambda: script, told.set_result)  # type: ignore[arg-type, return-value]
        outcome = await told
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]


class Shop:
    """What there is for one run: workspaces and their keys, gateways and their requests, and the books of it all."""

    def __init__(self, bank: Bank) -> None:
        self.bank, self.books, self.clock = bank, Books(), Hands()
        self.name = f"t{next(bank.numbers):06d}"
        self.gateways: list[Gateway] = []
        self.jobs: list[Job] = []
        self.keys: list[tuple[Minted, Key]] = []
        self.plans: dict[str, str] = {}
        self.numbers = itertools.count()

    def claimed(self, job: Job, choice: int) -> Claim:
        job.claim = f"{self.name}/{choice % 2}".encode()
        expires_at = self.clock.now + RETENTION
        return Claim(job.claim, job.id, job.gateway.process, b"body%d" % (choice % 5 // 4), expires_at)

    def hear_claimed(self, job: Job, told: Claimed, expected: Claimed) -> None:
        assert told == expected
        job.state = "claimed" if told.mine else "closed"
        if not told.mine:
            job.claim = None


class Tick:
    """What requests of one gateway ask for in one tick, what becomes of it by the books, and what they are told."""

    def __init__(self, shop: Shop, gateway: Gateway, cut: str) -> None:
        self.shop, self.gateway, self.cut, self.now = shop, gateway, cut, shop.clock.now
        self.takes: list[tuple[Minted, Key]] = []
        self.moves: dict[Job, tuple[str, Any]] = {}

    def take(self, minted: Minted, key: Key) -> None:
        self.takes.append((minted, key))

    def move(self, job: Job, verb: str, amount: int) -> None:
        if job in self.moves:
            return
        if verb == "claim":
            ask = self.shop.claimed(job, amount)
            self.moves[job] = verb, ask
        elif verb == "hold":
            self.moves[job] = verb, job.hold(amount)
        elif verb in ("again", "end"):
            self.moves[job] = verb, job.closing
        else:
            self.moves[job] = "close", job.close(verb, amount, self.now)

    async def run(self) -> None:
        teller = self.gateway.store.teller
        ending = {item.claim for verb, item in self.moves.values() if verb == "close"}
        for job, (verb, item) in list(self.moves.items()):
            if verb == "claim" and item.id in ending:  # whether it is free already is the teller's to choose
                job.claim = None
                del self.moves[job]
        taking = [teller.take(minted.digest) for minted, _ in self.takes]
        asked = {job: self._ask(verb, item, job) for job, (verb, item) in self.moves.items()}
        futures = [*taking, *(future for future in asked.values() if future is not None)]
        self.gateway.line.cut = self.cut if futures else ""
        await asyncio.gather(*futures, return_exceptions=True)
        while teller.owed:  # noqa: ASYNC110 - it is tried again by a timer that tells nobody
            await asyncio.sleep(0)
        await teller.ping()
        places = taking or any(verb == "end" and placed(job.take) for job, (verb, _) in self.moves.items())
        if places and self.cut == "after":
            self._recount()
        for kind in ("end", "take", "claim", "close", "hold"):
            if kind == "take":
                self._hear_takes(taking)
            for job, (verb, item) in self.moves.items():
                if verb == kind:
                    getattr(self, f"_hear_{kind}")(job, item, asked[job])

    def _ask(self, verb: str, item: Any, job: Job) -> asyncio.Future[Any] | None:
        teller = self.gateway.store.teller
        match verb:
            case "claim":
                return teller.claim(item)
            case "hold":
                return teller.hold(item)
            case "close":
                return teller.settle(item) if item.answer is not None else teller.release(item)
            case "again":
                return None if item is None else teller.release(item)
            case _:
                return teller.leave(job.workspace) if placed(job.take) else None

    def _recount(self) -> None:
        """What the database has of places is in doubt: it gets what the gateway knows."""
        mine = [job for job in self.shop.jobs if job.gateway is self.gateway and placed(job.take)]
        self.shop.books.recount(self.gateway.process, Counter(job.workspace for job in mine))

    def _hear_takes(self, taking: list["asyncio.Future[Take]"]) -> None:
        if self.cut:
            assert all(isinstance(each.exception(), StoreUnavailable) for each in taking)
            return
        for workspace, plan in self.shop.plans.items():
            takes = [
                (key, future.result())
                for (_, key), future in zip(self.takes, taking, strict=True)
                if key.workspace == workspace
            ]
            for key, take in takes:
                assert (take.budget is not None) is (plan in PLANS and not stopped(key, self.now))
            able = [take for _, take in takes if take.budget is not None]
            granted = [take for take in able if take.granted]
            assert all(take.crowded is not take.granted for take in able)
            most = PLANS.get(plan, (None, None))[0]
            if most is not None:
                free = max(most - self.shop.books.running(workspace), 0)
                assert len(granted) == min(len(able), free)
            else:
                assert len(granted) == len(able)
            for take in granted:
                self._admit(take)

    def _admit(self, take: Take) -> None:
        job = Job(f"{self.shop.name}-r{next(self.shop.numbers)}", self.gateway, take)
        self.shop.jobs.append(job)
        if placed(take):
            self.shop.books.enter(self.gateway.process, job.workspace)

    def _hear_claim(self, job: Job, ask: Claim, asked: "asyncio.Future[Claimed]") -> None:
        if self.cut:
            job.state = "failed"
            assert isinstance(asked.exception(), StoreUnavailable)
        if self.cut != "before":
            expected = self.shop.books.claim(ask, self.now)
            if not self.cut:
                self.shop.hear_claimed(job, asked.result(), expected)

    def _hear_close(self, job: Job, closing: Closing, asked: "asyncio.Future[None]") -> None:
        asked.result()
        self.shop.books.close(job.workspace, closing, self.now)

    def _hear_hold(self, job: Job, hold: Hold, asked: "asyncio.Future[Held]") -> None:
        job.state = "failed"
        if self.cut:
            assert isinstance(asked.exception(), StoreUnavailable)
        if self.cut != "before":
            granted = self.shop.books.purses[job.workspace].hold(hold, self.now)
            if not self.cut:
                assert asked.result().granted is granted
                job.state = "held" if granted else "failed"

    def _hear_end(self, job: Job, closing: Closing, asked: None) -> None:
        self.shop.jobs.remove(job)
        if placed(job.take):
            self.shop.books.leave(self.gateway.process, job.workspace)


def stopped(key: Key, now: int) -> bool:
    return key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now)


def placed(take: Take) -> bool:
    return take.budget is not None and take.budget.concurrency is not None
