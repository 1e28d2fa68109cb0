"""Idempotency keys: a POST that is sent again gets its first answer again, and nothing runs or is paid for twice."""

import hashlib
import re

import msgspec

from handlers.door.billing import bill
from handlers.door.errors import IdempotencyRefused, InvalidRequest, retry_after
from handlers.door.lifetime import Request
from store.records import Claim, Recorded

HEADER = b"idempotency-key"
_KEY = re.compile(rb"[\x20-\x7e]{1,255}")
REPLAYED = (b"x-runinfra-idempotent-replay", b"true")
NO_RETRY = ((b"x-should-retry", b"false"),)


def given(request: Request, *, refused: bool = False) -> bytes | None:
    """The key of a POST, if it has one; `refused` where the answer cannot be kept. Raises 400."""
    if request.scope["method"] != "POST":
        return None
    key = request.header(HEADER)
    if key is not None and refused:
        raise InvalidRequest(
            "'Idempotency-Key' is not taken here: the answer has a secret, which is shown once and kept nowhere.",
            param="Idempotency-Key",
            code="unsupported_parameter",
        )
    if key is not None and _KEY.fullmatch(key) is None:
        raise InvalidRequest(
            "Invalid 'Idempotency-Key': send 1 to 255 printable ASCII characters.",
            param="Idempotency-Key",
            code="invalid_value",
        )
    return key


async def claim(request: Request, key: bytes, digest: bytes) -> Recorded | None:
    """Claim a key for a body of this digest; the first answer, where there is one already.

    Raises 409 for another body, and while the first request is running; 422 where its answer was too large.
    """
    gateway = request.gateway
    teller, mine = gateway.store.teller, bill(request)
    mine.claim = _scope(request, key)  # for all we know, until the store has answered
    expires_at = gateway.clock() + int(gateway.config.idempotency.retention * 1_000_000)
    claimed = await teller.claim(Claim(mine.claim, request.id, teller.process, digest, expires_at))
    if claimed.mine:
        request.record = bytearray()
        request.finishes = True  # for who asks again
        return None
    mine.claim = None
    if not claimed.same:
        raise IdempotencyRefused(
            "This Idempotency-Key was used with another body; send a new key with a new request.",
            "idempotency_conflict",
            headers=NO_RETRY,
        )
    if claimed.answer is None:
        raise IdempotencyRefused(
            "The first request with this Idempotency-Key is still running; try again in 1 s.",
            "idempotency_in_progress",
            headers=(*retry_after(1), (b"x-should-retry", b"true")),
        )
    if claimed.answer.body is None:
        raise IdempotencyRefused(
            "The answer to the first request with this Idempotency-Key was too large to be kept; it ran and was"
            " charged once. Send a new key to run it again.",
            "idempotency_replay_unavailable",
            status=422,
            headers=NO_RETRY,
        )
    return claimed.answer


async def replay(request: Request, answer: Recorded) -> None:
    """Send a recorded answer again, byte for byte; a stream as a stream."""
    headers = [*answer.headers, REPLAYED]
    body = answer.body or b""
    if answer.streamed:
        request.start_stream(headers)
        await request.write(body, last=True)
    else:
        await request.respond(body, headers=headers)


def _scope(request: Request, key: bytes) -> bytes:
    """Who may meet whose answer: the same rights, method and path."""
    own = request.authority.key if request.authority is not None else None  # None: the operator
    path: str = request.scope["path"]
    rights = (own.workspace, own.pipeline, own.models) if own is not None else ()
    scope = (*rights, request.scope["method"], path.removeprefix("/api"), key.decode())
    return hashlib.sha256(msgspec.json.encode(scope)).digest()
