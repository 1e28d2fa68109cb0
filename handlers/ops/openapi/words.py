"""What no signature says: the rules that hold for every operation, statuses, headers, keys."""

from typing import Any

import msgspec

from config.sections import PipelineId

ABOUT = """\
The OpenAI API in front of Triton: an OpenAI SDK works with `base_url` set to `…/v1` and a key of this gateway.

**Keys.** `Authorization: Bearer rp_live_…`. A key belongs to a workspace; one that is bound to a pipeline reaches \
that pipeline only, and may leave `model` out. `/v1/{pipeline}/…` are the same routes with the models of a pipeline.

**Errors** have one shape, whatever the status. What a deployment's model cannot honour is refused by name \
(`unsupported_parameter`), never dropped. Besides the statuses of an operation, a request that is not valid HTTP is a \
400, one whose head is over the limit a 431, one whose URL is too long a 414, a transfer coding that is not \
known a 501, and a method that a route does not have a 405.

**Limits.** Each key has a token bucket; `X-RateLimit-…` says what is left, and a 429 when to come again.

**Streams** are server-sent events: each `data:` is JSON of the schema under `text/event-stream`, the last is \
`[DONE]`. An error after the beginning is one event `{"error": …}`, and no `[DONE]` follows.

**Retries.** Any POST takes an `Idempotency-Key`: sent again, it gets the first answer again, and nothing is charged \
twice.
"""
STREAMED = "The answer, whole; or as server-sent events, whose data are JSON of the schema, but for the last, `[DONE]`."
STATUSES = {
    400: "The body or a parameter is not what it should be, or asks for what this deployment cannot do.",
    401: "No key, or none that is good.",
    402: "Too few credits for what the request may cost.",
    403: "The key is good, and may not do this: another pipeline, a plan without it, a spend limit.",
    404: "No such model, pipeline or object for this key.",
    408: "The body did not arrive in time.",
    409: "The Idempotency-Key is another body's, or its first request is still running; or the name is taken.",
    413: "The body is over the limit.",
    415: "The body is of another media type.",
    422: "The first answer to this Idempotency-Key was too large to be kept.",
    429: "The rate limit of the key, or the concurrency of its plan, is reached.",
    500: "A bug in the gateway; the operator's log has it under the request's id.",
    502: "Triton answered with an error, or broke off.",
    503: "No healthy Triton has the model at the moment, or the accounts cannot be reached.",
    504: "The deadline of the model, or of the request (`X-Request-Timeout`), has passed.",
}


def _header(about: str, kind: str = "string") -> dict[str, Any]:
    return {"description": about, "schema": {"type": kind}}


HEADERS = {
    "X-Request-Id": _header("The request's own id, also in the ledger and in the operator's log."),
    "X-Client-Request-Id": _header("What the request had in the header of this name."),
    "openai-processing-ms": _header("Milliseconds until the head of the answer.", "integer"),
    "Server-Timing": _header("What of that was the gateway's, and what the model's: `gateway;dur=…, upstream;dur=…`."),
    "X-Conch-Upstream": _header("At log level debug alone: the Triton servers that the request was sent to, in turn."),
    "X-RateLimit-Limit": _header("The key's requests per minute.", "integer"),
    "X-RateLimit-Remaining": _header("Whole requests that are left now.", "integer"),
    "X-RateLimit-Reset": _header("The unix second at which the bucket is full again.", "integer"),
    "X-RateLimit-Tier": _header("The plan."),
    "X-RunInfra-Idempotent-Replay": _header("`true` where this is the first answer again."),
    "Retry-After": _header("Seconds after which to try again.", "integer"),
    "X-Should-Retry": _header("Whether the official SDKs try again by themselves: `true` or `false`."),
    "WWW-Authenticate": _header("`Bearer`."),
}
EVERY = ("X-Request-Id", "X-Client-Request-Id", "openai-processing-ms", "Server-Timing", "X-Conch-Upstream")
LIMITED = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-RateLimit-Tier")
REFUSED = {
    401: ("WWW-Authenticate",),
    409: ("Retry-After", "X-Should-Retry"),
    422: ("X-Should-Retry",),
    429: ("Retry-After",),
    503: ("Retry-After", "X-Should-Retry"),
    504: ("X-Should-Retry",),
}
PARAMETERS = {
    "ClientRequestId": {
        "name": "X-Client-Request-Id",
        "in": "header",
        "description": "An id of your own, at most 512 printable ASCII characters: it comes back with the answer.",
        "schema": {"type": "string"},
    },
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Makes a retry safe: the same key with the same body gets the first answer again.",
        "schema": {"type": "string", "pattern": "^[ -~]{1,255}$"},
    },
    "RequestTimeout": {
        "name": "X-Request-Timeout",
        "in": "header",
        "description": "Seconds until the answer is a 504 and the model is stopped; the model's own limit holds too.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,9}([.][0-9]{1,9})?$"},
    },
}
SIGNATURE = {
    "name": "RunInfra-Signature",
    "in": "header",
    "required": True,
    "description": "`t=<unix>,v1=<hex>`: HMAC-SHA256 of `<t>.<raw body>`; while a secret is rotated there are two v1.",
    "schema": {"type": "string"},
}
RECEIVED = {
    "2XX": {"description": "It has arrived."},
    "410": {"description": "No more events are wanted: the webhook is disabled."},
    "default": {"description": "It is sent again, later and later."},
}
SECURITY = {
    "key": {"type": "http", "scheme": "bearer", "description": "A key of a workspace or a pipeline: `rp_live_…`."},
    "admin": {"type": "http", "scheme": "bearer", "description": "CONCH_ADMIN_TOKEN, of the operator."},
}
_TEXT = {"type": "string", "minLength": 1}
PATH: dict[str, dict[str, Any]] = {
    "id": {"description": "Its id.", "schema": _TEXT},
    "name": {"description": "Its name.", "schema": _TEXT},
    "file": {"description": "A file of the page.", "schema": _TEXT},
    "pipeline": {"description": "The id of a pipeline.", "schema": msgspec.json.schema(PipelineId)},
}
