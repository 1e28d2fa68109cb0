"""A request's lifetime: ends when it is answered or its client leaves, and releases whatever it took."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from starlette.types import Receive, Scope

from handlers.door.errors import OVERDUE, STOPPING, ApiError, encode, translate
from handlers.door.ids import request_id

if TYPE_CHECKING:
    from handlers.door.billing import Bill
    from handlers.door.gateway import Gateway
    from handlers.door.protocol import Exchange, HeadProtocol
    from handlers.door.stages import Stage
    from store.records import Authority, Take, Units
    from upstream.trace import Trace

log = logging.getLogger("conch")

Headers = list[tuple[bytes, bytes]]
Release = Callable[[], Awaitable[object] | None]

RELEASED_IN = 1.0
"""Seconds for which an answer waits for what its request held to be free again."""
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_EVERY = 15.0
JSON = (b"content-type", b"application/json")
_JSON = [JSON]


class Endpoint(Protocol):
    """What serves a request, or a part of it; `route`, "POST /v1/rerank", is its name in what is counted."""

    @property
    def route(self) -> str: ...


class Request:
    """One request, from its head to its last byte: what handlers know of it, and the only way to answer it."""

    __slots__ = (
        "_head",
        "_keep_alive",
        "_last_write",
        "_receive",
        "_releases",
        "_stream_headers",
        "_task",
        "asked",
        "authority",
        "bill",
        "body_read",
        "bytes_only",
        "connection",
        "endpoint",
        "error_frames",
        "exchange",
        "extra",
        "finishes",
        "first_at",
        "gateway",
        "id",
        "kept",
        "left",
        "model",
        "overdue",
        "path_params",
        "place",
        "record",
        "refusal",
        "renamed",
        "scope",
        "sent",
        "stages",
        "started",
        "started_at",
        "status",
        "take",
        "trace",
        "unchecked",
        "upstream_seconds",
        "used",
        "writing",
    )

    def __init__(self, gateway: "Gateway", scope: Scope, receive: Receive) -> None:
        self.gateway = gateway
        self.scope = scope
        self.connection: HeadProtocol = scope.pop("connection")  # which has the scope: no cycle, no garbage
        self.exchange: Exchange = self.connection.served
        self.id = request_id()
        self.started_at = time.perf_counter()
        self.upstream_seconds = 0.0
        self.path_params: Mapping[str, str] = {}
        self.authority: Authority | None = None
        self.take: Take | None = None
        self.place: str | None = None  # the workspace whose plan bounds how many run at once: this is one of them
        self.unchecked = False  # admitted while the store was away, by what it said a moment ago
        self.bill: Bill | None = None
        self.used: Callable[[], Units] | None = None  # what the inference has taken so far
        self.kept: Callable[[], Units] | None = None  # of that, what is whole although the rest may fail
        self.record: bytearray | None = None  # what was written of the body, for who asks again
        self.extra: dict[str, Any] = {}  # fields of the body that its schema does not have
        self.renamed: Callable[[ApiError], ApiError] | None = None  # an error in the endpoint's own names
        self.error_frames: Callable[[ApiError], Awaitable[bytes]] | None = None  # how its stream ends with an error
        self.body_read = False
        self.bytes_only = False  # the answer is a file: no frame of ours may get into it
        self.started = False  # the answer's head is out
        self.finishes = False  # what it asked of a model runs to its end, also when the client leaves
        self.left = False  # the client has left, and that was the end
        self.overdue = False  # the time is over that the client gave it
        self._head = b""  # of a stream, until its first piece leaves
        self.endpoint: Endpoint | None = None
        self.model: str | None = None  # the id of the deployment that it reaches
        self.stages: Sequence[Stage] = ()  # of one that asks several models: what it asked each
        self.asked: list[str] | None = None  # the servers of it that it was sent to; None: it is for no model
        self.refusal: ApiError | None = None  # how it ended, where it did not end well
        self.status = 0  # of the answer, once its head is out
        self.first_at = 0.0  # when the first piece of a stream left, a perf_counter()
        self.trace: Trace | None = None  # that it belongs to
        self.sent = 0  # bytes of the answer's body
        self._receive = receive
        self._task: asyncio.Task[Any] | None = None
        self._releases: list[Release] = []
        self._keep_alive: asyncio.TimerHandle | None = None
        self._stream_headers: Headers = []
        self._last_write = 0.0
        self.writing = False  # a piece waits for the client to take those before it

    def header(self, name: bytes) -> bytes | None:
        """The value of a header (its lower-case name), or None."""
        return self.exchange.fields.get(name)

    @property
    def client_id(self) -> bytes | None:
        """The name that the client gave the request, if that is one: up to 512 printable characters."""
        id = self.header(b"x-client-request-id")
        return id if id is not None and len(id) <= 512 and id.isascii() and id.decode().isprintable() else None

    @property
    def lasted(self) -> float:
        """Seconds until now."""
        return time.perf_counter() - self.started_at

    @property
    def failed(self) -> int:
        """The status of the error that ended it, 0 where none did."""
        return 0 if self.refusal is None else self.refusal.status

    def on_end(self, release: Release) -> None:
        """Have `release` called when the request has ended, well or not, the last one first."""
        self._releases.append(release)

    async def vacate(self) -> None:
        """Give back its place, if it has one, before the client hears the last of it: who then asks again finds it."""
        workspace, self.place = self.place, None
        if workspace is not None:
            teller = self.gateway.store.teller
            await asyncio.wait([teller.leave(workspace)], timeout=0 if teller.away else RELEASED_IN)

    async def receive(self) -> tuple[bytes, bool]:
        """The next piece of the body, and whether more follows."""
        exchange = self.exchange
        if exchange.more_body or exchange.disconnected:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.left = True
                raise asyncio.CancelledError
            self.body_read = not message["more_body"]
            return message["body"], message["more_body"]
        self.body_read = True
        return exchange.take_body(), False

    async def respond(self, body: bytes, status: int = 200, headers: Headers = _JSON) -> None:
        """Send a whole answer; JSON, unless `headers` name another content type."""
        self.started, self.status, self.sent = True, status, len(body)
        exchange = self.exchange
        if exchange.flow.write_paused:
            await self._drained()
        exchange.write(exchange.head(status, self._lines(headers), len(body)), body, last=True)

    def start_stream(self, headers: Headers) -> None:
        """The head of an answer whose body comes in pieces: it leaves with the first of them."""
        self.started, self.status = True, 200
        self._head = self.exchange.head(200, self._lines(headers))

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Send a piece of the body; for a stream of events, whole frames."""
        self._last_write = now = time.perf_counter()
        self.sent += len(data)
        if not self.first_at and data is not KEEP_ALIVE:
            self.first_at = now
        if self.record is not None and len(self.record) <= self.gateway.config.idempotency.max_body:
            self.record += data
        head, self._head = self._head, b""
        if self.exchange.flow.write_paused:
            self.writing = True
            await self._drained()
            self.writing = False
        self.exchange.write(head, data, last=last)

    async def _drained(self) -> None:
        """Wait for a client that reads more slowly than we write; one that does not read at all has left."""
        try:
            async with asyncio.timeout(self.gateway.config.server.write_timeout):
                await self.exchange.flow.drain()
        except TimeoutError:
            self.exchange.transport.abort()
            if not self.finishes:
                self.left = True
                raise asyncio.CancelledError from None

    async def fail(self, error: ApiError) -> None:
        """Answer with an error in the one shape."""
        await self.respond(encode(error), error.status, [JSON, *error.headers])

    def keep_alive(self, headers: Headers) -> None:
        """Send a comment frame whenever nothing has flowed for 15 s; before the first write, the head too."""
        if self._keep_alive is None:
            self._stream_headers = headers
            self._last_write = time.perf_counter()
            self._keep_alive = asyncio.get_running_loop().call_later(KEEP_ALIVE_EVERY, self._look)

    def _look(self) -> None:
        quiet = time.perf_counter() - self._last_write
        loop = asyncio.get_running_loop()
        if quiet >= KEEP_ALIVE_EVERY:
            loop.create_task(self._beat())  # noqa: RUF006 - what it may wait for holds it
            quiet = 0.0
        self._keep_alive = loop.call_later(KEEP_ALIVE_EVERY - quiet, self._look)

    async def _beat(self) -> None:
        if self._task is None or self.writing:
            return  # the answer has ended meanwhile, or the client is the slow one
        if not self.started:
            self.start_stream(self._stream_headers)
        await self.write(KEEP_ALIVE)

    @property
    def committed(self) -> bool:
        """Whether it goes on without its client: it is to finish, and does not still wait to be sent to a model."""
        return self.finishes and self.asked != []

    @property
    def whole(self) -> "Request":
        """The request that this is, or is a part of."""
        return self

    def leave(self) -> None:
        """The client has gone: end the handler, once, unless it is to finish. The Lifetime releases what it took."""
        if not self.committed and not self.left and not self.overdue and self._task is not None:
            self.left = True
            self._task.cancel()

    def is_awaited(self) -> bool:
        """Whether anybody is there for more than what was sent to a model, or will ask again for all of it."""
        return not self.exchange.disconnected or (self.bill is not None and self.bill.claim is not None)

    async def abandon(self) -> None:
        """End the handler: nobody awaits the rest of what it asked for. What ran is paid."""
        assert self._task is not None
        self.finishes, self.left = False, not self.overdue
        self._task.cancel()
        await asyncio.sleep(0)  # where it ends

    def expire(self) -> bool:
        """The time is over that the client gave it: end the handler. Whether it goes on, since it is to finish."""
        if self._task is None or self.left or self.overdue:
            return False
        self.overdue = True
        if not self.committed:
            self._task.cancel()
        return self.committed

    async def run(self, handle: "Callable[[Request], Awaitable[None]]") -> None:
        """Run `handle` to its end, or to the client's, or to its error's; then release, last taken first."""
        connection = self.connection
        self._task = task = asyncio.current_task(connection.loop)
        assert task is not None
        connection.running = self
        self.gateway.enter()
        observer = self.gateway.observer
        if observer is not None:
            observer.began(self)
        refusal: ApiError | None = None
        try:
            await handle(self)
        except asyncio.CancelledError:
            task.uncancel()
            refusal = OVERDUE if self.overdue else STOPPING  # the latter to who is there when the server must stop
        except Exception as error:  # noqa: BLE001 - translate logs what it does not know
            refusal = translate(error, self.id)
            if self.renamed is not None:
                refusal = self.renamed(refusal)
            for each in (error, refusal):  # else they hold the frames that they came through, and those hold them
                each.__traceback__ = each.__cause__ = each.__context__ = None
        self.refusal = refusal
        self._task = None  # nothing is cancelled from here on: a write to a client that leaves returns at once
        try:
            if self._releases:  # before an error is told: who then tries again finds all of it free
                await self._unwind()
            if refusal is not None and not self.left:
                await self._answer(refusal)
        finally:
            if observer is not None:
                observer.ended(self)
            self.gateway.leave()
            connection.running = None
            self._forget()
            if self._keep_alive is not None:
                self._keep_alive.cancel()
            if not self.body_read:
                connection.discard_body()
            if self.exchange.transport.get_write_buffer_size():
                connection.await_taken(self.gateway.config.server.write_timeout)

    def _forget(self) -> None:
        """What knows its request: a cycle would wait for the collector."""
        for each in self.stages:
            each.bill = None
        self.bill = self.used = self.error_frames = self.renamed = None
        self.stages = ()

    async def _answer(self, error: ApiError) -> None:
        if not self.started:
            await self.fail(error)
        elif self.bytes_only:
            self.connection.break_off()
        else:
            await self.write(await self.last_frames(error), last=True)

    async def last_frames(self, error: ApiError) -> bytes:
        """With which a stream that has begun ends: the error, without [DONE]."""
        return b"data: " + encode(error) + b"\n\n" if self.error_frames is None else await self.error_frames(error)

    async def _unwind(self) -> None:
        while self._releases:
            release = self._releases.pop()
            try:
                pending = release()
                if pending is not None:
                    await pending
            except Exception:
                log.exception("%s: a release failed", self.id)

    def _lines(self, headers: Headers) -> bytes:
        """The header lines of an answer: `headers`, and those that every answer carries."""
        total = time.perf_counter() - self.started_at
        upstream = self.upstream_seconds
        own = b"".join([b"%b: %b\r\n" % each for each in headers])
        lines = own + _EVERY % (self.id.encode(), total * 1000, (total - upstream) * 1000, upstream * 1000)
        take = self.take
        if take is not None and take.budget is not None:
            assert take.authority is not None
            lines += _LIMITS % (
                take.budget.per_minute,
                take.remaining,
                take.reset,
                take.authority.workspace.plan.encode(),
            )
        if self.asked and self.gateway.tells_servers:
            lines += b"x-conch-upstream: %b\r\n" % ", ".join(dict.fromkeys(self.asked)).encode()
        cors = self.gateway.cors
        if cors is not None:
            lines += b"".join([b"%b: %b\r\n" % each for each in cors.headers(self)])
        client_id = self.client_id
        if client_id is not None:
            lines += b"x-client-request-id: %b\r\n" % client_id
        return lines


_EVERY = b"x-request-id: %b\r\nopenai-processing-ms: %d\r\nserver-timing: gateway;dur=%.2f, upstream;dur=%.2f\r\n"
_LIMITS = b"x-ratelimit-limit: %d\r\nx-ratelimit-remaining: %d\r\nx-ratelimit-reset: %d\r\nx-ratelimit-tier: %b\r\n"
