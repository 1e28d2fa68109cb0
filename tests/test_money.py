"""The money under everything that can happen to it: gateways, requests, crashes and cut lines against a plain model."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from store import accounts, ledger, open_store, processes
from store.ledger import Minted
from store.records import Account, Key
from store.script import Script, Statement
from tests.books import Purse
from tests.shop import NEXT, PLANS, Bank, Gateway, Job, Line, Shop, Tick, judge, stopped
from tests.stores import SECOND, START, new_database

EXAMPLES = {"sqlite": 100, "postgresql": 50}
"""Of the suite; with --hypothesis-profile deep, twenty times as many, and others each time."""
STEPS = 40

small = st.integers(0, 11)
amounts = st.integers(1, 60)


class Money(Shop, RuleBasedStateMachine):
    """Three workspaces, each with keys, and the gateways that serve them all."""

    def __init__(self, bank: Bank) -> None:
        Shop.__init__(self, bank)
        RuleBasedStateMachine.__init__(self)
        self.known, self.sound = set[str](), True
        self.clock.now = end_of_month(START) - 50 * SECOND

    # What happens

    @initialize()
    def begin(self) -> None:
        async def begin() -> None:
            for plan in ("open", "small", "small"):
                workspace = f"{self.name}-{next(self.numbers)}"
                self.plans[workspace], self.books.purses[workspace] = plan, Purse(granted=100)
            self.keys = await self.desk(found, self.plans)
            await self._limit(self.workspace(0), 80)
            for _ in range(2):
                await self._open()

        self.step(begin())

    @precondition(lambda self: len(self.gateways) < 3)
    @rule()
    def open(self) -> None:
        self.step(self._open())

    @precondition(lambda self: len(self.gateways) > 1)
    @rule(pick=small, crashes=st.booleans())
    def end(self, pick: int, crashes: bool) -> None:
        gateway = self.gateways.pop(pick % len(self.gateways))
        self.jobs = [job for job in self.jobs if job.gateway is not gateway]
        if not crashes:
            self.books.bury(gateway.process)
        self.step(gateway.crash() if crashes else gateway.store.close())

    @rule(pick=small, amount=st.integers(1, 150))
    def grant(self, pick: int, amount: int) -> None:
        self.step(self._grant(self.workspace(pick), amount))

    @rule(pick=small, limit=st.none() | st.integers(0, 120))
    def limit(self, pick: int, limit: int | None) -> None:
        self.step(self._limit(self.workspace(pick), limit))

    @rule(pick=small, plan=st.sampled_from([*PLANS, "none"]))
    def plan(self, pick: int, plan: str) -> None:
        workspace = self.workspace(pick)
        self.plans[workspace] = plan
        self.step(self.desk(ledger.set_workspace, workspace, plan=plan))

    @rule(pick=small, how=st.sampled_from(["new", "rotate", "rotate", "revoke"]), grace=st.sampled_from([0, 30]))
    def key(self, pick: int, how: str, grace: int) -> None:
        self.step(self._key(pick, how, grace * SECOND))

    @rule(seconds=st.sampled_from([1, 10, 26, 30, 44, 46]), beating=st.lists(small, max_size=3))
    def later(self, seconds: int, beating: list[int]) -> None:
        self.clock.now += seconds * SECOND
        self.step(self._beat(beating))

    @rule(seconds=st.sampled_from([-15, 1, 1]), beating=st.lists(small, max_size=2))
    def month_ends(self, seconds: int, beating: list[int]) -> None:
        """It soon does, or just did: with what is running, where nobody's heart beats yet."""
        self.clock.now = end_of_month(self.clock.now + 15 * SECOND) + seconds * SECOND
        self.step(self._beat(beating))

    @rule(
        pick=small,
        takes=st.lists(small, max_size=4),
        moves=st.lists(st.tuples(small, small, amounts), max_size=6),
        cut=st.sampled_from(["", "", "", "", "before", "after"]),
    )
    def tick(self, pick: int, takes: list[int], moves: list[tuple[int, int, int]], cut: str) -> None:
        gateway = self.gateways[pick % len(self.gateways)]
        asks = Tick(self, gateway, cut)
        for each in takes:
            asks.take(*self.keys[each % len(self.keys)])
        mine = [job for job in self.jobs if job.gateway is gateway]
        for choice, verb, amount in moves if mine else ():
            job = mine[choice % len(mine)]
            asks.move(job, NEXT[job.state][verb % len(NEXT[job.state])], amount)
        self.step(asks.run())

    @rule(pick=small, takes=st.lists(small, max_size=4))
    def stall(self, pick: int, takes: list[int]) -> None:
        """One gateway is silent for too long: the others reap it, and it goes on as if nothing had been."""
        silent = pick % len(self.gateways)
        for _ in range(2):
            self.clock.now += processes.SILENCE // 2
            self.step(self._beat([place for place in range(len(self.gateways)) if place != silent]))
        self.tick(pick, takes, [], "")

    @rule(pick=small, takes=st.lists(small, min_size=1, max_size=4), amount=amounts)
    def fill(self, pick: int, takes: list[int], amount: int) -> None:
        """Requests come in, and they and all that are ready hold credits."""
        self.tick(pick, takes, [], "")
        self._move_all(pick, {"admitted": "hold", "claimed": "hold"}, amount)

    @rule(pick=small, amount=amounts)
    def drain(self, pick: int, amount: int) -> None:
        """All requests of a gateway end at once."""
        self._move_all(pick, {"admitted": "fail", "claimed": "fail", "failed": "fail", "held": "settle"}, amount)
        self._move_all(pick, {"closed": "end"}, amount)

    @rule(takes=st.lists(small, min_size=1, max_size=2), amount=amounts, claim=st.none() | small)
    def race(self, takes: list[int], amount: int, claim: int | None) -> None:
        """The requests of all gateways ask at once: in which order, only the database knows."""
        for place in range(len(self.gateways)):
            self.tick(place, takes, [], "")
        ready = [job for job in self.jobs if job.state == "admitted"]
        self.step(self._race_to_hold(ready, amount) if claim is None else self._race_to_claim(ready, claim))

    @rule(pick=small, amount=amounts, turns=st.integers(0, 5))
    def leave(self, pick: int, amount: int, turns: int) -> None:
        """A client leaves while its credits are being held."""
        self.tick(pick, [pick], [], "")
        if ready := [job for job in self.jobs if job.state in ("admitted", "claimed")]:
            self.step(self._leave(ready[pick % len(ready)], amount, turns))

    @rule(pick=small, amount=amounts)
    def settle_beside(self, pick: int, amount: int) -> None:
        """A large answer is settled beside the teller, who is told to release it too."""
        if ready := [job for job in self.jobs if job.state in ("held", "claimed")]:
            self.step(self._settle_beside(ready[pick % len(ready)], amount))

    def teardown(self) -> None:
        if self.sound:
            self.step(self._finish())
        self.bank.do(self._clear())

    # How it happens

    def desk(self, script: Callable[..., Script[Any]], *args: Any, **fields: Any) -> Coroutine[Any, Any, Any]:
        return self.bank.desk.run(script(*args, **fields, by="test", now=self.clock.now))

    def workspace(self, pick: int) -> str:
        return list(self.plans)[pick % len(self.plans)]

    def step(self, coroutine: Coroutine[Any, Any, None]) -> None:
        async def step() -> None:
            async with asyncio.timeout(20):
                await coroutine
                await self.check()

        self.sound = False
        self.bank.do(step())
        self.sound = True

    def _move_all(self, pick: int, verbs: dict[str, str], amount: int) -> None:
        gateway = self.gateways[pick % len(self.gateways)]
        asks = Tick(self, gateway, "")
        for job in [job for job in self.jobs if job.gateway is gateway and job.state in verbs]:
            asks.move(job, verbs[job.state], amount)
        self.step(asks.run())

    async def _open(self) -> None:
        store = open_store(self.bank.url, judge, clock=self.clock)
        line = Line(store.teller._driver)
        store.teller._driver = line
        self.gateways.append(Gateway(store, line))
        self.known.add(store.teller.process)
        await self._beat([len(self.gateways) - 1])

    async def _beat(self, beating: list[int]) -> None:
        for pick in beating:
            gateway = self.gateways[pick % len(self.gateways)]
            await gateway.beat()
            self.books.beat(gateway.process, self.clock.now)

    async def _grant(self, workspace: str, amount: int) -> None:
        await self.desk(accounts.grant, workspace, amount)
        self.books.purses[workspace].granted += amount

    async def _limit(self, workspace: str, limit: int | None) -> None:
        await self.desk(ledger.set_workspace, workspace, spend_limit=limit)
        self.books.purses[workspace].limit = limit

    async def _new_key(self, workspace: str) -> None:
        minted = ledger.mint()
        self.keys.append((minted, await self.desk(ledger.create_key, minted, workspace)))

    async def _key(self, pick: int, how: str, grace: int) -> None:
        if how == "new":
            await self._new_key(self.workspace(pick))
            return
        place = pick % len(self.keys)
        minted, key = self.keys[place]
        if how == "revoke":
            await self.desk(ledger.revoke_key, key.id)
        elif not stopped(key, self.clock.now):
            successor = ledger.mint()
            self.keys.append((successor, await self.desk(ledger.rotate_key, key.id, successor, grace=grace)))
        self.keys[place] = minted, await self.bank.desk.run(ledger.get_key(key.id))

    async def _race_to_hold(self, jobs: list[Job], amount: int) -> None:
        holds = [job.hold(amount + turn) for turn, job in enumerate(jobs)]
        held = await asyncio.gather(
            *(job.gateway.store.teller.hold(hold) for job, hold in zip(jobs, holds, strict=True))
        )
        for job, hold, told in zip(jobs, holds, held, strict=True):
            job.state = "held" if told.granted else "failed"
            if told.granted:
                assert self.books.purses[job.workspace].hold(hold, self.clock.now), "more was held than there was"
        for job, hold in zip(jobs, holds, strict=True):
            fits = self.books.purses[job.workspace].fits(hold, self.clock.now)
            assert job.state == "held" or not fits, "refused, and fits even after all others"

    async def _race_to_claim(self, jobs: list[Job], choice: int) -> None:
        claims = [self.claimed(job, choice) for job in jobs]
        told = await asyncio.gather(
            *(job.gateway.store.teller.claim(ask) for job, ask in zip(jobs, claims, strict=True))
        )
        for mine in (True, False):  # whoever won, won before the others
            for job, ask, answer in zip(jobs, claims, told, strict=True):
                if answer.mine is mine:
                    self.hear_claimed(job, answer, self.books.claim(ask, self.clock.now))

    async def _leave(self, job: Job, amount: int, turns: int) -> None:
        teller = job.gateway.store.teller
        holding = teller.hold(job.hold(amount))
        for _ in range(turns):
            await asyncio.sleep(0)
        holding.cancel()
        closing = job.close("fail", 0, self.clock.now)
        await teller.release(closing)
        self.books.close(job.workspace, closing, self.clock.now)

    async def _settle_beside(self, job: Job, amount: int) -> None:
        closing = job.close("settle", amount, self.clock.now)
        beside = job.gateway.store.run(accounts.settle([closing], self.clock.now))
        await asyncio.gather(beside, job.gateway.store.teller.release(closing))
        self.books.close(job.workspace, closing, self.clock.now)

    async def _finish(self) -> None:
        """All gateways end, one way or the other; within a minute nothing of them is left."""
        for turn, gateway in enumerate(self.gateways):
            await (gateway.crash() if turn % 2 else gateway.store.close())
        self.gateways.clear()
        self.clock.now += 46 * SECOND
        for process in self.known:
            self.books.bury(process)
        await self._open()
        assert not self.books.holders()

    async def _clear(self) -> None:
        for gateway in self.gateways:
            await gateway.store.close()

    # What must hold

    async def check(self) -> None:
        """The database says what the books say; and by its own rows alone, nothing was leaked."""
        now, month = self.clock.now, accounts.month(self.clock.now)
        seen = await self.bank.read(look(self.name, list(self.books.purses), now))
        for name, purse in self.books.purses.items():
            account = seen.accounts[name]
            assert account.credits + account.held == seen.granted[name] - sum(
                cost for of, cost, _, _ in seen.usage.values() if of == name
            )
            told = (account.credits, account.held, account.spent, account.spend_limit)
            assert told == (purse.credits, purse.held, purse.spent(month), purse.limit)
            assert account.credits >= -purse.late
            assert account.spent <= purse.bound.get(month, 0) + purse.beyond.get(month, 0)
            assert seen.running[name] == self.books.running(name)
            assert {id: rest for id, (of, *rest) in seen.holds.items() if of == name} == {
                id: list(hold) for id, hold in purse.holds.items()
            }
            assert {id: rest for id, (of, *rest) in seen.usage.items() if of == name} == {
                id: list(use) for id, use in purse.usage.items()
            }
        assert seen.places == self.books.places
        assert seen.claims == {
            id: (kept.owner, kept.process, kept.digest, kept.answer is None)
            for id, kept in self.books.claims.items()
            if kept.answer is None or kept.expires_at > now
        }
        assert seen.processes & self.known == self.books.alive.keys(), (
            seen.processes & self.known,
            self.books.alive,
            now,
        )


def found(plans: dict[str, str], *, by: str, now: int) -> Script[list[tuple[Minted, Key]]]:
    """Workspaces of these plans, each with 100 to spend and a key."""
    keys = []
    for workspace, plan in plans.items():
        yield from ledger.create_workspace(workspace, plan, by=by, now=now)
        yield from accounts.grant(workspace, 100, by=by, now=now)
        minted = ledger.mint()
        keys.append((minted, (yield from ledger.create_key(minted, workspace, by=by, now=now))))
    return keys


@dataclass
class Seen:
    """The rows of one machine's run, as the database has them."""

    accounts: dict[str, Account]
    granted: dict[str, int]
    running: dict[str, int]
    holds: dict[str, tuple[Any, ...]]
    usage: dict[str, tuple[Any, ...]]
    places: dict[tuple[str, str], int]
    claims: dict[bytes, tuple[Any, ...]]
    processes: set[str]


def look(name: str, workspaces: list[str], now: int) -> Script[Seen]:
    like, told = (f"{name}-%",), {}
    for workspace in workspaces:
        told[workspace] = yield from accounts.account(workspace, now=now)
    granted = yield Statement(
        "SELECT workspace, CAST(SUM(amount) AS bigint) FROM grants WHERE workspace LIKE $1 GROUP BY workspace", like
    )
    running = yield Statement("SELECT workspace, running FROM places WHERE workspace LIKE $1", like)
    holds = yield Statement("SELECT id, workspace, process, amount, month FROM holds WHERE workspace LIKE $1", like)
    usage = yield Statement("SELECT id, workspace, cost, whole, at FROM usage WHERE workspace LIKE $1", like)
    places = yield Statement("SELECT process, workspace, taken FROM slots WHERE workspace LIKE $1 AND taken > 0", like)
    claims = yield Statement(
        "SELECT id, owner, process, digest, state FROM claims "
        "WHERE owner LIKE $1 AND (state = 'running' OR expires_at > CAST($2 AS bigint))",
        (*like, now),
    )
    alive = yield Statement("SELECT id FROM processes")
    return Seen(
        told,
        dict(map(tuple, granted)),
        dict(map(tuple, running)),
        {id: tuple(rest) for id, *rest in holds},
        {id: (*rest, accounts.month(at)) for id, *rest, at in usage},
        {(process, workspace): taken for process, workspace, taken in places},
        {bytes(id): (owner, of, bytes(digest), state == "running") for id, owner, of, digest, state in claims},
        {id for (id,) in alive},
    )


def end_of_month(now: int) -> int:
    later = now
    while accounts.month(later) == accounts.month(now):
        later += 3600 * SECOND - later % (3600 * SECOND)
    return later


@pytest.fixture(params=["sqlite", "postgresql"])
def bank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bank]:
    monkeypatch.setattr("store.teller.AGAIN", 0.0)
    monkeypatch.setattr("store.processes.BEAT", 3600.0)
    url, loop = new_database(request.param, request), asyncio.new_event_loop()
    bank = Bank(url, loop, open_store(url, judge), itertools.count())
    bank.do(bank.desk.migrate())
    yield bank
    bank.do(bank.desk.close())
    loop.close()


def test_no_cent_is_lost_or_made(bank: Bank) -> None:
    usual = settings()
    many = usual.max_examples // 100
    examples = EXAMPLES[bank.url.partition(":")[0]] * many
    run_state_machine_as_test(
        partial(Money, bank),  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples, stateful_step_count=STEPS, deadline=None, derandomize=many == 1, print_blob=True
        ),
    )
