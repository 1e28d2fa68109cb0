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

    `limit` is requests per minute, `models` an allow-list, `bucket` shared by a key and its successors;
    `last_used_at` is some seconds late.
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
    last_used_at: int | None


class Authority(msgspec.Struct, frozen=True):
    """A key and its workspace, as one transaction saw them."""

    key: Key
    workspace: Workspace


class Budget(msgspec.Struct, frozen=True):
    """What a key may use: `per_minute` requests refill a bucket of `burst` evenly; both at least 1.

    `concurrency`: how many requests of its workspace may run at once; None: any number.
    """

    per_minute: int
    burst: int
    concurrency: int | None = None


class Take(msgspec.Struct, frozen=True):
    """The answer to one request for one token.

    `authority` is None for an unknown key, `budget` is None where the judge refused, `crowded` where as many
    requests run as may: none of them took a token. `remaining` is whole requests, `reset` the unix second at
    which the bucket is full again, `retry_after` the whole seconds, at least 1, until one request would pass: 0
    unless it was refused. With a budget's concurrency, what is granted holds a place until `leave`.
    """

    authority: Authority | None
    budget: Budget | None = None
    granted: bool = False
    remaining: int = 0
    reset: int = 0
    retry_after: int = 0
    crowded: bool = False


class Account(msgspec.Struct, frozen=True):
    """The money of a workspace, in nano-dollars: `credits` are free, `held` those of what is running.

    `spent` is of the calendar `month` (yyyymm, UTC), what is held included; `spend_limit` bounds that.
    """

    workspace: str
    credits: int
    held: int
    month: int
    spent: int
    spend_limit: int | None


class Units(msgspec.Struct):
    """What a request took of a model; `cached_tokens` are among the input tokens, sound is in milliseconds."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    characters: int = 0
    milliseconds: int = 0


class Hold(msgspec.Struct):
    """Credits set aside for a request: the most that it can cost. `limit` is its plan's for a month, if any."""

    id: str
    process: str
    workspace: str
    amount: int
    limit: int | None = None


class Held(msgspec.Struct):
    """The answer to a Hold: whether it was granted, and the account as it then stood."""

    granted: bool
    credits: int = 0
    spent: int = 0
    limit: int | None = None


class Usage(msgspec.Struct):
    """What a request used and its cost; `at` and the request's id are its identity in the ledger.

    `whole` unless it ended before its end: its client left, or its time was over. `duration`: µs until its end.
    """

    at: int
    workspace: str
    key: str
    model: str
    units: Units
    cost: int
    whole: bool = True
    duration: int | None = None


class Failure(msgspec.Struct):
    """A request that reached a model and was answered with an error of ours or the model's: `status` 500 or more."""

    at: int
    workspace: str
    key: str
    model: str
    status: int


class Claim(msgspec.Struct):
    """An idempotency key: `id` is a digest of its scope, `digest` that of the body, `owner` the request's id."""

    id: bytes
    owner: str
    process: str
    digest: bytes
    expires_at: int


class Recorded(msgspec.Struct):
    """An answer that can be sent again: its own headers, its body, and whether that came in pieces.

    A `body` of None was too large to be kept.
    """

    headers: list[tuple[bytes, bytes]]
    body: bytes | None
    streamed: bool


class Claimed(msgspec.Struct):
    """The answer to a Claim: `mine`, or what was found: the `same` body or another, its answer once it is there."""

    mine: bool
    same: bool = True
    answer: Recorded | None = None


class Closing(msgspec.Struct):
    """The end of a request: its hold goes back, its usage is charged, its claim gets the answer or becomes free.

    The same one again changes nothing. `also`: those of its stages, in the same transaction.
    """

    id: str
    held: bool = False
    usage: Usage | None = None
    claim: bytes | None = None
    answer: Recorded | None = None
    expires_at: int = 0
    failure: Failure | None = None
    also: list["Closing"] = []


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


class Contended(StoreUnavailable):
    """Another transaction was in the way; the same one may be tried again at once."""


class NotFound(StoreError):
    """What was named does not exist."""


class Conflict(StoreError):
    """It exists already, or is in a state that does not allow the change."""


class Full(StoreError):
    """There is no room for it. Nothing was changed."""
