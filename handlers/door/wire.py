"""HTTP to Structs and back: a signature is compiled once into an endpoint that decodes, calls, encodes."""

import asyncio
import hashlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from time import perf_counter
from typing import Any, Generic, TypeVar, get_args, get_type_hints
from urllib.parse import parse_qsl

import msgspec

from handlers.door import idempotency
from handlers.door.admission import admit
from handlers.door.errors import InvalidRequest, decoding
from handlers.door.lifetime import JSON, Headers, Request
from handlers.door.multipart import Form, Upload, fields, fingerprint, read_form
from handlers.door.schemas.body import FormBody
from store.records import Recorded

T = TypeVar("T")
Gate = Callable[[Request], Awaitable[None]]

encode = msgspec.json.Encoder().encode

EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"
_JSON = [JSON]


def event(told: msgspec.Struct) -> bytes:
    """An event as a frame that bears its name, which is the tag of its Struct."""
    return b"event: %b\ndata: %b\n\n" % (str(told.__struct_config__.tag).encode(), encode(told))


class Stream(Generic[T]):
    """An answer as events of type T. `frames` yields whole SSE frames, those that came at once joined: one write.

    `closing` makes those that are due at the end, before [DONE].
    """

    def __init__(self, frames: AsyncIterator[bytes], closing: Callable[[], bytes] = bytes) -> None:
        self.frames = frames
        self.closing = closing


class Bytes:
    """A whole answer that is not JSON; `headers` say what it is."""

    def __init__(self, body: bytes, headers: Headers) -> None:
        self.body = body
        self.headers = headers


class ByteStream:
    """An answer that is not JSON, whose bytes leave as they are made; `headers` say what it is.

    One that fails before its first byte has a status of its own; later, the connection breaks off.
    """

    def __init__(self, pieces: AsyncIterator[bytes], headers: Headers) -> None:
        self.pieces = pieces
        self.headers = headers


class Endpoint:
    """`async def handler(request[, body: Struct | query: Struct]) -> Struct | Stream[Struct]`, for any request.

    The request passes its `gate` first. A body is read only by a handler that takes one, and may be left out where it
    has a default; so is a query. `headers` are those of an answer in JSON. A body's Struct may have `mend(fields)`,
    which is called when a body does not fit: before it is read again; a form with `or_json` may be JSON too. `route`,
    "POST /v1/rerank", is its name in what is counted, whatever path it was reached by.
    """

    def __init__(
        self,
        handler: Callable[..., Awaitable[Any]],
        route: str,
        *,
        gate: Gate | None = admit,
        headers: Headers | None = None,
    ) -> None:
        self.handler = handler
        self.route = route
        self.gate = gate
        self.headers = headers or _JSON
        hints = get_type_hints(handler)
        parameter = inspect.signature(handler).parameters.get("body")
        self.body: type[msgspec.Struct] | None = hints.get("body") if parameter is not None else None
        self.shown_once = getattr(hints.get("return"), "secret", False)
        self._default = parameter.default if parameter is not None else inspect.Parameter.empty
        self.needs_body = self._default is inspect.Parameter.empty
        self._decode = msgspec.json.Decoder(self.body).decode if self.body is not None else None
        self._takes_extra = getattr(self.body, "takes_extra", False)
        self._mend: Callable[[dict[str, Any]], None] | None = getattr(self.body, "mend", None)
        self._query: type[msgspec.Struct] | None = hints.get("query")
        self._or_json = getattr(self.body, "or_json", False)
        self._form = _FormFields(self.body) if self.body is not None and issubclass(self.body, FormBody) else None

    async def serve(self, request: Request) -> None:
        """Admit, decode, call, encode. Whatever is raised, the Lifetime answers."""
        request.endpoint = self
        if self.gate is not None:
            await self.gate(request)
        if self._query is not None:
            answer = await self.handler(request, _read_query(request, self._query))
        elif self._decode is None:
            answer = await self.handler(request)
        else:
            answer = await self._answer(request)
        if isinstance(answer, Stream):
            await _send_stream(request, answer)
        elif isinstance(answer, Bytes):
            await _send(request, answer.body, answer.headers)
        elif isinstance(answer, ByteStream):
            await _send_bytes(request, answer)
        elif isinstance(answer, Recorded):
            await request.vacate()
            await idempotency.replay(request, answer)
        else:
            await _send(request, encode(answer), self.headers)

    async def _answer(self, request: Request) -> Any:
        """The handler's answer to the body; or the recorded one, where this is the same request again."""
        key = idempotency.given(request, refused=self.shown_once)
        if self._form is not None and not (self._or_json and _is_json(request)):
            form = await self._form.read(request, digested=key is not None)
            if key is not None and (recorded := await idempotency.claim(request, key, fingerprint(form))):
                return recorded
            return await self.handler(request, self._read_form(request, self._form.fields(form)))
        body = await read_json(request)
        if key is not None and (recorded := await idempotency.claim(request, key, hashlib.sha256(body).digest())):
            return recorded
        return await self.handler(request, self._read(request, body))

    def _read(self, request: Request, body: bytes) -> Any:
        assert self._decode is not None
        if not body and not self.needs_body:
            return self._default
        try:
            return self._decode(body)
        except msgspec.ValidationError as error:
            if self._mend is None and not (self._takes_extra and _names_unknown_field(error)):
                raise decoding(error) from error
            misfit = error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise decoding(error) from error
        try:
            sent = msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise decoding(error if _names_unknown_field(misfit) else misfit) from error
        try:
            return self._read_again(request, sent)
        except msgspec.MsgspecError as error:
            raise decoding(error) from error

    def _read_again(self, request: Request, sent: Any) -> Any:
        """A body that does not fit: mended, and its fields beyond the schema put where the profile may want them."""
        if isinstance(sent, dict):
            if self._mend is not None:
                self._mend(sent)
            sent = self._without_extra(request, sent)
        return msgspec.convert(sent, self.body)

    def _read_form(self, request: Request, sent: dict[str, Any]) -> Any:
        try:
            return msgspec.convert(self._without_extra(request, sent), self.body, strict=False)
        except msgspec.ValidationError as error:
            raise decoding(error) from error

    def _without_extra(self, request: Request, sent: dict[str, Any]) -> dict[str, Any]:
        assert self.body is not None
        if self._takes_extra:
            known = set(self.body.__struct_encode_fields__)
            request.extra = {name: sent.pop(name) for name in list(sent) if name not in known}
        return sent


def _is_json(request: Request) -> bool:
    content_type = request.header(b"content-type") or b""
    return content_type.partition(b";")[0].strip().lower() == b"application/json"


def _read_query(request: Request, query: type[T]) -> T:
    """The query of the URL; a field NAME[] may come several times. Raises 400."""
    sent: dict[str, Any] = {}
    for name, value in parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True):
        plain = name.removesuffix("[]")
        several = sent.setdefault(plain, []) if name != plain else None
        if several is None and plain not in sent:
            sent[plain] = value
        elif isinstance(several, list):
            several.append(value)
        else:
            raise _misread(name, "it is sent more than once")
    try:
        read = msgspec.convert(sent, query, strict=False)
    except msgspec.ValidationError as error:
        raise decoding(error) from error
    for name in sent:
        if getattr(read, name) is None:  # msgspec takes the text null for None
            raise _misread(name, "null is no value of it; leave it out")
    return read


def _misread(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid {name!r}: {why}.", param=name, code="invalid_value")


class _FormFields:
    """What a form's schema says of its parts: those named NAME[] may come several times, those of Upload are files."""

    def __init__(self, body: type[msgspec.Struct]) -> None:
        hints = get_type_hints(body)
        names = dict(zip(body.__struct_fields__, body.__struct_encode_fields__, strict=True))
        self.lists = frozenset(name for name in names.values() if name.endswith("[]"))
        self.files = frozenset(
            name for field, name in names.items() if Upload in (hints[field], *get_args(hints[field]))
        )

    async def read(self, request: Request, *, digested: bool) -> Form:
        """The parts in their order. Raises 400, 408, 413, 415."""
        content_type = request.header(b"content-type") or b""
        if content_type.partition(b";")[0].strip().lower() != b"multipart/form-data":
            raise InvalidRequest(
                "The body must be a form with a file: send 'Content-Type: multipart/form-data; boundary=…'.",
                status=415,
                code="unsupported_media_type",
            )
        limit = request.gateway.config.server.max_upload
        if int(request.header(b"content-length") or 0) > limit:
            raise _too_large(limit)
        pieces = _pieces(request, limit)
        return await read_form(content_type, pieces, self.files, request.on_end, digested=digested)

    def fields(self, form: Form) -> dict[str, Any]:
        """The parts by name. Raises 400."""
        return fields(form, self.lists)


def _names_unknown_field(error: msgspec.ValidationError) -> bool:
    """Whether the body itself, not an object within, has a field that its schema does not have."""
    return str(error).startswith("Object contains unknown field") and "$" not in str(error)


async def read_json(request: Request) -> bytes:
    """The whole body of a JSON request. Raises 408, 413, 415."""
    kind = request.header(b"content-type")
    if kind is not None and kind != JSON[1] and kind.partition(b";")[0].strip().lower() != JSON[1]:
        raise InvalidRequest(
            "The body must be JSON: send 'Content-Type: application/json'.",
            status=415,
            code="unsupported_media_type",
        )
    settings = request.gateway.config.server
    if int(request.header(b"content-length") or 0) > settings.max_body:
        raise _too_large(settings.max_body)
    body, more = await _piece(request)
    if not more:
        return body
    return b"".join([body, *[piece async for piece in _pieces(request, settings.max_body, len(body))]])


async def _pieces(request: Request, limit: int, size: int = 0) -> AsyncIterator[bytes]:
    """What is still to come of the body, as it arrives; with the `size` that has come, at most `limit` bytes."""
    more = True
    while more:
        piece, more = await _piece(request)
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        yield piece


async def _piece(request: Request) -> tuple[bytes, bool]:
    """The next piece, unless there is silence for too long, or the whole body takes too long. Raises 408."""
    if request.connection.body_is_here:  # the usual case, which a timer would cost 5 µs
        return await request.receive()
    settings = request.gateway.config.server
    left = request.started_at + settings.request_timeout - perf_counter()
    try:
        async with asyncio.timeout(min(settings.body_timeout, left)):
            return await request.receive()
    except TimeoutError:
        raise InvalidRequest("The body did not arrive in time.", status=408, code="request_timeout") from None


def _too_large(limit: int) -> InvalidRequest:
    return InvalidRequest(f"The body is too large; the limit is {limit} bytes.", status=413, code="body_too_large")


async def _send(request: Request, body: bytes, headers: Headers) -> None:
    """A whole answer, once the ledger has it."""
    if request.place is not None:
        await request.vacate()
    if request.bill is not None:
        await request.bill.settle(headers, body, streamed=False)
    await request.respond(body, headers=headers)


async def _send_stream(request: Request, stream: Stream[Any]) -> None:
    """The head goes out with the first frames, so that what fails before them has a status of its own."""
    request.keep_alive(EVENT_STREAM)
    async for frames in stream.frames:
        if not request.started:
            request.start_stream(EVENT_STREAM)
        await request.write(frames)
    await _send_last(request, stream.closing() + DONE, EVENT_STREAM)


async def _send_bytes(request: Request, answer: ByteStream) -> None:
    """As for a stream of events; nothing but the bytes themselves may be sent."""
    request.bytes_only = True
    async for piece in answer.pieces:
        if not request.started:
            request.start_stream(answer.headers)
        await request.write(piece)
    await _send_last(request, b"", answer.headers)


async def _send_last(request: Request, last: bytes, headers: Headers) -> None:
    """The end of a stream, once the ledger has it."""
    if request.place is not None:
        await request.vacate()
    if request.bill is not None:
        await request.bill.settle(headers, bytes(request.record or b"") + last, streamed=True)
    if not request.started:
        request.start_stream(headers)
    await request.write(last, last=True)
