"""What the store answers, and its errors. Times are integer µs since the epoch, UTC, unless they say so."""

from typing import Any

import msgspec


class Workspace(msgspec.Struct, frozen=True):
    """A tenant. `ceiling` (requests per minute) overrides that of its plan."""

    name: str
    plan: str
    ceiling: int | None
    created_at: int


class Key(msgspec.Struct, frozen=True):
    """An API key without its secret, of which `prefix` is the start, for display.

    `limit` is requests per minute, `models` an allow-list, `bucket` shared by a key and its successors.
    """

    id: str
    workspace: str
    name: str
    prefix: str
    pipeline: str | None
    limit: int | None
    models: list[str] | None
    bucket: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    rotated_from_id: str | None


class Authority(msgspec.Struct, frozen=True):
    """A key and its workspace, as one transaction saw them."""

    key: Key
    workspace: Workspace


class Budget(msgspec.Struct, frozen=True):
    """What a key may use: `per_minute` requests refill a bucket of `burst` evenly; both at least 1."""

    per_minute: int
    burst: int


class Take(msgspec.Struct, frozen=True):
    """The answer to one request for one token.

    `authority` is None for an unknown key, `budget` is None where the judge refused; neither took a token.
    `remaining` is whole requests, `reset` the unix second at which the bucket is full again, `retry_after`
    the whole seconds, at least 1, until one request would pass: 0 unless the bucket was empty.
    """

    authority: Authority | None
    budget: Budget | None = None
    granted: bool = False
    remaining: int = 0
    reset: int = 0
    retry_after: int = 0


class Event(msgspec.Struct, frozen=True):
    """One line of the audit: who (`by`) did what (`action`) to which `subject`. Never holds a secret."""

    id: str
    at: int
    by: str
    action: str
    subject: str
    details: dict[str, Any]


class File(msgspec.Struct, frozen=True):
    """A file that is kept until it expires."""

    id: str
    expires_at: int
    media_type: str
    content: bytes


class StoredResponse(msgspec.Struct, frozen=True):
    """A response that can be asked for again: `input` and `body` are the JSON of its items and of its object."""

    id: str
    workspace: str
    pipeline: str | None
    previous: str | None
    created_at: int
    input: str
    body: str


class StoreError(Exception):
    """Its text is one sentence for whoever asked."""


class StoreUnavailable(StoreError):
    """The database cannot answer now: busy, full, read-only, damaged or closed. Nothing was changed."""


class NotFound(StoreError):
    """What was named does not exist."""


class Conflict(StoreError):
    """It exists already, or is in a state that does not allow the change."""


class Full(StoreError):
    """There is no room for it. Nothing was changed."""
