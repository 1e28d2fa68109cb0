"""kill -9 under load, a small version of `make crash`, on both stores; and that its books show what is wrong."""

from dataclasses import replace
from pathlib import Path

import pytest

from scripts.crash import Dead, Plan, crash
from scripts.load import DONE, FREE, KEYED, PRICED, Ask, Seen
from scripts.reconcile import Extras, Ledger, Used, extras, faults
from scripts.triton import Triton
from store import Store
from store.processes import SILENCE, beat
from store.teller import Clock

BODY = b'data: {"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n' + DONE
COST = 3 * 1_000 + 2 * 4_000


async def later(store: Store, dead: Dead) -> None:
    """The living process beats at a time at which those that died are taken for dead."""
    await store.run(beat([(await dead.living(), {})], Clock()() + SILENCE))
    assert not await dead.hold()


async def test_what_clients_saw_complete_survives_kill_9(url: str, triton: Triton, tmp_path: Path) -> None:
    outcome = await crash(triton.url, url, tmp_path, Plan(kills=2, seed=1, life=(0.5, 1.5)), later)
    assert outcome.faults == []
    assert sum(seen.broken for seen in outcome.seen) > 0, "a kill that hits nobody shows nothing"
    assert sum(seen.replayed for seen in outcome.seen) > 0
    assert sum(seen.complete and not seen.replayed for seen in outcome.seen) > 100


def ask(key: str | None = None) -> Ask:
    return Ask(b"{}", key)


def seen(number: int, life: int = 1, key: str | None = None, **how: object) -> Seen:
    """A stream of request `number` that was seen complete, or as `how` says."""
    whole = Seen(ask(key), life, id=f"req_{life:016x}{number:08x}", status=200, body=BODY, streamed=True, whole=True)
    return replace(whole, **how)  # type: ignore[arg-type]


def books(*of: Seen, open: int = 0, spent: int | None = None) -> Ledger:
    """The ledger in which these are, as they should be."""
    usage = [Used(each.id, KEYED if each.ask.key else PRICED, 3, 2, COST, int(not each.left)) for each in of]
    cost = sum(used.cost for used in usage)
    return Ledger(
        {used.id: used for used in usage},
        [],
        [each.id for each in of if each.ask.key and not each.left],
        [("acme", 1_000_000 - (cost if spent is None else spent), 1_000_000, cost)],
        {"holds": open},
    )


FIRST, SECOND, KEPT = seen(1), seen(2), seen(3, key="k")
CUT = seen(4, whole=False, body=b"data: {}\n\n")
CUT_IN_ANOTHER_LIFE = seen(5, life=2, whole=False, body=b"")
HEADLESS = replace(seen(1, whole=False, body=b""), id="", status=0)
LEFT = seen(6, whole=False, left=True, body=b"data: {}\n\n")
REPLAY = seen(7, key="k", replayed=True)
REFUSED = seen(8, status=409, body=b'{"error":{"code":"idempotency_in_progress"}}')
UNTOLD = seen(9, body=b'data: {}\n\ndata: {"error":{"code":"store_unavailable"}}\n\n')


@pytest.mark.parametrize(
    ("ledger", "clients"),
    [
        (books(FIRST, SECOND), [FIRST, SECOND]),
        (books(FIRST, KEPT), [FIRST, KEPT, REPLAY, REFUSED]),
        (books(FIRST), [FIRST, CUT]),
        (books(FIRST, CUT), [FIRST, CUT]),
        (books(FIRST, SECOND), [FIRST, HEADLESS]),
        (books(FIRST, LEFT), [FIRST, LEFT]),
        (books(FIRST), [FIRST, LEFT]),
        (books(FIRST), [FIRST, UNTOLD]),
        (books(FIRST, UNTOLD), [FIRST, UNTOLD]),
    ],
)
def test_books_that_are_right(ledger: Ledger, clients: list[Seen]) -> None:
    assert faults(ledger, clients) == []


@pytest.mark.parametrize(
    ("ledger", "clients", "told"),
    [
        (books(FIRST), [FIRST, SECOND], "was seen complete and is not in the ledger"),
        (books(FIRST, SECOND), [FIRST], "1 requests of life 1 are in the ledger that nobody saw, and only 0"),
        (books(FIRST, SECOND), [FIRST, CUT_IN_ANOTHER_LIFE], "1 requests of life 1"),
        (books(FIRST, SECOND), [FIRST, CUT, REFUSED], "1 requests of life 1"),
        (books(FIRST, SECOND), [FIRST, replace(HEADLESS, life=2)], "1 requests of life 1"),
        (books(LEFT), [replace(LEFT, left=False)], "as one that its client left, and none did"),
        (books(LEFT), [replace(LEFT, whole=True, body=BODY)], "is in the ledger as one that was left"),
        (books(REFUSED), [REFUSED], "was answered 409 and is in the ledger"),
        (books(KEPT, REPLAY), [KEPT, REPLAY], "was a replay and is in the ledger"),
        (books(KEPT)._replace(owners=[]), [KEPT], "is in the ledger and is not its key's answer"),
        (books(KEPT)._replace(usage={}, money=[]), [KEPT], "is its key's answer and is not in the ledger"),
        (books(KEPT), [KEPT, replace(REPLAY, body=b"other" + BODY)], "with other bytes than before"),
        (books(KEPT), [replace(KEPT, body=b"data: x", whole=False), REPLAY], "seen in part, and replayed"),
        (books(FIRST), [replace(FIRST, body=BODY.replace(b"3", b"4"))], "with other counts than in its answer"),
        (books(FIRST, spent=0), [FIRST], "acme has 1000000, not 1000000 granted - 11000 spent"),
        (books(FIRST)._replace(twice=[FIRST.id]), [FIRST], "is in the ledger more than once"),
        (books(FIRST, open=1), [FIRST], "1 holds are left"),
        (books(), [replace(CUT, hung=True, seconds=25.0)], "got no answer in 25 s"),
    ],
)
def test_books_that_are_wrong(ledger: Ledger, clients: list[Seen], told: str) -> None:
    assert any(told in fault for fault in faults(ledger, clients)), faults(ledger, clients)


def test_a_free_model_costs_nothing() -> None:
    ledger = books(FIRST)
    free = ledger.usage[FIRST.id]._replace(model=FREE)
    assert "cost 11000, not 0" in faults(ledger._replace(usage={FIRST.id: free}), [FIRST])[0]


def test_what_is_more_than_was_seen() -> None:
    assert extras(books(FIRST, CUT, LEFT), [FIRST, CUT, LEFT]) == Extras(left=1, cut_off=1)
