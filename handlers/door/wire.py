"""HTTP to Structs and back: a signature is compiled once into an ASGI callable that decodes, calls, encodes."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar, get_type_hints

import msgspec
from starlette.types import Receive, Scope, Send

from handlers.door.admission import admit
from handlers.door.errors import InvalidRequest, decoding
from handlers.door.lifetime import Request

T = TypeVar("T")

encode = msgspec.json.Encoder().encode

EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"


class Stream(Generic[T]):
    """An answer as events of type T. `frames` yields whole SSE frames, those that came at once joined: one write.

    `closing` makes those that are due at the end, before [DONE].
    """

    def __init__(self, frames: AsyncIterator[bytes], closing: Callable[[], bytes] = bytes) -> None:
        self.frames = frames
        self.closing = closing


class Endpoint:
    """`async def handler(request[, body: Struct]) -> Struct | Stream[Struct]` as an ASGI application.

    Unless `public`, the request is admitted first. A body is read only by a handler that takes one.
    """

    def __init__(self, handler: Callable[..., Awaitable[Any]], *, public: bool = False) -> None:
        self.handler = handler
        self.public = public
        self.name = f"{handler.__module__}.{handler.__qualname__}"
        hints = get_type_hints(handler)
        self.body: type[msgspec.Struct] | None = (
            hints.get("body") if "body" in inspect.signature(handler).parameters else None
        )
        self._decode = msgspec.json.Decoder(self.body).decode if self.body is not None else None
        self._takes_extra = getattr(self.body, "takes_extra", False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starlette's way in: the Lifetime has opened the request already."""
        request: Request = scope["conch"]
        request.path_params = scope["path_params"]
        await self.serve(request)

    async def serve(self, request: Request) -> None:
        """Admit, decode, call, encode. Whatever is raised, the Lifetime answers."""
        if not self.public:
            await admit(request)
        if self._decode is None:
            answer = await self.handler(request)
        else:
            answer = await self.handler(request, self._read(request, await read_json(request)))
        if isinstance(answer, Stream):
            await _send_stream(request, answer)
        else:
            await request.respond(encode(answer))

    def _read(self, request: Request, body: bytes) -> Any:
        assert self._decode is not None
        try:
            return self._decode(body)
        except msgspec.ValidationError as error:
            if not self._takes_extra or not _names_unknown_field(error):
                raise decoding(error) from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise decoding(error) from error
        try:
            return self._read_extra(request, body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise decoding(error) from error

    def _read_extra(self, request: Request, body: bytes) -> Any:
        """A body with fields beyond the schema: they go to `request.extra`, where the profile may want them."""
        assert self.body is not None
        fields: dict[str, Any] = msgspec.json.decode(body)
        known = set(self.body.__struct_encode_fields__)
        request.extra = {name: fields.pop(name) for name in list(fields) if name not in known}
        return msgspec.convert(fields, self.body)


def _names_unknown_field(error: msgspec.ValidationError) -> bool:
    """Whether the body itself, not an object within, has a field that its schema does not have."""
    return str(error).startswith("Object contains unknown field") and "$" not in str(error)


async def read_json(request: Request) -> bytes:
    """The whole body of a JSON request. Raises 408, 413, 415."""
    length = None
    for name, value in request.scope["headers"]:
        if name == b"content-type":
            if value.partition(b";")[0].strip().lower() != b"application/json":
                raise InvalidRequest(
                    "The body must be JSON: send 'Content-Type: application/json'.",
                    status=415,
                    code="unsupported_media_type",
                )
        elif name == b"content-length":
            length = int(value)
    settings = request.gateway.config.server
    if length is not None and length > settings.max_body:
        raise _too_large(settings.max_body)
    body, more = await _piece(request, settings.body_timeout)
    if not more:
        return body
    pieces, size = [body], len(body)
    while more:
        body, more = await _piece(request, settings.body_timeout)
        pieces.append(body)
        size += len(body)
        if size > settings.max_body:
            raise _too_large(settings.max_body)
    return b"".join(pieces)


async def _piece(request: Request, timeout: float) -> tuple[bytes, bool]:
    """The next piece, at the latest after `timeout` seconds of silence."""
    try:
        async with asyncio.timeout(timeout):
            return await request.receive()
    except TimeoutError:
        raise InvalidRequest("The body did not arrive in time.", status=408, code="request_timeout") from None


def _too_large(limit: int) -> InvalidRequest:
    return InvalidRequest(f"The body is too large; the limit is {limit} bytes.", status=413, code="body_too_large")


async def _send_stream(request: Request, stream: Stream[Any]) -> None:
    """The head goes out with the first frames, so that what fails before them has a status of its own."""
    request.keep_alive(EVENT_STREAM)
    async for frames in stream.frames:
        if not request.started:
            await request.start_stream(EVENT_STREAM)
        await request.write(frames)
    await request.write(stream.closing() + DONE, last=True)
