"""What webhooks are told of, and who sends it, in the store itself: on either database, with several stores on it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from config import NANO, Config
from handlers.ops.webhooks.events import describe
from store import Store, accounts, alerts, ledger, open_store, processes, webhooks
from store.alerts import Look, Turn
from store.records import Closing, Conflict, Event, Hold, Units, Usage
from store.webhooks import Delivery, Verdict, Webhook
from tests.stores import SECOND, START, Hands, judge

EVERY, LEASE, SOON, DAY = 10 * SECOND, 15 * SECOND, 7 * 86400 * SECOND, 86400 * SECOND
UP, DOWN = {"m": (True, "")}, {"m": (False, "Triton is away.")}


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
async def stores(url: str, clock: Hands) -> AsyncIterator[list[Store]]:
    """Three on one database, with the workspaces acme, which has ten dollars, and other, which never had any."""
    opened = [open_store(url, judge, clock=clock) for _ in range(3)]
    await opened[0].migrate()
    for name in ("acme", "other"):
        await opened[0].run(ledger.create_workspace(name, "60/60", by="test", now=START))
    await opened[0].run(accounts.grant("acme", 10 * NANO, by="test", now=START))
    yield opened
    for store in opened:
        await store.close()


async def turn(store: Store, now: int, views: dict[str, tuple[bool, str]] | None = None, most: int = 100) -> Turn:
    known = views or {}
    look = Look(
        store.teller.process, known, not known, EVERY, 5 * NANO, SOON, LEASE, most, 30 * DAY, describe(Config())
    )
    return await store.run(alerts.turn(look, now))


async def hook(store: Store, workspace: str | None = None, *events: str) -> Webhook:
    types = events or ("credits.low", "key.expiring", "deployment.down", "deployment.up")
    made = webhooks.create(
        webhooks.mint(), workspace, "https://example.com/x?token=private", types, "", by="test", now=START
    )
    return await store.run(made)


def told(turn: Turn) -> list[tuple[str, dict[str, Any]]]:
    """What is to be sent for the first time."""
    return [
        (due.delivery.type, json.loads(due.delivery.body)["data"]) for due in turn.due if due.delivery.attempts == 1
    ]


async def spend(store: Store, dollars: float, workspace: str = "acme", id: str = "r1") -> None:
    """By a request, held and then settled."""
    amount = int(dollars * NANO)
    await store.run(accounts.settle([Hold(id, "p", workspace, amount)], START))
    usage = Usage(START, workspace, "key", "m", Units(), amount)
    await store.run(accounts.settle([Closing(id, held=True, usage=usage)], START))


# Credits


async def test_a_low_balance_is_told_once_until_a_grant_lifts_it(stores: list[Store]) -> None:
    store = stores[0]
    await hook(store)
    assert told(await turn(store, START)) == []
    await spend(store, 6)
    low = {"workspace": "acme", "credits_usd": "4.00", "threshold_usd": "5.00", "topup_url": None}
    assert told(await turn(store, START + 1 * EVERY)) == [("credits.low", low)]
    await spend(store, 1, id="r2")
    assert told(await turn(store, START + 2 * EVERY)) == []
    await store.run(accounts.grant("acme", NANO, by="test", now=START))
    assert told(await turn(store, START + 3 * EVERY)) == [], "4 dollars are still low"
    await store.run(accounts.grant("acme", 2 * NANO, by="test", now=START))
    await spend(store, 2, id="r3")  # before anybody looked
    (again,) = told(await turn(store, START + 4 * EVERY))
    assert again == ("credits.low", low | {"credits_usd": "4.00"})


async def test_what_is_held_is_not_spent(stores: list[Store]) -> None:
    store = stores[0]
    await hook(store)
    await store.run(accounts.settle([Hold("r1", "p", "acme", 9 * NANO)], START))
    assert told(await turn(store, START)) == []


async def test_a_workspace_has_a_threshold_of_its_own(stores: list[Store]) -> None:
    store = stores[0]
    await hook(store)
    await store.run(ledger.set_workspace("acme", credits_low=11 * NANO, by="test", now=START))
    ((_, first),) = told(await turn(store, START))
    assert first["threshold_usd"] == "11.00"
    await store.run(ledger.set_workspace("acme", credits_low=3 * NANO, by="test", now=START))
    assert told(await turn(store, START + 1 * EVERY)) == []
    await spend(store, 8)
    ((_, second),) = told(await turn(store, START + 2 * EVERY))
    assert (second["credits_usd"], second["threshold_usd"]) == ("2.00", "3.00")
    await store.run(ledger.set_workspace("acme", credits_low=None, by="test", now=START))
    assert told(await turn(store, START + 3 * EVERY)) == [], "it has been told of less"


async def test_who_never_had_credits_does_not_lack_them(stores: list[Store]) -> None:
    await hook(stores[0], "other")
    assert told(await turn(stores[0], START)) == []


async def test_a_workspace_hears_of_itself_only_and_of_what_it_asked_for(stores: list[Store]) -> None:
    store = stores[0]
    mine, other, keys = await hook(store, "acme"), await hook(store, "other"), await hook(store, "acme", "key.expiring")
    every = await hook(store)
    await spend(store, 6)
    due = (await turn(store, START)).due
    assert {each.webhook.id for each in due} == {mine.id, every.id}
    assert len({each.delivery.event for each in due}) == 1, "one event, whoever hears of it"
    assert not {each.webhook.id for each in due} & {other.id, keys.id}


async def test_who_listens_later_hears_how_it_stands(stores: list[Store]) -> None:
    store = stores[0]
    await spend(store, 6)
    assert told(await turn(store, START)) == []
    await hook(store, "acme", "credits.low")
    assert len(told(await turn(store, START + EVERY))) == 1


# Keys


async def key(store: Store, lives: int, created: int = START, workspace: str = "acme") -> str:
    minted = ledger.mint()
    made = ledger.create_key(minted, workspace, name="ci", expires_at=created + lives, by="test", now=created)
    return (await store.run(made)).id


async def test_a_key_is_told_of_once_and_in_time(stores: list[Store]) -> None:
    store = stores[0]
    await hook(store)
    id = await key(store, 30 * DAY)
    for lives in (5 * DAY, 60 * DAY):
        await key(store, lives)
    assert told(await turn(store, START + 23 * DAY - 1)) == []
    ((type, data),) = told(await turn(store, START + 23 * DAY + EVERY))
    assert (type, data["id"], data["name"], data["workspace"]) == ("key.expiring", id, "ci", "acme")
    assert data["expires_at"] == START // SECOND + 30 * 86400
    assert "key" not in data
    assert told(await turn(store, START + 24 * DAY)) == []


async def test_a_key_that_is_revoked_rotated_or_over_is_not_told_of(stores: list[Store]) -> None:
    store = stores[0]
    await hook(store)
    revoked, rotated, _ = [await key(store, 30 * DAY) for _ in range(3)]
    await store.run(ledger.revoke_key(revoked, by="test", now=START + DAY))
    successor = await store.run(ledger.rotate_key(rotated, ledger.mint(), grace=DAY, by="test", now=START + DAY))
    assert told(await turn(store, START + 31 * DAY)) == []
    assert successor.expires_at == START + 30 * DAY
    assert told(await turn(store, START + 1)) == []


# Deployments


async def test_a_deployment_is_down_when_no_process_has_it(stores: list[Store]) -> None:
    one, two, _ = stores
    for store in (one, two):
        await store.teller.live()
    await hook(one)
    assert told(await turn(one, START, DOWN)) == [], "nobody has seen it up yet"
    assert told(await turn(two, START + 1 * EVERY, UP)) == [("deployment.up", {"id": "m"})]
    assert told(await turn(one, START + 2 * EVERY, DOWN)) == [], "the other has it"
    assert told(await turn(two, START + 3 * EVERY, DOWN)) == [
        ("deployment.down", {"id": "m", "reason": "Triton is away."})
    ]
    assert told(await turn(one, START + 4 * EVERY, DOWN)) == []
    assert told(await turn(one, START + 5 * EVERY, UP)) == [("deployment.up", {"id": "m"})]
    assert told(await turn(two, START + 6 * EVERY, UP)) == []


async def test_what_a_dead_process_saw_does_not_count(stores: list[Store]) -> None:
    one, two, _ = stores
    for store in (one, two):
        await store.teller.live()
    await hook(one)
    await turn(one, START, UP)
    await turn(two, START + EVERY, DOWN)
    later = START + processes.SILENCE
    await one.run(processes.beat([(two.teller.process, {})], later))
    assert told(await turn(two, later + EVERY, DOWN))[0][0] == "deployment.down"


async def test_a_process_that_ends_takes_its_view_along_and_nothing_is_told(stores: list[Store]) -> None:
    one, two, _ = stores
    for store in (one, two):
        await store.teller.live()
    await hook(one)
    await turn(one, START, UP)
    await one.run(processes.leave([one.teller.process], START))
    assert told(await turn(two, START + EVERY)) == []
    assert told(await turn(two, START + 2 * EVERY, DOWN))[0][0] == "deployment.down", "it was up when last seen"


# The outbox


async def test_several_at_once_tell_once_and_each_is_sent_by_one(stores: list[Store]) -> None:
    for _ in range(5):
        await hook(stores[0])
    await spend(stores[0], 6)
    turns = await asyncio.gather(*(turn(store, START, most=3) for store in stores))
    claimed = [due.delivery.id for each in turns for due in each.due]
    assert len(claimed) == len(set(claimed)) == 5
    assert len({due.delivery.event for each in turns for due in each.due}) == 1
    assert [each.listening for each in turns] == [True] * 3


async def test_after_its_lease_another_sends_it_and_the_first_comes_too_late(stores: list[Store]) -> None:
    one, two, _ = stores
    await hook(one)
    await spend(one, 6)
    (first,) = (await turn(one, START)).due
    assert (await turn(two, START + LEASE - 1)).due == []
    (second,) = (await turn(two, START + LEASE)).due
    assert (second.delivery.id, second.delivery.attempts) == (first.delivery.id, 2)
    assert first.delivery.body == second.delivery.body
    failed = Verdict(False, 500, "It answered with status 500.", again_at=START + 2 * LEASE)
    assert await one.run(webhooks.judge(first.delivery, failed, now=START)) is None
    told = await one.run(webhooks.judge(first.delivery, Verdict(True, 200, None), now=START))
    assert told is not None, "but what has arrived has arrived"
    assert told.state == "delivered"
    assert await two.run(webhooks.judge(second.delivery, failed, now=START)) is None


async def fails(store: Store, delivery: Delivery, **verdict: Any) -> Delivery:
    told = await store.run(webhooks.judge(delivery, Verdict(False, 500, "It failed.", **verdict), now=START))
    assert told is not None
    return told


async def test_what_is_given_up_is_listed_and_can_be_sent_again(stores: list[Store]) -> None:
    store = stores[0]
    await hook(store)
    await spend(store, 6)
    (due,) = (await turn(store, START)).due
    with pytest.raises(Conflict, match="on its way already"):
        await store.run(webhooks.again(due.delivery.id, by="test", now=START))
    await fails(store, due.delivery)
    (dead,) = await store.run(webhooks.deliveries(state="dead"))
    assert (dead.id, dead.status, dead.error) == (due.delivery.id, 500, "It failed.")
    await store.run(webhooks.again(dead.id, by="test", now=START + DAY))
    (sent,) = (await turn(store, START + DAY)).due
    assert (sent.delivery.event, sent.delivery.attempts, sent.delivery.since) == (dead.event, 1, START + DAY)


async def test_who_is_gone_is_disabled_and_what_was_pending_is_given_up(stores: list[Store]) -> None:
    store = stores[0]
    endpoint = await hook(store)
    await key(store, 30 * DAY)
    now = START + 24 * DAY
    await spend(store, 6)
    first, second = (await turn(store, now)).due
    await fails(store, first.delivery, gone=True)
    found = await store.run(webhooks.get(endpoint.id))
    assert (found.disabled_at, found.reason) == (START, "It failed.")
    assert {each.state for each in await store.run(webhooks.deliveries(endpoint.id))} == {"dead"}
    assert not (await turn(store, now + EVERY)).listening
    with pytest.raises(Conflict, match="disabled"):
        await store.run(webhooks.again(second.delivery.id, by="test", now=now))
    enabled = await store.run(webhooks.change(endpoint.id, enabled=True, by="test", now=now))
    assert (enabled.disabled_at, enabled.reason) == (None, None)
    await store.run(webhooks.again(second.delivery.id, by="test", now=now))
    assert len((await turn(store, now + 2 * EVERY)).due) == 1


async def test_old_ones_go_and_pending_ones_stay(stores: list[Store]) -> None:
    store = stores[0]
    await hook(store)
    await spend(store, 6)
    await key(store, 30 * DAY)
    (due,) = (await turn(store, START)).due
    await fails(store, due.delivery)
    await turn(store, START + 23 * DAY)
    await turn(store, START + 31 * DAY, most=0)
    (left,) = await store.run(webhooks.deliveries())
    assert (left.type, left.state) == ("key.expiring", "pending")


async def test_a_heartbeat_tells_whether_there_is_a_webhook(stores: list[Store]) -> None:
    rung: list[bool] = []
    teller = stores[0].teller
    teller.ring = lambda: rung.append(True)
    await teller.live()
    assert rung == []
    endpoint = await hook(stores[0])
    await teller.live()
    await asyncio.sleep(0)
    assert rung == [True]
    await stores[0].run(webhooks.change(endpoint.id, enabled=False, by="test", now=START))
    await teller.live()
    await asyncio.sleep(0)
    assert rung == [True]


async def test_the_audit_has_every_change_and_no_secret(stores: list[Store]) -> None:
    store = stores[0]
    endpoint = await hook(store)
    secret = webhooks.mint()
    rotated = await store.run(webhooks.rotate(endpoint.id, secret, grace=DAY, by="test", now=START))
    assert (rotated.secret, rotated.old_secret, rotated.old_until) == (secret, endpoint.secret, START + DAY)
    await store.run(webhooks.change(endpoint.id, url="https://example.com/y?token=private", by="test", now=START))
    await store.run(webhooks.delete(endpoint.id, by="test", now=START))
    events: list[Event] = await store.run(ledger.list_events())
    actions = {event.action for event in events if event.subject == endpoint.id}
    assert actions == {"webhook.create", "webhook.rotate", "webhook.set", "webhook.delete"}
    text = msgspec.json.encode(events)
    assert b"whsec_" not in text
    assert b"private" not in text
