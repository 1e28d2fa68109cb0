"""uvicorn's HTTP protocol, with limits on the head, errors in our shape, and word of a client that leaves."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from handlers.door.errors import ApiError, InvalidRequest, encode
from handlers.door.ids import request_id


class Leavable(Protocol):
    """A request under way on a connection."""

    def leave(self) -> None: ...


class Cork:
    """A transport that can hold what is written, so that the head of an answer and its body leave in one write."""

    __slots__ = ("_held", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: list[bytes] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def hold(self) -> None:
        """From now on, keep what is written."""
        if self._held is None:
            self._held = []

    def release(self) -> None:
        """Write what was kept, as one."""
        held, self._held = self._held, None
        if held:
            self._transport.write(b"".join(held))

    def write(self, data: bytes) -> None:
        """As a transport's."""
        if self._held is None:
            self._transport.write(data)
        else:
            self._held.append(data)

    def close(self) -> None:
        """As a transport's: what is kept goes out first."""
        self.release()
        self._transport.close()


class HeadProtocol(HttpToolsProtocol):
    """One connection. A head over `max_header` bytes is a 431, one unfinished after `header_timeout` seconds a 408.

    uvicorn never tells a handler that its client has left; `scope["connection"].running` is told, at once.
    """

    max_header = 64 << 10
    header_timeout = 10.0
    linger = 5.0

    hold: Callable[[], None]
    release: Callable[[], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.running: Leavable | None = None
        self._served: RequestResponseCycle | None = None
        self._in_head = True  # or between two requests
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._refusal = _INVALID
        self._upgrading = b""  # the method of a request that asks for another protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        cork = Cork(transport)
        self.hold, self.release = cork.hold, cork.release
        super().connection_made(cork)  # type: ignore[arg-type]
        self._head_timer = self.loop.call_later(self.header_timeout, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_head_timer()
        self._stop_closing()
        if self._served is not None:  # uvicorn tells only the last one that arrived
            self._served.disconnected = True
            self._served.message_event.set()
        if self.running is not None:
            self.running.leave()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._served = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal)
            return
        if not self._in_head or not self._head_bytes:
            self._stop_head_timer()
        elif self._head_bytes > self.max_header:
            self._refuse(_TOO_LARGE)
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.header_timeout, self._head_too_slow)

    def _feed(self, data: bytes) -> None:
        """Parse. The parser takes what follows an Upgrade for another protocol, and so would lose the body of the POST
        by which a Java client offers HTTP/2: such a head is fed again without its offer."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stop:
                method, self._upgrading = self._upgrading, b""
                fields = b"".join(b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade")
                data = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, self.url, fields) + data[stop.args[0] :]

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["connection"] = self  # type: ignore[typeddict-unknown-key]
        self._head_bytes = self._head_bytes or 1

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._upgrading = self.parser.get_method()
            return
        if self._head_bytes > self.max_header:  # counted with what followed the head in the same read: now by itself
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self.max_header:
                self._refusal = _TOO_LARGE
                raise httptools.HttpParserError("head too large")
        super().on_headers_complete()
        self._in_head, self._head_bytes = False, 0

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        super().on_message_complete()
        self._in_head = True
        self._stop_closing()
        if not self.pipeline:
            self.flow.resume_reading()  # a long body has paused it, and the client's leaving would not be seen

    @property
    def body_is_here(self) -> bool:
        """Whether the newest request has arrived whole, and so have those before it."""
        return self._in_head

    def discard_body(self) -> None:
        """The request is answered before its body was read: let the rest pass by, for a while. Closing now would reset
        the connection under a client that is still sending, and lose it the answer."""
        if self.cycle.response_complete and not self._in_head:
            self._close_timer = self.loop.call_later(self.linger, self.transport.close)

    def break_off(self) -> None:
        """Close within an answer's body, without its end: the client must not take what it has for the whole."""
        self.cycle.disconnected = True  # for uvicorn: nothing more of this answer is to come
        self.transport.close()

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            self._refuse(_TOO_SLOW)
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer in the application's stead, and close. What is under way before it is answered first, and alone."""
        self._refused = True
        self._stop_head_timer()
        cycle: RequestResponseCycle | None = self.cycle
        answered = cycle is None or cycle.response_complete
        if self.transport.is_closing():
            return
        if cycle is not None and self._in_head and not answered:
            cycle.keep_alive = False
            return
        if cycle is not None and not self._in_head:  # the fault is in the body of `cycle`
            if answered or cycle.response_started or self.pipeline:
                self.transport.abort()
                return
            cycle.disconnected = True  # for uvicorn: its handler has nobody to answer any more
            cycle.message_event.set()
            if self.running is not None:
                self.running.leave()
        body = encode(error)
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id()}\r\n"
            f"openai-processing-ms: 0\r\nserver-timing: gateway;dur=0.00, upstream;dur=0.00\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        self._close_timer = self.loop.call_later(self.linger, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_closing(self) -> None:
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None


_INVALID = InvalidRequest("The request is not valid HTTP.", code="invalid_http")
_TOO_LARGE = InvalidRequest(
    "The headers of the request are too large; send fewer or shorter ones.",
    status=431,
    code="headers_too_large",
)
_TOO_SLOW = InvalidRequest("The headers of the request did not arrive in time.", status=408, code="request_timeout")


def configured(max_header: int, header_timeout: float) -> type[HeadProtocol]:
    """The protocol with a server's own limits: bytes, seconds."""
    return type("ConfiguredProtocol", (HeadProtocol,), {"max_header": max_header, "header_timeout": header_timeout})
