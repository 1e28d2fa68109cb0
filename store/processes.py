"""Processes: each has a row and a heartbeat; what one that has fallen silent held is given back."""

from collections.abc import Sequence

from store import accounts, claims
from store.buckets import LEAVE
from store.script import Script, Statement

BEAT = 10.0
"""Seconds between two heartbeats."""
SILENCE = 45_000_000
"""µs after which a process is taken for dead."""

SWEEP = 100
"""Expired idempotency keys that go with a heartbeat."""

HOLDERS = (
    "SELECT process FROM holds UNION SELECT process FROM slots UNION SELECT process FROM sightings "
    "UNION SELECT process FROM claims WHERE state = 'running'"
)
WEBHOOKS = Statement("SELECT id FROM webhooks WHERE disabled_at IS NULL LIMIT 1")


def beat(asks: Sequence[tuple[str, dict[str, int]]], now: int) -> Script[list[bool]]:
    """The process lives, and used the keys of these ids at these times; those that do not live lose what they hold.

    Answers whether there is a webhook, for which somebody is to look.
    `now` is the wall's time of this moment: clocks that were set at the start of a process may differ by now.
    """
    for process, used in asks:
        yield Statement(
            "INSERT INTO processes (id, started_at, seen_at) VALUES ($1, CAST($2 AS bigint), CAST($2 AS bigint)) "
            "ON CONFLICT (id) DO UPDATE SET seen_at = CAST($2 AS bigint)",
            (process, now),
        )
        for key, at in sorted(used.items()):
            yield Statement("UPDATE keys SET last_used_at = CAST($2 AS bigint) WHERE id = $1", (key, at))
    yield claims.sweep(now, SWEEP)
    yield Statement("DELETE FROM processes WHERE seen_at <= CAST($1 AS bigint)", (now - SILENCE,))
    dead = yield Statement(
        f"SELECT process FROM ({HOLDERS}) AS holders WHERE process NOT IN (SELECT id FROM processes) ORDER BY process"
    )
    for (process,) in dead:
        yield from _reap(process, now)
    listening = bool((yield WEBHOOKS))
    return [listening for _ in asks]


def touch(asks: Sequence[str], now: int) -> Script[list[None]]:
    """Writes, as no read can tell whether the store takes that: a µs more, since SQLite does not write what is so."""
    for process in asks:
        yield Statement("UPDATE processes SET started_at = started_at + 1 WHERE id = $1", (process,))
    return [None for _ in asks]


def leave(asks: Sequence[str], now: int) -> Script[list[None]]:
    """These processes end: they lose what they still hold."""
    for process in asks:
        yield from _reap(process, now)
        yield Statement("DELETE FROM processes WHERE id = $1", (process,))
    return [None for _ in asks]


def _reap(process: str, now: int) -> Script[None]:
    yield from accounts.give_back(process, now)
    yield Statement("DELETE FROM claims WHERE process = $1 AND state = 'running'", (process,))
    yield Statement("DELETE FROM sightings WHERE process = $1", (process,))
    places = yield Statement("DELETE FROM slots WHERE process = $1 RETURNING workspace, taken", (process,))
    for workspace, taken in sorted(tuple(place) for place in places):
        yield Statement(LEAVE, (workspace, taken))
