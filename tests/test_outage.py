"""Two gateways on a PostgreSQL that stops, crashes or hangs under load, and what they admit of one key's rate."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from scripts import reconcile
from scripts.gateways import Process, new_key, open_shop, settings
from scripts.load import FREE, PRICED, UNTOLD, Ask, Client, Load, Seen, Target, choose
from scripts.triton import Triton
from store import Store
from store.buckets import TOKEN
from store.script import Script, Statement
from tests.postgres_fixture import Postgres

BOUND = 16.0
"""Seconds for which a request may wait in vain: for a transaction (5 s), then for its settlement (10 s)."""
OPEN = '\n[store]\nwhen_down = "open"\n'
LIMIT = 50


class Shop(NamedTuple):
    """Gateways that share a store, which is ours too."""

    store: Store
    secret: str
    targets: list[Target]


@asynccontextmanager
async def shop(url: str, triton: Triton, folder: Path, extra: str = "") -> AsyncIterator[Shop]:
    """Two gateways, which must end cleanly."""
    file, log = folder / "conch.toml", list[str]()
    file.write_text(settings(triton.url, extra))
    async with AsyncExitStack() as stack:
        store, secret = await open_shop(url)
        stack.push_async_callback(store.close)
        targets = [Target(), Target()]
        processes = [await Process.start(file, url, target, log) for target in targets]
        for process in processes:
            stack.push_async_callback(process.kill)
        yield Shop(store, secret, targets)
        assert [await process.stop() for process in processes] == [0, 0], "".join(log)


async def books(store: Store, enough: Callable[[reconcile.Ledger], bool]) -> reconcile.Ledger:
    """The ledger, as soon as it says so: what is owed to it comes when it is back."""
    async with asyncio.timeout(10):
        while not enough(ledger := await store.run(reconcile.read())):  # noqa: ASYNC110 - a database tells no event
            await asyncio.sleep(0.05)
    return ledger


def whole(count: int, targets: Sequence[Target]) -> Callable[[Sequence[Seen]], bool]:
    """Whether so many requests, on each gateway, were answered to their end and paid for."""

    def enough(seen: Sequence[Seen]) -> bool:
        complete = Counter(each.life for each in seen if each.complete and not each.replayed)
        return all(complete[target.life] >= count for target in targets)

    return enough


def refused(count: int, targets: Sequence[Target]) -> Callable[[Sequence[Seen]], bool]:
    """Whether so many requests, on each gateway, were told that the store is away."""

    def enough(seen: Sequence[Seen]) -> bool:
        told = Counter(each.life for each in seen if each.status == 503)
        return all(told[target.life] >= count for target in targets)

    return enough


async def outage(postgres: Postgres, how: signal.Signals, load: Load, targets: list[Target], seconds: float) -> None:
    """Under load, the server goes away for some seconds and comes back; then all is well again, and nobody did it."""
    await load.until(whole(50, targets))
    if how is signal.SIGSTOP:
        postgres.signal(how)
    else:
        await asyncio.to_thread(postgres.stop, how)
    try:
        await asyncio.gather(load.until(refused(5, targets)), asyncio.sleep(seconds))
    finally:
        if how is signal.SIGSTOP:
            postgres.signal(signal.SIGCONT)
        else:
            postgres.start()
    await load.until(whole(50, targets))


async def test_postgresql_goes_and_comes_back_under_load(postgres: Postgres, triton: Triton, tmp_path: Path) -> None:
    async with shop(postgres.database(), triton, tmp_path) as (store, secret, targets):
        load = Load(targets, secret, choose([PRICED, FREE], keyed=0.3), clients=24, seed=7)
        try:
            await outage(postgres, signal.SIGINT, load, targets, 2)
            await outage(postgres, signal.SIGQUIT, load, targets, 2)
            await outage(postgres, signal.SIGSTOP, load, targets, 13)
            await load.stop()
            again = await load.repeat_all()
        finally:
            await load.abort()
        ledger = await books(store, lambda ledger: not any(ledger.open.values()))
    assert reconcile.faults(ledger, load.seen + again) == []
    assert all(each.complete for each in again), "no key is stuck"
    assert max(each.seconds for each in load.seen) < BOUND
    failed = [each for each in load.seen if not each.complete and not each.left]
    assert Counter(each.code for each in failed).keys() <= {UNTOLD, "idempotency_in_progress"}
    assert all(each.whole for each in failed), "whoever asks is told"
    assert all(each.retry_after for each in failed if each.status != 200)
    assert {each.status for each in failed if each.code == UNTOLD} == {200, 503}, "streams end with an error frame"


def ask(model: str, *pieces: str, key: str | None = None, stream: bool = False) -> Ask:
    content = "script: " + json.dumps({"pieces": pieces})
    asked = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 32, "stream": stream}
    if stream:
        asked["stream_options"] = {"include_usage": True}
    return Ask(json.dumps(asked).encode(), key)


async def each(client: Client, *asks: Ask) -> list[Seen]:
    """What a client sees, one request after the other."""
    answers = [await client.ask(ask) for ask in asks]
    assert None not in answers
    return [answer for answer in answers if answer is not None]


async def test_who_was_seen_within_a_minute_passes_where_that_is_wanted(
    postgres: Postgres, triton: Triton, tmp_path: Path
) -> None:
    async with shop(postgres.database(), triton, tmp_path, OPEN) as (store, secret, targets):
        known = Client(targets[0], secret)
        strangers = [Client(targets[0], await new_key(store)), Client(targets[1], secret)]
        seen = await each(known, ask(PRICED, "a"), ask(FREE, "a"))
        assert [answer.status for answer in seen] == [200, 200]
        await asyncio.to_thread(postgres.stop)
        try:
            free = await each(known, ask(FREE, "b"), ask(FREE, "b", "c", stream=True))
            assert all(answer.complete for answer in free)
            others = await each(known, ask(PRICED, "b"), ask(PRICED, "b", stream=True), ask(FREE, "b", key="k"))
            for stranger in strangers:
                others += await each(stranger, ask(FREE, "b"))
            for answer in others:
                assert (answer.status, answer.code, answer.retry_after) == (503, UNTOLD, True)
        finally:
            postgres.start()
        ledger = await books(store, lambda ledger: len(ledger.usage) >= 4)
        for client in (known, *strangers):
            seen += await each(client, ask(PRICED, "d"), ask(FREE, "d"))
        ledger = await books(store, lambda ledger: len(ledger.usage) >= 10 and not any(ledger.open.values()))
        for client in (known, *strangers):
            client.close()
    assert {answer.status for answer in seen} == {200}
    assert reconcile.faults(ledger, [*seen, *free, *others]) == []
    assert len(ledger.usage) == 10


async def test_two_gateways_admit_what_one_bucket_holds(url: str, triton: Triton, tmp_path: Path) -> None:
    """200 at once with a key of 50 per minute: every part of a token that was there, or came, is accounted for."""
    async with shop(url, triton, tmp_path) as (store, _, targets):
        secret = await new_key(store, limit=LIMIT)
        clients = [Client(targets[number % 2], secret) for number in range(200)]
        first = await each(clients[0], *[ask(FREE, "a")] * 10)  # so that the bucket cannot fill up meanwhile
        assert {answer.status for answer in first} == {200}
        tokens, begun = await store.run(_bucket())
        answers = await asyncio.gather(*(client.ask(ask(FREE, "a")) for client in clients))
        left, ended = await store.run(_bucket())
        for client in clients:
            client.close()
    statuses = Counter(answer.status for answer in answers if answer is not None)
    assert statuses.keys() == {200, 429}
    assert tokens + (ended - begun) * LIMIT - statuses[200] * TOKEN == left
    assert statuses.total() == 200
    assert LIMIT - 10 <= statuses[200] <= LIMIT - 10 + 1 + (ended - begun) * LIMIT // TOKEN


def _bucket() -> Script[Any]:
    """Of the key of this limit: parts of a token that are left, and since when."""
    sql = "SELECT tokens, at FROM buckets WHERE id = (SELECT bucket FROM keys WHERE per_minute = CAST($1 AS bigint))"
    return (yield Statement(sql, (LIMIT,)))[0]
