"""The store in one process, on every database: exact buckets, authority on every take, the audit, the teller."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from store import Clock, Store, accounts, buckets, ledger, open_store
from store.buckets import TOKEN
from store.records import Authority, Budget, Closing, Conflict, Hold, NotFound, StoreUnavailable, Take
from store.script import Row, Script, Statement
from tests.stores import SECOND, START, Hands, judge, new_database, new_key, set_plan, take, written

Run: TypeAlias = Callable[[Script[Any]], Any]


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture(params=["sqlite", "sqlite full", "postgresql"])
async def store(clock: Hands, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    scheme, _, synchronous = request.param.partition(" ")
    store = open_store(new_database(scheme, request), judge, clock=clock, synchronous=synchronous or "normal")
    await store.migrate()
    await store.run(ledger.create_workspace("acme", "60/5", by="test", now=START))
    yield store
    await store.close()


# Tokens


async def test_a_tick_serves_its_waiters_as_if_one_after_the_other(store: Store) -> None:
    minted, _ = await new_key(store)
    takes = await take(store, minted, 7)
    assert [each.granted for each in takes] == [True] * 5 + [False] * 2
    assert [each.remaining for each in takes] == [4, 3, 2, 1, 0, 0, 0]
    assert [each.reset - START // SECOND for each in takes] == [1, 2, 3, 4, 5, 5, 5]
    assert [each.retry_after for each in takes] == [0] * 5 + [1] * 2


async def test_tokens_come_back_evenly_and_up_to_one_bucket(store: Store, clock: Hands) -> None:
    minted, _ = await new_key(store)
    await take(store, minted, 5)
    clock.now += SECOND - 1
    assert not (await take(store, minted))[0].granted
    clock.now += 1
    assert [each.granted for each in await take(store, minted, 2)] == [True, False]
    clock.now += 10**6 * SECOND
    assert sum(each.granted for each in await take(store, minted, 9)) == 5


async def test_retry_after_is_when_one_request_would_pass(store: Store, clock: Hands) -> None:
    await set_plan(store, "7/1")
    minted, _ = await new_key(store)
    refused = (await take(store, minted, 2))[1]
    assert refused.retry_after == 9  # 60 / 7 seconds
    clock.now += refused.retry_after * SECOND
    assert (await take(store, minted))[0].granted


async def test_time_never_goes_back_in_a_bucket(store: Store, clock: Hands) -> None:
    minted, _ = await new_key(store)
    await take(store, minted, 5)
    clock.now -= 3600 * SECOND
    refused = (await take(store, minted))[0]
    assert (refused.granted, refused.retry_after) == (False, 3601)
    clock.now += 3600 * SECOND
    assert not (await take(store, minted))[0].granted


async def test_a_raised_budget_adds_the_difference_and_a_lowered_one_clamps(store: Store) -> None:
    minted, _ = await new_key(store)
    assert (await take(store, minted, 4))[-1].remaining == 1
    await set_plan(store, "600/50")
    raised = (await take(store, minted))[0]
    assert (raised.remaining, raised.budget) == (45, Budget(600, 50))
    await set_plan(store, "60/5")
    assert (await take(store, minted))[0].remaining == 4


steps = st.lists(
    st.tuples(
        st.one_of(st.integers(-(10**7), 10**8), st.just(10**16)),
        st.integers(1, 10**6),
        st.integers(1, 10**6),
        st.integers(1, 2000),
    ),
    max_size=12,
)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs scripts, outside of any loop, in a store that has the workspace acme."""
    store, loop = open_store(new_database(request.param, request), judge), asyncio.new_event_loop()
    loop.run_until_complete(store.migrate())
    loop.run_until_complete(store.run(ledger.create_workspace("acme", "", by="test", now=START)))
    yield lambda script: loop.run_until_complete(store.run(script))
    loop.run_until_complete(store.close())
    loop.close()


@settings(deadline=None, max_examples=60)
@given(steps=steps)
def test_the_bucket_is_exact(run: Run, steps: list[tuple[int, int, int, int]]) -> None:
    minted = ledger.mint()
    run(ledger.create_key(minted, "acme", by="test", now=START))
    now = at = START
    held = capacity = Fraction()
    for passed, per_minute, burst, wanted in steps:
        now += passed
        held += max(burst - capacity, Fraction()) + Fraction(max(now - at, 0) * per_minute, 60 * SECOND)
        capacity, at = Fraction(burst), max(at, now)
        held = min(held, capacity)
        granted = min(wanted, int(held))
        held -= granted

        always = Always(Budget(per_minute, burst))
        takes = run(buckets.take(always, "proc", [minted.digest] * wanted, now))
        assert [each.granted for each in takes] == [True] * granted + [False] * (wanted - granted)
        last = takes[-1]
        assert last.remaining == int(held)
        seconds = (at + (capacity - held) * 60 * SECOND / per_minute) / SECOND
        assert seconds <= last.reset < seconds + 1 + Fraction(1, SECOND)
        if not last.granted:
            wait = (at - now + (1 - held) * 60 * SECOND / per_minute) / SECOND
            assert last.retry_after == 1 or wait <= last.retry_after < wait + 1 + Fraction(1, SECOND)
            assert last.retry_after >= max(wait, Fraction(1))
        ((tokens,),) = run(raw(f"SELECT tokens FROM buckets WHERE id = '{last_bucket(last)}'"))
        assert Fraction(tokens, TOKEN) == held


@dataclass(frozen=True)
class Always:
    """A judge that always says the same."""

    budget: Budget

    def __call__(self, authority: Authority, now: int) -> Budget:
        return self.budget


def raw(sql: str) -> Script[list[Row]]:
    return list((yield Statement(sql)))


def last_bucket(take: Take) -> str:
    assert take.authority is not None
    return take.authority.key.bucket


# Authority


async def test_an_unknown_key_has_no_authority(store: Store) -> None:
    assert await store.teller.take(ledger.mint().digest) == Take(None)


async def test_refused_takes_cost_nothing_and_changes_act_on_the_next_take(store: Store) -> None:
    minted, key = await new_key(store)
    other, _ = await new_key(store)
    assert (await take(store, minted))[0].remaining == 4
    await store.run(ledger.revoke_key(key.id, by="test", now=START + 1))
    refused = (await take(store, minted))[0]
    assert (refused.granted, refused.budget) == (False, None)
    assert refused.authority is not None
    assert refused.authority.key.revoked_at == START + 1
    assert (await take(store, other))[0].remaining == 4


async def test_a_rotated_pair_shares_one_bucket_until_the_old_key_ends(store: Store, clock: Hands) -> None:
    await set_plan(store, "1/5")
    old, key = await new_key(store)
    new = ledger.mint()
    successor = await store.run(ledger.rotate_key(key.id, new, grace=10 * SECOND, by="test", now=START))
    assert (successor.rotated_from_id, successor.bucket) == (key.id, key.bucket)
    digests = [old.digest, new.digest] * 3
    takes = await asyncio.gather(*(store.teller.take(digest) for digest in digests))
    assert sum(each.granted for each in takes) == 5
    clock.now += 10 * SECOND
    assert (await take(store, old))[0].budget is None
    assert (await take(store, new))[0].budget == Budget(1, 5)


async def test_rotation_never_prolongs_a_key(store: Store) -> None:
    minted = ledger.mint()
    key = await store.run(
        ledger.create_key(minted, "acme", expires_at=START + 5, models=[], limit=3, by="test", now=START)
    )
    successor = await store.run(ledger.rotate_key(key.id, ledger.mint(), grace=100, by="test", now=START))
    assert (await store.run(ledger.get_key(key.id))).expires_at == START + 5
    assert (successor.expires_at, successor.models, successor.limit) == (START + 5, [], 3)
    with pytest.raises(Conflict):
        await store.run(ledger.rotate_key(key.id, ledger.mint(), grace=1, by="test", now=START + 5))
    assert len(await store.run(ledger.list_keys())) == 2


# Changes and their audit


async def test_workspaces(store: Store) -> None:
    acme = await store.run(ledger.get_workspace("acme"))
    with pytest.raises(Conflict):
        await store.run(ledger.create_workspace("acme", "60/5", by="test", now=START))
    limited = await store.run(ledger.set_workspace("acme", ceiling=9, by="test", now=START))
    assert limited == replace(acme, ceiling=9)
    assert await store.run(ledger.set_workspace("acme", plan="1/1", by="test", now=START)) == replace(
        limited, plan="1/1"
    )
    assert (await store.run(ledger.set_workspace("acme", ceiling=None, by="test", now=START))).ceiling is None
    await store.run(ledger.create_workspace("zeta", "60/5", by="test", now=START))
    assert [each.name for each in await store.run(ledger.list_workspaces(limit=1))] == ["acme"]
    assert [each.name for each in await store.run(ledger.list_workspaces(after="acme"))] == ["zeta"]
    for script in (ledger.get_workspace("nobody"), ledger.set_workspace("nobody", plan="x", by="t", now=1)):
        with pytest.raises(NotFound):
            await store.run(script)


async def test_keys_are_listed_by_page(store: Store) -> None:
    await store.run(ledger.create_workspace("zeta", "60/5", by="test", now=START))
    made = [(await new_key(store, workspace))[1] for workspace in ("acme", "acme", "zeta")]
    ids = sorted(key.id for key in made[:2])
    first = await store.run(ledger.list_keys("acme", limit=1))
    second = await store.run(ledger.list_keys("acme", after=first[0].id))
    assert [key.id for key in first + second] == ids
    assert len(await store.run(ledger.list_keys())) == 3
    with pytest.raises(NotFound):
        await new_key(store, "nobody")
    with pytest.raises(NotFound):
        await store.run(ledger.revoke_key("key_none", by="test", now=START))


async def test_every_change_is_in_the_audit_and_no_secret_in_the_database(
    url: str, request: pytest.FixtureRequest
) -> None:
    store = open_store(url, judge)
    await store.migrate()
    await store.run(ledger.create_workspace("acme", "60/5", by="test", now=START))
    minted, key = await new_key(store)
    new = ledger.mint()
    await store.run(ledger.rotate_key(key.id, new, grace=0, by="ann", now=START + 1))
    for moment in (2, 3):
        await store.run(ledger.revoke_key(key.id, by="bob", now=START + moment))
    with pytest.raises(NotFound):
        await store.run(ledger.revoke_key("key_none", by="bob", now=START))
    events = await store.run(ledger.list_events())
    told = [(event.by, event.action, event.at - START) for event in events]
    assert told[:2] == [("bob", "key.revoke", 2), ("ann", "key.rotate", 1)]
    assert set(told[2:]) == {("test", "key.create", 0), ("test", "workspace.create", 0)}
    assert [event.id for event in await store.run(ledger.list_events(before=events[0].id, limit=2))] == [
        event.id for event in events[1:3]
    ]
    assert {event.subject for event in events[:2]} == {key.id}
    await store.close()
    content = written(url, request)
    for secret in (minted.secret, new.secret):
        assert secret[:16].encode() in content
        assert secret[16:].encode() not in content


def test_a_key_has_one_form() -> None:
    minted = ledger.mint()
    assert ledger.digest(minted.secret) == minted.digest
    for wrong in (
        "",
        minted.secret[:-1],
        minted.secret + "0",
        minted.secret.upper(),
        minted.secret + "\n",
        "rp_live_é",
    ):
        assert ledger.digest(wrong) is None


async def test_nothing_is_named_by_what_no_name_can_hold(store: Store) -> None:
    for name in ("", "\0", "acme\0", "𝄞" * 10_000, "'"):
        with pytest.raises(NotFound):
            await store.run(ledger.get_workspace(name))


# The teller in trouble


async def test_a_waiter_who_left_takes_no_token(store: Store) -> None:
    minted, _ = await new_key(store)
    waiting = [store.teller.take(minted.digest) for _ in range(5)]
    for each in waiting[:4]:
        each.cancel()
    assert (await waiting[4]).remaining == 4


async def test_one_broken_ask_fails_alone(store: Store) -> None:
    await store.run(ledger.create_workspace("broken", "no numbers", by="test", now=START))
    (good, _), (bad, _) = await new_key(store), await new_key(store, "broken")
    digests = [good.digest, bad.digest, good.digest]
    first, broken, second = await asyncio.gather(
        *(store.teller.take(digest) for digest in digests), return_exceptions=True
    )
    assert isinstance(broken, ValueError)
    assert [take.remaining for take in (first, second) if isinstance(take, Take)] == [4, 3]


async def test_closing_answers_who_waits_and_refuses_who_comes(store: Store) -> None:
    minted, _ = await new_key(store)
    waiting = store.teller.take(minted.digest)
    await store.close()
    assert waiting.result().granted
    with pytest.raises(StoreUnavailable):
        await store.teller.take(minted.digest)


def test_the_clock_is_the_wall_clock() -> None:
    before, now, after = time.time_ns() // 1000, Clock()(), time.time_ns() // 1000
    assert before - 1 <= now <= after + 1


def test_a_clock_can_follow_another() -> None:
    clock = Clock()
    clock.set(START)
    assert START <= clock() < START + SECOND


# Databases


async def test_an_empty_database_is_migrated_once(url: str) -> None:
    store = open_store(url, judge)
    with pytest.raises(StoreUnavailable):
        await store.ping()
    assert (await store.migrate())[0] == 1
    assert await store.migrate() == []
    await store.ping()
    await store.close()


@pytest.mark.parametrize("url", ["mysql://user:secret@localhost/conch", "conch.db", "sqlite:", "postgresql:x", ""])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="Unsupported store URL") as refusal:
        open_store(url, judge)
    assert "secret" not in str(refusal.value)


async def test_a_clock_that_is_behind_does_not_bring_last_month_back(store: Store, clock: Hands) -> None:
    """Two machines at midnight: what was spent in the new month stays spent."""
    await store.run(accounts.grant("acme", 1000, by="test", now=START))
    await store.run(ledger.set_workspace("acme", spend_limit=100, by="test", now=START))
    midnight = 1_801_440_000_000_000  # 2027-02-01
    held = []
    for number, clock.now in enumerate((midnight + SECOND, midnight - SECOND, midnight + SECOND)):
        amount = 99 if number == 0 else 1
        held.append((await store.teller.hold(Hold(f"req_{number}", "proc", "acme", amount))).granted)
    assert held == [True, True, False]
    for number in range(2):
        await store.teller.settle(Closing(f"req_{number}", held=True))
    account = await store.run(accounts.account("acme", now=clock.now))
    assert (account.credits, account.held, account.spent) == (1000, 0, 0)
