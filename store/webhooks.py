"""Webhooks and their outbox: endpoints, and a row for each event that is to reach one. Scripts, each beside its SQL.

A delivery is claimed by moving its `due_at` behind a lease: of any number of processes one sends it, and when that one
dies, another after the lease. Its `attempts` tell a sender that came too late from the one that has it now.
"""

import secrets
from collections.abc import Collection

import msgspec
from msgspec import UNSET, UnsetType

from store.ledger import event, no_workspace
from store.processes import WEBHOOKS
from store.records import Conflict, NotFound
from store.script import Row, Script, Statement, identify

SWEEP = 100
"""Old deliveries that one turn deletes at most."""

WEBHOOK = "id, workspace, url, events, description, secret, old_secret, old_until, created_at, disabled_at, reason"
DELIVERY = "id, webhook, event, type, body, state, created_at, since, due_at, attempts, attempted_at, status, error"
GONE = "its webhook was disabled"


class Webhook(msgspec.Struct, frozen=True):
    """Who is told of `events`: those of a workspace or, without one, of all and of the gateway itself.

    Until `old_until`, what is sent is signed with the `old_secret` too. `reason`: why it was disabled.
    """

    id: str
    workspace: str | None
    url: str
    events: list[str]
    description: str
    secret: str
    old_secret: str | None
    old_until: int | None
    created_at: int
    disabled_at: int | None
    reason: str | None


class Delivery(msgspec.Struct, frozen=True):
    """An event on its way to a webhook. `state`: pending (tried again at `due_at`), delivered, or dead: given up.

    `since` is when it was first to be sent, or was to be sent again; `status` that of the last answer, if there was
    one; `error` one sentence.
    """

    id: str
    webhook: str
    event: str
    type: str
    body: str
    state: str
    created_at: int
    since: int
    due_at: int
    attempts: int
    attempted_at: int | None
    status: int | None
    error: str | None


class Due(msgspec.Struct, frozen=True):
    """A delivery that is this process's to send now, and where to."""

    delivery: Delivery
    webhook: Webhook


class Verdict(msgspec.Struct, frozen=True):
    """What became of an attempt: `again_at` None gives up; `gone`: the receiver wants nothing more of anything."""

    delivered: bool
    status: int | None
    error: str | None
    again_at: int | None = None
    gone: bool = False


def mint() -> str:
    """A secret of 256 random bits."""
    return f"whsec_{secrets.token_hex(32)}"


def _read(row: Row) -> Webhook:
    return Webhook(*(*row[:3], msgspec.json.decode(row[3]), *row[4:11]))


def _events(events: Collection[str]) -> str:
    return msgspec.json.encode(sorted(set(events))).decode()


def takes(type: str, subject: str) -> str:
    """A condition: somebody is told of events of this type, which concern the workspace in the column `subject`."""
    return (
        "EXISTS (SELECT 1 FROM webhooks AS w WHERE w.disabled_at IS NULL "
        f"AND (w.workspace IS NULL OR w.workspace = {subject}) AND w.events LIKE '%\"{type}\"%')"
    )


# Endpoints ----------------------------------------------------------------------------------------


def create(
    secret: str, workspace: str | None, url: str, events: Collection[str], description: str, *, by: str, now: int
) -> Script[Webhook]:
    """Raises NotFound for a workspace that is not there."""
    id = identify("wh", now)
    rows = yield Statement(
        f"INSERT INTO webhooks ({WEBHOOK}) SELECT $1, CAST($2 AS text), $3, $4, $5, $6, NULL, NULL, "
        "CAST($7 AS bigint), NULL, NULL WHERE CAST($2 AS text) IS NULL "
        f"OR EXISTS (SELECT 1 FROM workspaces AS w WHERE w.name = CAST($2 AS text)) RETURNING {WEBHOOK}",
        (id, workspace, url, _events(events), description, secret, now),
    )
    if not rows:
        raise no_workspace(str(workspace))
    yield event("webhook.create", id, {"workspace": workspace, "events": sorted(set(events))}, by, now)
    return _read(rows[0])


def change(
    id: str,
    *,
    url: str | UnsetType = UNSET,
    events: Collection[str] | UnsetType = UNSET,
    description: str | UnsetType = UNSET,
    enabled: bool | UnsetType = UNSET,
    by: str,
    now: int,
) -> Script[Webhook]:
    """Changes what is given. What is pending of one that is disabled is given up. Raises NotFound."""
    rows = yield Statement(
        "UPDATE webhooks SET url = COALESCE(CAST($2 AS text), url), events = COALESCE(CAST($3 AS text), events), "
        "description = COALESCE(CAST($4 AS text), description), "
        "reason = CASE WHEN CAST($5 AS bigint) IS NULL THEN reason ELSE NULL END, "
        "disabled_at = CASE WHEN CAST($5 AS bigint) = 1 THEN NULL WHEN CAST($5 AS bigint) = 0 "
        "THEN COALESCE(disabled_at, CAST($6 AS bigint)) ELSE disabled_at END "
        f"WHERE id = $1 RETURNING {WEBHOOK}",
        (
            id, url if url is not UNSET else None, _events(events) if events is not UNSET else None,
            description if description is not UNSET else None, int(enabled) if enabled is not UNSET else None, now,
        ),
    )  # fmt: skip
    if not rows:
        raise _unknown(id)
    if enabled is False:
        yield _give_up(id)
    given = {"events": events, "enabled": enabled, "description": description}
    details = {name: value for name, value in given.items() if value is not UNSET}
    yield event("webhook.set", id, details | ({"url": "changed"} if url is not UNSET else {}), by, now)
    return _read(rows[0])


def rotate(id: str, secret: str, *, grace: int, by: str, now: int) -> Script[Webhook]:
    """Another secret; for `grace` µs what is sent is signed with the old one too. Raises NotFound."""
    rows = yield Statement(
        "UPDATE webhooks SET old_secret = CASE WHEN CAST($3 AS bigint) > CAST($4 AS bigint) THEN secret ELSE NULL END, "
        f"old_until = CAST($3 AS bigint), secret = $2 WHERE id = $1 RETURNING {WEBHOOK}",
        (id, secret, now + grace, now),
    )
    if not rows:
        raise _unknown(id)
    yield event("webhook.rotate", id, {"old_until": now + grace}, by, now)
    return _read(rows[0])


def delete(id: str, *, by: str, now: int) -> Script[Webhook]:
    """With its deliveries. Raises NotFound."""
    yield Statement("DELETE FROM deliveries WHERE webhook = $1", (id,))
    rows = yield Statement(f"DELETE FROM webhooks WHERE id = $1 RETURNING {WEBHOOK}", (id,))
    if not rows:
        raise _unknown(id)
    yield event("webhook.delete", id, {"workspace": rows[0][1]}, by, now)
    return _read(rows[0])


def get(id: str) -> Script[Webhook]:
    """Raises NotFound."""
    rows = yield Statement(f"SELECT {WEBHOOK} FROM webhooks WHERE id = $1", (id,))
    if not rows:
        raise _unknown(id)
    return _read(rows[0])


def listed(workspace: str | None = None, *, after: str = "", limit: int = 100) -> Script[list[Webhook]]:
    """Of one workspace or all there are, oldest first, from the first one past the id `after`."""
    within, named = ("workspace = $3 AND", (workspace,)) if workspace is not None else ("", ())
    rows = yield Statement(
        f"SELECT {WEBHOOK} FROM webhooks WHERE {within} id > $1 ORDER BY id LIMIT CAST($2 AS bigint)",
        (after, limit, *named),
    )
    return [_read(row) for row in rows]


def _unknown(id: str) -> NotFound:
    return NotFound(f"There is no webhook {id!r}.")


# Deliveries ---------------------------------------------------------------------------------------


def put(type: str, workspace: str | None, id: str, body: str, now: int) -> Script[None]:
    """An event for everybody who is told of its type: of the workspace's own webhooks, and of those of all."""
    rows = yield Statement(
        "SELECT id, events FROM webhooks WHERE disabled_at IS NULL "
        "AND (workspace IS NULL OR workspace = CAST($1 AS text)) ORDER BY id",
        (workspace,),
    )
    for webhook, events in rows:
        if type in msgspec.json.decode(events):
            yield _insert(webhook, id, type, body, now, due_at=now, attempts=0)


def trial(webhook: str, type: str, id: str, body: str, *, lease: int, now: int) -> Script[Due]:
    """An event for one of them, which whoever asks sends now. Raises NotFound, or Conflict where it is disabled."""
    rows = yield _insert(webhook, id, type, body, now, due_at=now + lease, attempts=1)
    if not rows:
        raise _unknown(webhook)
    found = yield from get(webhook)
    if found.disabled_at is not None:
        raise Conflict(f"Webhook {webhook!r} is disabled: enable it first.")
    return Due(Delivery(*rows[0]), found)


def _insert(webhook: str, id: str, type: str, body: str, now: int, *, due_at: int, attempts: int) -> Statement:
    return Statement(
        f"INSERT INTO deliveries ({DELIVERY}) SELECT $1, id, $3, $4, $5, 'pending', CAST($6 AS bigint), "
        "CAST($6 AS bigint), CAST($7 AS bigint), CAST($8 AS bigint), NULL, NULL, NULL "
        f"FROM webhooks WHERE id = $2 RETURNING {DELIVERY}",
        (identify("dlv", now), webhook, id, type, body, now, due_at, attempts),
    )


def claim(now: int, *, lease: int, most: int) -> Script[list[Due]]:
    """At most so many of those that are due: nobody else gets them for `lease` µs."""
    rows = yield Statement(
        "UPDATE deliveries SET due_at = CAST($2 AS bigint), attempts = attempts + 1 WHERE id IN (SELECT id "
        "FROM deliveries WHERE state = 'pending' AND due_at <= CAST($1 AS bigint) ORDER BY due_at LIMIT "
        f"CAST($3 AS bigint)) AND state = 'pending' AND due_at <= CAST($1 AS bigint) RETURNING {DELIVERY}",
        (now, now + lease, most),
    )
    found = [Delivery(*row) for row in rows]
    known = {}
    for id in sorted({each.webhook for each in found}):
        known[id] = yield from get(id)
    return [Due(each, known[each.webhook]) for each in found]


def judge(delivery: Delivery, verdict: Verdict, *, now: int) -> Script[Delivery | None]:
    """Writes down what became of an attempt; None where somebody else has the delivery by now, or it is gone."""
    state = "delivered" if verdict.delivered else "pending" if verdict.again_at is not None else "dead"
    rows = yield Statement(
        "UPDATE deliveries SET state = $3, due_at = COALESCE(CAST($4 AS bigint), due_at), "
        "attempted_at = CAST($5 AS bigint), status = CAST($6 AS bigint), error = CAST($7 AS text) "
        "WHERE id = $1 AND state = 'pending' AND (attempts = CAST($2 AS bigint) OR CAST($8 AS bigint) = 1) "
        f"RETURNING {DELIVERY}",
        (
            delivery.id, delivery.attempts, state, verdict.again_at, now, verdict.status, verdict.error,
            int(verdict.delivered),
        ),
    )  # fmt: skip
    if verdict.gone and rows:
        disabled = yield Statement(
            "UPDATE webhooks SET disabled_at = CAST($2 AS bigint), reason = CAST($3 AS text) "
            "WHERE id = $1 AND disabled_at IS NULL RETURNING id",
            (delivery.webhook, now, verdict.error),
        )
        if disabled:
            yield _give_up(delivery.webhook)
            yield event("webhook.disable", delivery.webhook, {"reason": verdict.error}, "conch", now)
    return Delivery(*rows[0]) if rows else None


def again(id: str, *, by: str, now: int) -> Script[Delivery]:
    """Sends a delivery once more, from the start. Raises NotFound, or Conflict where it is pending or disabled."""
    rows = yield Statement(
        "UPDATE deliveries SET state = 'pending', since = CAST($2 AS bigint), due_at = CAST($2 AS bigint), "
        "attempts = 0 WHERE id = $1 AND state <> 'pending' "
        "AND EXISTS (SELECT 1 FROM webhooks AS w WHERE w.id = webhook AND w.disabled_at IS NULL) "
        f"RETURNING {DELIVERY}",
        (id, now),
    )
    if not rows:
        state = yield Statement("SELECT state FROM deliveries WHERE id = $1", (id,))
        if not state:
            raise NotFound(f"There is no delivery {id!r}.")
        pending = state[0][0] == "pending"
        why = "is on its way already" if pending else "is for a webhook that is disabled: enable it first"
        raise Conflict(f"Delivery {id!r} {why}.")
    yield event("webhook.resend", rows[0][1], {"delivery": id}, by, now)
    return Delivery(*rows[0])


def deliveries(
    webhook: str | None = None, state: str | None = None, *, before: str | None = None, limit: int = 100
) -> Script[list[Delivery]]:
    """Newest first, from the first one older than the id `before`."""
    asked = (("webhook = ?", webhook), ("state = ?", state), ("id < ?", before))
    given = [(sql, value) for sql, value in asked if value is not None]
    where = " AND ".join(sql.replace("?", f"${place}") for place, (sql, _) in enumerate(given, 2))
    rows = yield Statement(
        f"SELECT {DELIVERY} FROM deliveries {f'WHERE {where}' if where else ''} "
        "ORDER BY id DESC LIMIT CAST($1 AS bigint)",
        (limit, *[value for _, value in given]),
    )
    return [Delivery(*row) for row in rows]


def sweep(before: int) -> Statement:
    """Deletes some of those that ended and are from before that time."""
    return Statement(
        "DELETE FROM deliveries WHERE id IN (SELECT id FROM deliveries WHERE id < $1 AND state <> 'pending' "
        "ORDER BY id LIMIT CAST($2 AS bigint))",
        (f"dlv_{before:014x}", SWEEP),
    )


def ahead() -> Script[tuple[bool, int | None]]:
    """Whether there is any webhook to look for, and when the next delivery is due."""
    listening = yield WEBHOOKS
    ((due_at,),) = yield Statement("SELECT MIN(due_at) FROM deliveries WHERE state = 'pending'")
    return bool(listening), due_at


def _give_up(webhook: str) -> Statement:
    return Statement(
        "UPDATE deliveries SET state = 'dead', error = COALESCE(error, CAST($2 AS text)) "
        "WHERE webhook = $1 AND state = 'pending'",
        (webhook, f"It was given up: {GONE}."),
    )
