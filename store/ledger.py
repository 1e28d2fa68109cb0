"""Every question to the store and every change of it, each beside its SQL, the same for every database.

A function here is a script: a generator that yields Statements, is sent their rows, and returns its result;
a driver runs it as one transaction and rolls back what raised. A change writes first and reads after, so that
it holds its lock or row from the start, and adds its audit event in the same transaction.
"""

import hashlib
import re
import secrets
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from store.records import Authority, Budget, Conflict, Event, Key, NotFound, Take, Workspace

T = TypeVar("T")
Row: TypeAlias = Sequence[Any]


class Statement(NamedTuple):
    """SQL and the values of its $1, $2, …"""

    sql: str
    params: tuple[Any, ...] = ()


Script: TypeAlias = Generator[Statement, Sequence[Row], T]
Judge: TypeAlias = Callable[[Authority, int], Budget | None]

KEY = (
    "k.id, k.workspace, k.name, k.prefix, k.pipeline, k.per_minute, k.models, k.bucket, "
    "k.created_at, k.expires_at, k.revoked_at, k.rotated_from_id"
)
KEY_RETURNED = KEY.replace("k.", "")
WORKSPACE = "name, plan, ceiling, created_at"
EVENT = "id, at, actor, action, subject, details"


def _key(row: Row) -> Key:
    models = row[6] if row[6] is None else msgspec.json.decode(row[6])
    return Key(*(*row[:6], models, *row[7:12]))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _identify(kind: str, now: int) -> str:
    """A unique id; ids sort by the time they were made."""
    return f"{kind}_{now:014x}{secrets.token_hex(5)}"


# Tokens -------------------------------------------------------------------------------------------

TOKEN = 60_000_000
"""Parts of a token, as many as a minute has µs: a budget of b per minute refills b parts each µs, exactly."""

AUTHORITY = f"""
SELECT {KEY}, w.name, w.plan, w.ceiling, w.created_at
FROM keys AS k JOIN workspaces AS w ON w.name = k.workspace WHERE k.digest = $1
"""

_now, _capacity, _rate, _wanted = (f"CAST(${n} AS bigint)" for n in (2, 3, 4, 5))
_raised = f"CASE WHEN {_capacity} > capacity THEN {_capacity} - capacity ELSE 0 END"
_refilled = f"""CASE WHEN {_now} <= at THEN 0
    WHEN {_now} - at > {_capacity} / {_rate} THEN {_capacity} ELSE ({_now} - at) * {_rate} END"""
_grown = f"tokens + ({_raised}) + ({_refilled})"
_held = f"(CASE WHEN {_grown} > {_capacity} THEN {_capacity} ELSE {_grown} END)"
_cost = f"{_wanted} * {TOKEN}"

TAKE = f"""
UPDATE buckets SET
    granted = CASE WHEN {_held} >= {_cost} THEN {_wanted} ELSE {_held} / {TOKEN} END,
    tokens = CASE WHEN {_held} >= {_cost} THEN {_held} - {_cost} ELSE {_held} % {TOKEN} END,
    capacity = {_capacity},
    at = CASE WHEN {_now} > at THEN {_now} ELSE at END
WHERE id = $1 RETURNING granted, tokens, at
"""
"""A new bucket has capacity 0: its first take raises it to its budget, which fills it. Dividing before
multiplying keeps a long idle time within 64 bits. The repetition is the price of exactness: PostgreSQL's READ
COMMITTED looks again at the row that an UPDATE waited for, but not at a subquery."""


def take(judge: Judge, digests: Sequence[bytes], now: int) -> Script[list[Take]]:
    """One token for each of `digests`, answered in their order, those for one key as if one after the other.

    `judge` says what the authority, as it stands in this transaction, may use, or None to refuse it.
    """
    answers: dict[bytes, Iterator[Take]] = {}
    admitted: list[tuple[str, bytes, Authority, Budget]] = []
    waiting = Counter(digests)
    for digest in waiting:
        authority = None
        for row in (yield Statement(AUTHORITY, (digest,))):
            authority = Authority(_key(row), Workspace(*row[12:]))
        budget = authority and judge(authority, now)
        if authority and budget:
            admitted.append((authority.key.bucket, digest, authority, budget))
        else:
            answers[digest] = repeat(Take(authority))
    # In bucket order, so that two machines never wait for each other's rows.
    for bucket, digest, authority, budget in sorted(admitted, key=lambda each: each[:2]):
        wanted, rate = waiting[digest], budget.per_minute
        ((granted, tokens, at),) = yield Statement(TAKE, (bucket, now, budget.burst * TOKEN, rate, wanted))
        answers[digest] = _takes(authority, budget, wanted, granted, tokens, at, now)
    return [next(answers[digest]) for digest in digests]


def _takes(
    authority: Authority, budget: Budget, wanted: int, granted: int, tokens: int, at: int, now: int
) -> Iterator[Take]:
    """The answers to `wanted` requests of which `granted` passed and left `tokens` at time `at`."""
    capacity, rate = budget.burst * TOKEN, budget.per_minute
    for turn in range(1, wanted + 1):
        left = tokens + max(granted - turn, 0) * TOKEN
        reset = _ceil(at + _ceil(capacity - left, rate), 1_000_000)
        wait = 0 if turn <= granted else max(1, _ceil(at - now + _ceil(TOKEN - left, rate), 1_000_000))
        yield Take(authority, budget, turn <= granted, left // TOKEN, reset, wait)


def _ceil(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


# Workspaces ---------------------------------------------------------------------------------------


def create_workspace(name: str, plan: str, ceiling: int | None = None, *, by: str, now: int) -> Script[Workspace]:
    """Raises Conflict if the name is taken."""
    rows = yield Statement(
        f"INSERT INTO workspaces ({WORKSPACE}) VALUES ($1, $2, CAST($3 AS bigint), CAST($4 AS bigint)) "
        f"ON CONFLICT (name) DO NOTHING RETURNING {WORKSPACE}",
        (name, plan, ceiling, now),
    )
    if not rows:
        raise Conflict(f"Workspace {name!r} exists already.")
    yield _event("workspace.create", name, {"plan": plan, "ceiling": ceiling}, by, now)
    return Workspace(*rows[0])


def set_workspace(
    name: str, *, plan: str | UnsetType = UNSET, ceiling: int | UnsetType | None = UNSET, by: str, now: int
) -> Script[Workspace]:
    """Changes what is given; a ceiling of None clears it. Acts on the next take. Raises NotFound."""
    given = {field: value for field, value in (("plan", plan), ("ceiling", ceiling)) if value is not UNSET}
    rows = yield Statement(
        "UPDATE workspaces SET plan = COALESCE(CAST($2 AS text), plan), "
        "ceiling = CASE WHEN CAST($3 AS bigint) = 1 THEN CAST($4 AS bigint) ELSE ceiling END "
        f"WHERE name = $1 RETURNING {WORKSPACE}",
        (name, given.get("plan"), int("ceiling" in given), given.get("ceiling")),
    )
    if not rows:
        raise _no_workspace(name)
    yield _event("workspace.set", name, given, by, now)
    return Workspace(*rows[0])


def get_workspace(name: str) -> Script[Workspace]:
    """Raises NotFound."""
    rows = yield Statement(f"SELECT {WORKSPACE} FROM workspaces WHERE name = $1", (name,))
    if not rows:
        raise _no_workspace(name)
    return Workspace(*rows[0])


def list_workspaces(*, after: str = "", limit: int = 100) -> Script[list[Workspace]]:
    """By name, from the first one past `after`."""
    rows = yield Statement(
        f"SELECT {WORKSPACE} FROM workspaces WHERE name > $1 ORDER BY name LIMIT CAST($2 AS bigint)",
        (after, limit),
    )
    return [Workspace(*row) for row in rows]


def _no_workspace(name: str) -> NotFound:
    return NotFound(f"There is no workspace {name!r}.")


# Keys ---------------------------------------------------------------------------------------------

_SECRET = re.compile(r"rp_live_[0-9a-f]{64}")

_INSERT_KEY = f"INSERT INTO keys ({KEY_RETURNED}, digest)"


class Minted(NamedTuple):
    """A new key: `secret` is shown once and stored nowhere, `digest` finds it, `prefix` is displayed."""

    secret: str
    digest: bytes
    prefix: str


def mint() -> Minted:
    """A key of 256 random bits."""
    secret = f"rp_live_{secrets.token_hex(32)}"
    return Minted(secret, hashlib.sha256(secret.encode()).digest(), secret[:16])


def digest(secret: str) -> bytes | None:
    """The SHA-256 by which a key is found, or None if `secret` does not have a key's form."""
    return hashlib.sha256(secret.encode()).digest() if _SECRET.fullmatch(secret) else None


def create_key(
    minted: Minted,
    workspace: str,
    *,
    name: str = "",
    pipeline: str | None = None,
    limit: int | None = None,
    models: list[str] | None = None,
    expires_at: int | None = None,
    by: str,
    now: int,
) -> Script[Key]:
    """A key with a bucket of its own. Raises NotFound. Plan, limit and pipeline are the caller's to check."""
    key_id = _identify("key", now)
    models_json = None if models is None else _json(models)
    yield Statement(
        "INSERT INTO buckets (id, tokens, capacity, granted, at) VALUES ($1, 0, 0, 0, CAST($2 AS bigint))",
        (key_id, now),
    )
    rows = yield Statement(
        f"{_INSERT_KEY} SELECT $1, name, $3, $4, CAST($5 AS text), CAST($6 AS bigint), CAST($7 AS text), $1, "
        "CAST($8 AS bigint), CAST($9 AS bigint), NULL, NULL, $10 "
        f"FROM workspaces WHERE name = $2 RETURNING {KEY_RETURNED}",
        (
            key_id, workspace, name, minted.prefix, pipeline, limit, models_json,
            now, expires_at, minted.digest,
        ),
    )  # fmt: skip
    if not rows:
        raise _no_workspace(workspace)
    key = _key(rows[0])
    yield _event("key.create", key_id, _described(key), by, now)
    return key


def rotate_key(id: str, minted: Minted, *, grace: int, by: str, now: int) -> Script[Key]:
    """A successor with the same rights, expiry and bucket; the old key works for `grace` µs more, at most.

    Raises NotFound, or Conflict if the old key no longer works.
    """
    rows = yield Statement(
        f"{_INSERT_KEY} SELECT $2, workspace, name, $3, pipeline, per_minute, models, bucket, "
        "CAST($4 AS bigint), expires_at, NULL, id, $5 "
        f"FROM keys WHERE id = $1 RETURNING {KEY_RETURNED}",
        (id, _identify("key", now), minted.prefix, now, minted.digest),
    )
    if not rows:
        raise _no_key(id)
    retired = yield Statement(
        "UPDATE keys SET "
        "expires_at = CASE WHEN expires_at < CAST($3 AS bigint) THEN expires_at ELSE CAST($3 AS bigint) END "
        "WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > CAST($2 AS bigint)) "
        "RETURNING expires_at",
        (id, now, now + grace),
    )
    if not retired:
        raise Conflict(f"Key {id!r} is revoked or expired: create a new key instead.")
    key = _key(rows[0])
    details = {"successor": key.id, "prefix": key.prefix, "expires_at": retired[0][0]}
    yield _event("key.rotate", id, details, by, now)
    return key


def revoke_key(id: str, *, by: str, now: int) -> Script[Key]:
    """Acts on the next take. Revoking twice changes nothing. Raises NotFound."""
    rows = yield Statement(
        f"UPDATE keys SET revoked_at = COALESCE(revoked_at, CAST($2 AS bigint)) WHERE id = $1 RETURNING {KEY_RETURNED}",
        (id, now),
    )
    if not rows:
        raise _no_key(id)
    key = _key(rows[0])
    if key.revoked_at == now:
        yield _event("key.revoke", id, {"workspace": key.workspace, "prefix": key.prefix}, by, now)
    return key


def get_key(id: str) -> Script[Key]:
    """Raises NotFound."""
    rows = yield Statement(f"SELECT {KEY} FROM keys AS k WHERE id = $1", (id,))
    if not rows:
        raise _no_key(id)
    return _key(rows[0])


def list_keys(workspace: str | None = None, *, after: str = "", limit: int = 100) -> Script[list[Key]]:
    """Of one workspace or of all, oldest first, from the first one past the id `after`."""
    within, named = ("workspace = $3 AND", (workspace,)) if workspace is not None else ("", ())
    rows = yield Statement(
        f"SELECT {KEY} FROM keys AS k WHERE {within} id > $1 ORDER BY id LIMIT CAST($2 AS bigint)",
        (after, limit, *named),
    )
    return [_key(row) for row in rows]


def _no_key(id: str) -> NotFound:
    return NotFound(f"There is no key {id!r}.")


def _described(key: Key) -> dict[str, Any]:
    hidden = ("id", "bucket", "created_at", "revoked_at", "rotated_from_id")
    return {field: value for field, value in msgspec.structs.asdict(key).items() if field not in hidden}


# Audit --------------------------------------------------------------------------------------------


def _event(action: str, subject: str, details: dict[str, Any], by: str, now: int) -> Statement:
    return Statement(
        f"INSERT INTO audit ({EVENT}) VALUES ($1, CAST($2 AS bigint), $3, $4, $5, $6)",
        (_identify("evt", now), now, by, action, subject, _json(details)),
    )


def list_events(*, before: str | None = None, limit: int = 100) -> Script[list[Event]]:
    """Newest first, from the first one older than the id `before`."""
    older, from_id = ("WHERE id < $2", (before,)) if before is not None else ("", ())
    rows = yield Statement(
        f"SELECT {EVENT} FROM audit {older} ORDER BY id DESC LIMIT CAST($1 AS bigint)",
        (limit, *from_id),
    )
    return [Event(*(*row[:5], msgspec.json.decode(row[5]))) for row in rows]


# Schema -------------------------------------------------------------------------------------------


def migrate(now: int) -> Script[list[int]]:
    """Applies what is missing of migrations/NNN.sql; returns their numbers. The driver locks around it."""
    yield Statement("CREATE TABLE IF NOT EXISTS migrations (version BIGINT PRIMARY KEY, at BIGINT NOT NULL)")
    done = {version for (version,) in (yield Statement("SELECT version FROM migrations"))}
    files = {int(file.stem): file for file in sorted(Path(__file__).with_name("migrations").glob("*.sql"))}
    missing = [version for version in files if version not in done]
    for version in missing:
        for sql in re.split(r";\s*$", files[version].read_text(), flags=re.MULTILINE)[:-1]:
            yield Statement(sql)
        yield Statement("INSERT INTO migrations VALUES (CAST($1 AS bigint), CAST($2 AS bigint))", (version, now))
    return missing


def ping(asks: Sequence[None], now: int) -> Script[list[None]]:
    """Answers if the schema is there."""
    yield Statement("SELECT version FROM migrations LIMIT 1")
    return [None for _ in asks]
