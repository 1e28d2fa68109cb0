"""uvicorn's HTTP protocol, with limits on the head, errors in our shape, and word of a client that leaves."""

import asyncio
import sys
from collections import deque
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from config import Server
from handlers.door.errors import ApiError, encode, retry_after
from handlers.door.framing import INVALID, OVERHEAD, TOO_LARGE, TOO_LONG, TOO_SLOW, fault
from handlers.door.ids import request_id
from handlers.door.signals import Signal

if TYPE_CHECKING:
    from handlers.door.observer import Observer

JOIN_BELOW = 1 << 20  # a smaller body is copied behind its head: cheaper than two buffers
CROWD = 64
"""Connections beyond the last that are told why they are closed; more are reset."""
_END = b"0\r\n\r\n"
_NOTHING: deque[Any] = deque(maxlen=0)  # what waits on a connection, as long as no request came before its turn
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_CLOCK_STEP = 0.001  # uvloop rounds timers to milliseconds: they may ring this much early


class Leavable(Protocol):
    """A request under way on a connection."""

    def leave(self) -> None: ...


class Exchange(RequestResponseCycle):
    """A request and the way back to its client: what uvicorn sends by ASGI messages, here as bytes, in one write."""

    chunked = False
    fields: dict[bytes, bytes]  # its headers; of one that came several times, the last
    _standing: tuple[object, bytes] = None, b""  # uvicorn's default headers, new every second, and their lines

    def head(self, status: int, lines: bytes, length: int | None = None) -> bytes:
        """The head of the answer, whose own header `lines` end in CRLF each; no `length`: the body comes in pieces."""
        self.response_started = True
        self.waiting_for_100_continue = False
        if self._standing[0] is not self.default_headers:
            lines_of = b"".join([b"%b: %b\r\n" % each for each in self.default_headers])
            Exchange._standing = self.default_headers, lines_of
        date = self._standing[1]
        close = b"" if self.keep_alive else b"connection: close\r\n"
        if status == 304:  # which has no body, nor the length of one
            return b"%b%b%b%b\r\n" % (STATUS_LINE[status], date, lines, close)
        if length is not None:
            return b"%b%b%bcontent-length: %d\r\n%b\r\n" % (STATUS_LINE[status], date, lines, length, close)
        self.chunked = self.scope["method"] != "HEAD"
        coding = b"transfer-encoding: chunked\r\n" if self.chunked else b""
        return b"%b%b%b%b%b\r\n" % (STATUS_LINE[status], date, lines, coding, close)

    def write(self, head: bytes, body: bytes, *, last: bool) -> None:
        """Send a piece of the body, the first one behind the `head`."""
        if self.disconnected:
            return
        if self.scope["method"] == "HEAD":
            body = b""
        elif self.chunked:
            body = b"%x\r\n%b\r\n%b" % (len(body), body, _END if last else b"") if body else _END if last else b""
        if len(body) < JOIN_BELOW:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))
        if last:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()

    def take_body(self) -> bytes:
        """What has arrived of the body and was not taken yet."""
        body, self.body = self.body, bytearray()
        return bytes(body)


class HeadProtocol(HttpToolsProtocol):
    """One connection. A head over `max_header` bytes is a 431, a URL over `max_url` a 414, a head unfinished after
    `header_timeout` seconds a 408.

    uvicorn never tells a handler that its client has left; `scope["connection"].running` is told, at once.
    """

    max_header, max_url, max_connections = 64 << 10, 8 << 10, 8192
    header_timeout, linger = 10.0, 5.0
    observer: "Observer | None" = None

    # Instances share the names of up to thirty attributes, uvicorn's; with more, each has 1.5 KiB of its own.
    __slots__ = (
        *("_close_timer", "_head_bytes", "_head_timer", "_idle_since", "_in_head", "_overhead"),
        *("_refusal", "_refused", "_upgrading", "running", "served"),
    )

    @classmethod
    def limit(cls, settings: Server, connections: int) -> None:
        """From now on these limits, also for connections that are open already."""
        cls.max_header, cls.max_url, cls.max_connections = settings.max_header, settings.max_url, connections
        cls.header_timeout = settings.header_timeout

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pipeline = _NOTHING
        self.running: Leavable | None = None
        self.served: Exchange | None = None  # the one that is answered; `cycle` is the newest
        self._in_head = True  # or between two requests
        self._head_bytes = 0
        self._overhead = 0  # what the framing of this body has taken, beyond what it may
        self._head_timer: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._refusal: ApiError = INVALID
        self._idle_since = 0.0
        self._upgrading = b""  # the method of a request that asks for another protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow._is_writable_event = Signal(True)
        if len(self.connections) > self.max_connections:
            if len(self.connections) < self.max_connections + CROWD:
                self._refuse(_FULL)
            else:
                transport.abort()
            return
        self._head_timer = self.loop.call_later(self.header_timeout, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_head_timer()
        self._stop_closing()
        if self.served is not None:  # uvicorn tells only the last one that arrived
            self.served.disconnected = True
            self.served.message_event.set()
        if self.running is not None:
            self.running.leave()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        assert isinstance(cycle, Exchange)
        self.served = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        else:
            self._overhead += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal)
            return
        if not self._in_head or not self._head_bytes:
            self._stop_head_timer()
            if self._overhead > self.max_header:
                self._refuse(INVALID)  # chunk extensions or trailers without end
        elif self._head_bytes > self.max_header:
            self._refuse(TOO_LARGE if len(self.url) <= self.max_url else TOO_LONG)
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
        self.url, self.headers = b"", []
        self.expect_100_continue = False
        self._head_bytes = self._head_bytes or 1
        self._overhead = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # as uvicorn, without a call to it for each
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))
            return
        self._overhead += len(name) + len(value)  # a trailer, behind the body: nobody's header
        if self._overhead > self.max_header:
            raise httptools.HttpParserError("trailers too large")

    def on_body(self, body: bytes) -> None:
        self._overhead -= (1 + OVERHEAD) * len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        fields = dict(self.headers)
        refusal = fault(version, self.url, self.headers, fields, self.max_url)
        if refusal is not None:
            self._refusal = refusal
            raise httptools.HttpParserError("refused")
        method = self.parser.get_method()
        if self.parser.should_upgrade() and method != b"CONNECT":
            self._upgrading = method
            return
        if self._head_bytes > self.max_header:  # counted with what followed the head in the same read: now by itself
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self.max_header:
                self._refusal = TOO_LARGE
                raise httptools.HttpParserError("head too large")
        previous: RequestResponseCycle | None = self.cycle
        self.cycle = exchange = Exchange(
            scope=self._scope(method, version),
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=Signal(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        exchange.fields = fields
        self._in_head, self._head_bytes = False, 0
        if previous is None or previous.response_complete:
            self._start_asgi_task(exchange, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline = self.pipeline or deque()
            self.pipeline.appendleft((exchange, self.app))

    def _scope(self, method: bytes, version: str) -> Any:
        """As ASGI has it, and the `connection`."""
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "method": method.decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
            "headers": self.headers,
            "state": self.app_state,
            "connection": self,
        }

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        super().on_message_complete()
        self._in_head = True
        self._stop_closing()
        if not self.pipeline:
            self.flow.resume_reading()  # a long body has paused it, and the client's leaving would not be seen

    def on_response_complete(self) -> None:
        """As uvicorn's, but one timer serves all the answers of a connection, and is set anew when it rings."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = monotonic()
        if self.timeout_keep_alive_task is None:
            self._keep_alive(self.timeout_keep_alive)

    def _keep_alive(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle for so long; the end of what is under way sets a timer again."""
        self.timeout_keep_alive_task = None
        if self._head_bytes or not self._in_head or not self.cycle.response_complete:
            return
        left = self._idle_since + self.timeout_keep_alive - monotonic()
        if left > _CLOCK_STEP:
            self._keep_alive(left)
        else:
            self.transport.close()

    @property
    def body_is_here(self) -> bool:
        """Whether the newest request has arrived whole, and so have those before it."""
        return self._in_head

    def discard_body(self) -> None:
        """The request is answered before its body was read: let the rest pass by, for a while. Closing now would reset
        the connection under a client that is still sending, and lose it the answer."""
        if self.cycle.response_complete and not self._in_head:
            self._close_timer = self.loop.call_later(self.linger, self.transport.close)

    def await_taken(self, seconds: float) -> None:
        """The rest of an answer waits here for its client: who takes none of it for so long has left."""
        if self.transport.get_write_buffer_size():
            self.loop.call_later(seconds, self._look_at_rest, self.served, self._untaken(), seconds)

    def _untaken(self) -> int:
        """Bytes that the client has not taken: those here, which the kernel takes a megabyte at a time, and its own."""
        from fcntl import ioctl
        from termios import TIOCOUTQ

        own = ioctl(self.transport.get_extra_info("socket").fileno(), TIOCOUTQ, b"\0" * 4)
        return self.transport.get_write_buffer_size() + int.from_bytes(own, sys.byteorder)

    def _look_at_rest(self, of: Exchange | None, before: int, seconds: float) -> None:
        if of is not self.served:
            return  # the answer after it has its own look
        if self.transport.get_write_buffer_size() and self._untaken() >= before:
            self.transport.abort()
        else:
            self.await_taken(seconds)

    def break_off(self) -> None:
        """Close within an answer's body, without its end: the client must not take what it has for the whole."""
        self.cycle.disconnected = True  # for uvicorn: nothing more of this answer is to come
        self.transport.close()

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            self._refuse(TOO_SLOW)
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
        id = request_id()
        body, told = encode(error), "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in error.headers)
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {id}\r\n"
            f"openai-processing-ms: 0\r\nserver-timing: gateway;dur=0.00, upstream;dur=0.00\r\n"
            f"x-content-type-options: nosniff\r\n{told}connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        if answered and self.observer is not None:  # else there is a request, which will tell how it ended
            self.observer.refused(id, error, len(body))
        if self.transport.can_write_eof():  # not within TLS
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


_FULL = ApiError(
    "Conch has as many connections as it may; try again.", status=503, code="overloaded", headers=retry_after(1)
)


def configured(settings: Server) -> type[HeadProtocol]:
    """The protocol with a server's own limits."""
    protocol: type[HeadProtocol] = type("ConfiguredProtocol", (HeadProtocol,), {})
    protocol.limit(settings, settings.max_connections)
    return protocol
