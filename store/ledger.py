"""Workspaces, keys, their audit and the schema: every question and change as a script, each beside its SQL.

A change adds its audit event in the same transaction.
"""

import hashlib
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from store.records import Conflict, Event, Key, NotFound, Workspace
from store.script import Row, Script, Statement, identify

KEY = (
    "k.id, k.workspace, k.name, k.prefix, k.pipeline, k.per_minute, k.models, k.bucket, "
    "k.created_at, k.expires_at, k.revoked_at, k.rotated_from_id, k.last_used_at"
)
KEY_RETURNED = KEY.replace("k.", "")
WORKSPACE = "name, plan, ceiling, created_at"
EVENT = "id, at, actor, action, subject, details"


def read_key(row: Row) -> Key:
    """The key in the columns KEY."""
    models = row[6] if row[6] is None else msgspec.json.decode(row[6])
    return Key(*(*row[:6], models, *row[7:13]))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


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
    yield Statement("INSERT INTO accounts (workspace) VALUES ($1)", (name,))
    yield Statement("INSERT INTO places (workspace) VALUES ($1)", (name,))
    yield event("workspace.create", name, {"plan": plan, "ceiling": ceiling}, by, now)
    return Workspace(*rows[0])


def set_workspace(
    name: str,
    *,
    plan: str | UnsetType = UNSET,
    ceiling: int | UnsetType | None = UNSET,
    spend_limit: int | UnsetType | None = UNSET,
    credits_low: int | UnsetType | None = UNSET,
    by: str,
    now: int,
) -> Script[Workspace]:
    """Changes what is given; a limit of None clears it. Acts on the next take. Raises NotFound."""
    fields = (("plan", plan), ("ceiling", ceiling), ("spend_limit", spend_limit), ("credits_low", credits_low))
    given = {field: value for field, value in fields if value is not UNSET}
    rows = yield Statement(
        "UPDATE workspaces SET plan = COALESCE(CAST($2 AS text), plan), "
        "ceiling = CASE WHEN CAST($3 AS bigint) = 1 THEN CAST($4 AS bigint) ELSE ceiling END "
        f"WHERE name = $1 RETURNING {WORKSPACE}",
        (name, given.get("plan"), int("ceiling" in given), given.get("ceiling")),
    )
    if not rows:
        raise no_workspace(name)
    if "spend_limit" in given:
        yield Statement(
            "UPDATE accounts SET spend_limit = CAST($2 AS bigint) WHERE workspace = $1", (name, spend_limit)
        )
    if "credits_low" in given:
        yield Statement("UPDATE accounts SET low_at = CAST($2 AS bigint) WHERE workspace = $1", (name, credits_low))
    yield event("workspace.set", name, given, by, now)
    return Workspace(*rows[0])


def get_workspace(name: str) -> Script[Workspace]:
    """Raises NotFound."""
    rows = yield Statement(f"SELECT {WORKSPACE} FROM workspaces WHERE name = $1", (name,))
    if not rows:
        raise no_workspace(name)
    return Workspace(*rows[0])


def list_workspaces(*, after: str = "", limit: int = 100) -> Script[list[Workspace]]:
    """By name, from the first one past `after`."""
    rows = yield Statement(
        f"SELECT {WORKSPACE} FROM workspaces WHERE name > $1 ORDER BY name LIMIT CAST($2 AS bigint)",
        (after, limit),
    )
    return [Workspace(*row) for row in rows]


def no_workspace(name: str) -> NotFound:
    """Of a name that no workspace has."""
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
    key_id = identify("key", now)
    models_json = None if models is None else _json(models)
    yield Statement(
        "INSERT INTO buckets (id, tokens, capacity, granted, at) VALUES ($1, 0, 0, 0, CAST($2 AS bigint))",
        (key_id, now),
    )
    rows = yield Statement(
        f"{_INSERT_KEY} SELECT $1, name, $3, $4, CAST($5 AS text), CAST($6 AS bigint), CAST($7 AS text), $1, "
        "CAST($8 AS bigint), CAST($9 AS bigint), NULL, NULL, NULL, $10 "
        f"FROM workspaces WHERE name = $2 RETURNING {KEY_RETURNED}",
        (
            key_id, workspace, name, minted.prefix, pipeline, limit, models_json,
            now, expires_at, minted.digest,
        ),
    )  # fmt: skip
    if not rows:
        raise no_workspace(workspace)
    key = read_key(rows[0])
    yield event("key.create", key_id, _described(key), by, now)
    return key


def rotate_key(id: str, minted: Minted, *, grace: int, by: str, now: int) -> Script[Key]:
    """A successor with the same rights, expiry and bucket; the old key works for `grace` µs more, at most.

    Raises NotFound, or Conflict if the old key no longer works.
    """
    rows = yield Statement(
        f"{_INSERT_KEY} SELECT $2, workspace, name, $3, pipeline, per_minute, models, bucket, "
        "CAST($4 AS bigint), expires_at, NULL, id, NULL, $5 "
        f"FROM keys WHERE id = $1 RETURNING {KEY_RETURNED}",
        (id, identify("key", now), minted.prefix, now, minted.digest),
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
    key = read_key(rows[0])
    details = {"successor": key.id, "prefix": key.prefix, "expires_at": retired[0][0]}
    yield event("key.rotate", id, details, by, now)
    return key


def revoke_key(id: str, *, by: str, now: int) -> Script[Key]:
    """Acts on the next take. Revoking twice changes nothing. Raises NotFound."""
    rows = yield Statement(
        f"UPDATE keys SET revoked_at = COALESCE(revoked_at, CAST($2 AS bigint)) WHERE id = $1 RETURNING {KEY_RETURNED}",
        (id, now),
    )
    if not rows:
        raise _no_key(id)
    key = read_key(rows[0])
    if key.revoked_at == now:
        yield event("key.revoke", id, {"workspace": key.workspace, "prefix": key.prefix}, by, now)
    return key


def get_key(id: str) -> Script[Key]:
    """Raises NotFound."""
    rows = yield Statement(f"SELECT {KEY} FROM keys AS k WHERE id = $1", (id,))
    if not rows:
        raise _no_key(id)
    return read_key(rows[0])


def list_keys(workspace: str | None = None, *, after: str = "", limit: int = 100) -> Script[list[Key]]:
    """Of one workspace or of all, oldest first, from the first one past the id `after`."""
    within, named = ("workspace = $3 AND", (workspace,)) if workspace is not None else ("", ())
    rows = yield Statement(
        f"SELECT {KEY} FROM keys AS k WHERE {within} id > $1 ORDER BY id LIMIT CAST($2 AS bigint)",
        (after, limit, *named),
    )
    return [read_key(row) for row in rows]


def _no_key(id: str) -> NotFound:
    return NotFound(f"There is no key {id!r}.")


def _described(key: Key) -> dict[str, Any]:
    hidden = ("id", "bucket", "created_at", "revoked_at", "rotated_from_id", "last_used_at")
    return {field: value for field, value in msgspec.structs.asdict(key).items() if field not in hidden}


# Audit --------------------------------------------------------------------------------------------


def event(action: str, subject: str, details: dict[str, Any], by: str, now: int) -> Statement:
    """The audit's line for a change."""
    return Statement(
        f"INSERT INTO audit ({EVENT}) VALUES ($1, CAST($2 AS bigint), $3, $4, $5, $6)",
        (identify("evt", now), now, by, action, subject, _json(details)),
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
