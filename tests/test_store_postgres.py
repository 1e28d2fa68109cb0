"""The store in PostgreSQL: a server that stops, hangs or refuses, rows that others hold, and what its errors tell."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any

import asyncpg
import pytest

from store import Clock, Store, accounts, ledger, open_store, postgres
from store.records import Authority, Budget, Claim, Closing, Contended, Hold, StoreUnavailable
from store.script import Script, Statement
from tests.postgres_fixture import Postgres
from tests.stores import SECOND, START, Hands, judge, new_database, new_key, take

Other = Callable[..., Awaitable[Any]]


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return new_database("postgresql", request)


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    store = open_store(url, judge, clock=Hands())
    await store.migrate()
    await store.run(ledger.create_workspace("acme", "60/5", by="test", now=START))
    yield store
    await store.close()


@pytest.fixture
async def other(url: str, store: Store) -> AsyncIterator[Other]:
    """Another client of the database: runs a statement and returns its rows."""
    connection = await asyncpg.connect(url)
    yield connection.fetch
    await connection.close()


def run(sql: str, *params: Any) -> Script[list[Any]]:
    return list((yield Statement(sql, params)))


async def refused(asked: Awaitable[Any]) -> str:
    with pytest.raises(StoreUnavailable) as refusal:
        await asked
    return str(refusal.value)


async def blocked(other: Other) -> None:
    """Returns when a connection waits for what another holds."""
    while not await other("SELECT 1 FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110 - only who asks is told
        await asyncio.sleep(0.001)


# The server


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
async def test_a_server_that_comes_back_is_found_again(store: Store, postgres: Postgres, how: signal.Signals) -> None:
    minted, _ = await new_key(store)
    await take(store, minted)
    postgres.stop(how)
    try:
        async with asyncio.timeout(1):
            for _ in range(20):
                asked = (store.teller.take(minted.digest) for _ in range(64))
                outcomes = await asyncio.gather(*asked, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
            assert await refused(store.ping()) == "The database cannot answer: Connection refused."
            await refused(store.run(ledger.list_keys()))
    finally:
        postgres.start()
    assert (await take(store, minted))[0].remaining == 3
    assert len(await store.run(ledger.list_keys())) == 1


async def test_a_restart_in_between_is_not_noticed(store: Store, postgres: Postgres) -> None:
    minted, _ = await new_key(store)
    await take(store, minted)
    postgres.stop()
    postgres.start()
    assert (await take(store, minted))[0].remaining == 3
    assert len(await store.run(ledger.list_keys())) == 1


async def test_a_server_that_hangs_holds_nobody_up_for_long(
    url: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for patience in ("CONNECTING", "ASKING", "RUNNING"):
        monkeypatch.setattr(f"store.postgres.{patience}", 0.3)
    store, new = (open_store(url, judge, clock=Hands()) for _ in range(2))
    await store.migrate()
    await asyncio.gather(store.ping(), store.run(ledger.list_keys()))
    postgres.signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(2):
            for asked in (store.ping(), store.run(ledger.list_keys()), store.ping(), new.ping()):
                assert await refused(asked) == "The database cannot answer: it takes too long."
    finally:
        postgres.signal(signal.SIGCONT)
    for each in (store, new):
        await each.ping()
        await each.close()


async def test_a_server_that_became_read_only_is_left_for_the_next(store: Store, url: str, other: Other) -> None:
    minted, _ = await new_key(store)
    name = url.rpartition("/")[2]
    await other(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await other("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'conch'")
    assert "read-only transaction" in await refused(store.teller.take(minted.digest))
    await other("SET transaction_read_only = off")
    await other(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    assert (await take(store, minted))[0].granted


async def test_a_database_that_cannot_be_had_is_told_without_secrets(url: str) -> None:
    server, _, name = url.rpartition("/")
    with_password = server.replace("conch@", "conch:hush@")
    for wrong, reason in (
        (f"{with_password}/none", 'database "none" does not exist'),
        (f"postgresql://conch:hush@127.0.0.1:9/{name}", "Connection refused"),
        (f"{with_password.replace('conch', 'nobody')}/{name}", 'role "nobody" does not exist'),
    ):
        store = open_store(wrong, judge)
        assert await refused(store.migrate()) == f"The database cannot answer: {reason}."
        await store.close()


@pytest.mark.parametrize("rest", ["hush@127.0.0.1:no", "hush@[::1", "hu#sh@127.0.0.1", "hush@127.0.0.1/x?sslmode=hu"])
async def test_a_url_that_cannot_be_read_is_told_without_secrets(rest: str) -> None:
    store = open_store(f"postgresql://conch:{rest}", judge)
    with pytest.raises(ValueError, match="The store URL cannot be read") as refusal:
        await store.migrate()
    assert "hu" not in str(refusal.value)
    await store.close()


# Statements and transactions


async def test_a_broken_rule_is_raised_as_it_is_and_undone(store: Store) -> None:
    def twice() -> Script[None]:
        yield Statement("INSERT INTO secrets VALUES ('a', 'x')")
        yield Statement("INSERT INTO secrets VALUES ('a', 'y')")

    ((server,),) = await store.run(run("SELECT pg_backend_pid()"))
    with pytest.raises(asyncpg.UniqueViolationError):
        await store.run(twice())
    assert await store.run(run("SELECT * FROM secrets")) == []
    assert await store.run(run("SELECT pg_backend_pid()")) == [(server,)]


async def test_it_waits_for_a_row_without_holding_the_loop(store: Store, other: Other) -> None:
    minted, _ = await new_key(store)
    await other("BEGIN")
    await other("UPDATE buckets SET at = at")
    early = store.teller.take(minted.digest)
    await blocked(other)
    late = store.teller.take(minted.digest)
    assert not early.done()
    await other("ROLLBACK")
    assert [(await early).remaining, (await late).remaining] == [4, 3]


async def test_it_does_not_wait_for_ever(url: str, monkeypatch: pytest.MonkeyPatch, store: Store, other: Other) -> None:
    monkeypatch.setattr(postgres, "ASKING", 0.2)
    minted, _ = await new_key(store)
    hasty = open_store(url, judge, clock=Hands())
    await other("BEGIN")
    await other("UPDATE buckets SET at = at")
    assert await refused(hasty.teller.take(minted.digest))
    await other("ROLLBACK")
    assert (await take(hasty, minted))[0].remaining == 4
    await hasty.close()


async def test_a_deadlock_is_tried_again_by_the_teller_and_told_by_run(store: Store, url: str, other: Other) -> None:
    (first, one), (second, two) = await new_key(store), await new_key(store)
    low, high = sorted([one.bucket, two.bucket])
    name = url.rpartition("/")[2]
    await other(f"ALTER DATABASE {name} SET deadlock_timeout = '10ms'")  # for connections from now on
    await other("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'conch'")

    def crossing() -> Script[None]:
        for bucket in (low, high):
            yield Statement("UPDATE buckets SET at = at WHERE id = $1", (bucket,))

    async def crossed(asked: Callable[[], asyncio.Future[Any]]) -> Any:
        await other("BEGIN")
        await other("UPDATE buckets SET at = at WHERE id = $1", high)
        asking = asked()
        await blocked(other)
        await other("UPDATE buckets SET at = at WHERE id = $1", low)
        await other("COMMIT")
        return await asking

    takes = await crossed(lambda: asyncio.gather(*(store.teller.take(each.digest) for each in (first, second))))
    assert [each.remaining for each in takes] == [4, 4]
    with pytest.raises(Contended):
        await crossed(lambda: asyncio.ensure_future(store.run(crossing())))
    await store.run(crossing())


async def test_a_process_that_stalls_in_a_transaction_loses_it(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "ABANDONED", 0.2)
    minted, _ = await new_key(store)
    stalled, go_on = threading.Event(), threading.Event()

    def stalling() -> Script[None]:
        yield Statement("UPDATE buckets SET tokens = 0")
        stalled.set()
        go_on.wait()
        yield Statement("UPDATE buckets SET tokens = 0")

    async def another() -> None:
        store = open_store(url, judge)
        await refused(store.run(stalling()))
        await store.close()

    process = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(another())))
    await asyncio.to_thread(stalled.wait)
    assert (await take(store, minted))[0].remaining == 4
    go_on.set()
    await process


async def test_a_changed_column_is_no_trouble(store: Store, other: Other) -> None:
    minted, _ = await new_key(store)
    await take(store, minted)
    await other("ALTER TABLE buckets ALTER COLUMN granted TYPE numeric")
    assert (await take(store, minted))[0].remaining == 3


async def test_the_clock_is_that_of_the_server(url: str) -> None:
    clock = Clock()
    clock.set(START)
    store = open_store(url, judge, clock=clock)
    await store.migrate()
    ((now,),) = await store.run(run(postgres.SERVER_TIME))
    assert abs(clock() - now) < SECOND
    await store.close()


@pytest.mark.parametrize("concurrency", [None, 1000])
async def test_stores_together_are_exact_and_never_deadlock(
    url: str, store: Store, postgres: Postgres, concurrency: int | None
) -> None:
    for number in range(5):
        await store.run(ledger.create_workspace(f"w{number}", "1/100", by="test", now=START))
    keys = [(await new_key(store, f"w{number % 5}"))[0] for number in range(20)]
    stores = [open_store(url, lambda *_: Budget(1, 100, concurrency), clock=Hands()) for _ in range(2)]

    postgres.log.clear()

    async def client(store: Store, seed: int) -> int:
        """Whole requests with keys at random; how many ran."""
        choose, ran = Random(seed), 0
        for _ in range(200):
            took = await store.teller.take(choose.choice(keys).digest)
            if took.granted and took.authority is not None:
                ran += 1
                id, workspace = f"req_{seed}_{ran}", took.authority.workspace.name
                await store.teller.hold(Hold(id, store.teller.process, workspace, 0))
                await store.teller.settle(Closing(id, held=True))
                if concurrency is not None:
                    store.teller.leave(workspace)
        return ran

    granted = await asyncio.gather(
        *(client(each, 8 * turn + seed) for turn, each in enumerate(stores) for seed in range(8))
    )
    assert sum(granted) == 20 * 100
    for each in stores:
        await each.close()
    assert not [line for line in postgres.log if "deadlock" in line]


# A commit whose acknowledgement comes too late

SLOW = """
CREATE FUNCTION slow() RETURNS trigger AS $$ BEGIN PERFORM pg_sleep(0.4); RETURN NEW; END $$ LANGUAGE plpgsql
"""
LATE = (
    "CREATE TRIGGER early BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION slow()",
    (
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON {} DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION slow()"
    ),
)


async def test_what_a_late_commit_made_is_given_back(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teller gives up after 0.6 s, in the middle of a COMMIT that then succeeds."""
    monkeypatch.setattr(postgres, "ASKING", 0.6)

    def plan(authority: Authority, now: int) -> Budget:
        return Budget(60, 60, 1)

    store = open_store(url, plan, clock=Hands())
    await store.migrate()
    await store.run(ledger.create_workspace("acme", "any", by="test", now=START))
    minted, _ = await new_key(store)
    await store.run(accounts.grant("acme", 100, by="test", now=START))
    await store.run(run(SLOW))
    for table in ("holds", "claims", "slots"):
        for trigger in LATE:
            await store.run(run(trigger.format(table)))
    teller = store.teller
    assert "too long" in await refused(teller.hold(Hold("req_1", teller.process, "acme", 5)))
    await teller.release(Closing("req_1", held=True))
    assert "too long" in await refused(teller.claim(Claim(b"key", "req_2", teller.process, b"body", START + SECOND)))
    await teller.release(Closing("req_2", claim=b"key"))
    assert "too long" in await refused(teller.take(minted.digest))
    await teller.ping()
    assert not await store.run(run("SELECT id FROM holds"))
    assert not await store.run(run("SELECT id FROM claims"))
    assert await store.run(run("SELECT taken, running FROM slots CROSS JOIN places")) == [(0, 0)]
    assert (await store.run(accounts.account("acme", now=START))).credits == 100
    await store.close()
