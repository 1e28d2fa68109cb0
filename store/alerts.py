"""What webhooks tell of: balances that are low, keys that end soon, deployments that went and came back.

An alert is a row that says what was told: it is written in one transaction with its deliveries, so that of any number
of processes one tells, once. `Describe` writes the event.
"""

from collections.abc import Callable, Mapping

import msgspec

from store import webhooks
from store.accounts import BALANCE
from store.ledger import get_key
from store.records import Key
from store.script import Each, Script, Statement, identify
from store.webhooks import Due

MOST = 100
"""Keys that one look tells of."""

_low_at = "COALESCE(a.low_at, CAST($2 AS bigint))"

LOW = f"""
INSERT INTO alerts (type, subject, at, level)
SELECT 'credits.low', a.workspace, CAST($1 AS bigint), {_low_at} FROM accounts AS a
WHERE a.credits < {_low_at} AND {BALANCE} < {_low_at}
    AND EXISTS (SELECT 1 FROM grants AS g WHERE g.workspace = a.workspace)
    AND {webhooks.takes("credits.low", "a.workspace")}
ON CONFLICT (type, subject) DO UPDATE SET at = excluded.at, level = excluded.level WHERE alerts.level > excluded.level
RETURNING subject, level
"""
"""Who never had credits does not lack them; who has been told is told again for a lower threshold only."""

EXPIRING = f"""
INSERT INTO alerts (type, subject, at, level)
SELECT 'key.expiring', k.id, CAST($1 AS bigint), k.expires_at FROM keys AS k
WHERE k.expires_at > CAST($1 AS bigint) AND k.expires_at <= CAST($1 AS bigint) + CAST($2 AS bigint)
    AND k.created_at <= k.expires_at - CAST($2 AS bigint) AND k.revoked_at IS NULL
    AND NOT EXISTS (SELECT 1 FROM keys AS s WHERE s.rotated_from_id = k.id)
    AND NOT EXISTS (SELECT 1 FROM alerts AS t WHERE t.type = 'key.expiring' AND t.subject = k.id)
    AND {webhooks.takes("key.expiring", "k.workspace")}
ORDER BY k.expires_at LIMIT CAST($3 AS bigint)
ON CONFLICT (type, subject) DO NOTHING
RETURNING subject
"""
"""Not of a key that was made to live shorter than that, nor of one that has a successor."""

FIRST = """
INSERT INTO alerts (type, subject, at, level)
SELECT 'deployment', deployment, CAST($1 AS bigint), MAX(up) FROM sightings WHERE up IN (0, 1) GROUP BY deployment
ON CONFLICT (type, subject) DO NOTHING
"""
TURNED = """
UPDATE alerts SET at = CAST($1 AS bigint), level = 1 - level
WHERE type = 'deployment' AND level <> (SELECT MAX(s.up) FROM sightings AS s WHERE s.deployment = alerts.subject)
RETURNING subject, level
"""
"""A deployment is up as long as any process has it; where none has looked, nothing changes."""

SEE = Each(
    "INSERT INTO sightings (process, deployment, up, reason) VALUES {rows} ON CONFLICT (process, deployment) "
    "DO UPDATE SET up = excluded.up, reason = excluded.reason WHERE sightings.up <> excluded.up",
    "(?, ?, CAST(? AS bigint), ?)",
)


class Low(msgspec.Struct, frozen=True):
    """A workspace has less than its threshold, in nano-dollars; what is held is counted as its own still."""

    workspace: str
    balance: int
    threshold: int


class Turned(msgspec.Struct, frozen=True):
    """No process has a deployment any more, for a `reason`; or one has it again."""

    deployment: str
    up: bool
    reason: str


Found = Low | Key | Turned
Describe = Callable[[str, int, Found], tuple[str, str]]
"""Of an event's id, its time (µs) and what was found: the type and the body of the event."""


class Look(msgspec.Struct, frozen=True):
    """What one turn of a process is about; spans in µs, `low` in nano-dollars.

    `views`: what it knows of its deployments, and why one is not there; `forget`: it knew others before.
    """

    process: str
    views: Mapping[str, tuple[bool, str]]
    forget: bool
    every: int
    low: int
    soon: int
    lease: int
    most: int
    retention: int
    describe: Describe


class Turn(msgspec.Struct, frozen=True):
    """What there is to send now; whether there is anybody to look for; and when the next delivery is due."""

    due: list[Due]
    listening: bool
    due_at: int | None


def turn(look: Look, now: int) -> Script[Turn]:
    """Writes what this process sees, looks unless another has just done so, and claims what is to be sent."""
    looking = yield Statement(  # first: whoever has this row has the turn
        "INSERT INTO looks (name, at) VALUES ('alerts', CAST($1 AS bigint)) ON CONFLICT (name) "
        "DO UPDATE SET at = excluded.at WHERE looks.at <= CAST($2 AS bigint) OR looks.at > excluded.at RETURNING at",
        (now, now - look.every),
    )
    if look.forget:
        yield Statement("DELETE FROM sightings WHERE process = $1", (look.process,))
    yield from SEE([(look.process, id, int(up), reason) for id, (up, reason) in sorted(look.views.items())])
    if looking:
        yield from _balances(look, now)
        yield from _keys(look, now)
        yield from _deployments(look, now)
        yield webhooks.sweep(now - look.retention)
    due = (yield from webhooks.claim(now, lease=look.lease, most=look.most)) if look.most else []
    return Turn(due, *(yield from webhooks.ahead()))


def _balances(look: Look, now: int) -> Script[None]:
    for workspace, threshold in (yield Statement(LOW, (now, look.low))):
        ((balance,),) = yield Statement(
            f"SELECT CAST({BALANCE} AS bigint) FROM accounts AS a WHERE a.workspace = $1", (workspace,)
        )
        yield from _tell(look, Low(workspace, balance, threshold), workspace, now)


def _keys(look: Look, now: int) -> Script[None]:
    yield Statement("DELETE FROM alerts WHERE type = 'key.expiring' AND level <= CAST($1 AS bigint)", (now,))
    for (id,) in (yield Statement(EXPIRING, (now, look.soon, MOST))):
        key = yield from get_key(id)
        yield from _tell(look, key, key.workspace, now)


def _deployments(look: Look, now: int) -> Script[None]:
    yield Statement(FIRST, (now,))
    for deployment, up in (yield Statement(TURNED, (now,))):
        why = yield Statement(
            "SELECT reason FROM sightings WHERE deployment = $1 AND up = 0 ORDER BY process LIMIT 1", (deployment,)
        )
        reason = why[0][0] if why and not up else ""
        yield from _tell(look, Turned(deployment, bool(up), reason), None, now)


def _tell(look: Look, found: Found, workspace: str | None, now: int) -> Script[None]:
    id = identify("evt", now)
    type, body = look.describe(id, now, found)
    yield from webhooks.put(type, workspace, id, body, now)
