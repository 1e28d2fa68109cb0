"""A connection of the HTTP client in http.py, the answer that it carries, and the pool it goes back to."""

import asyncio
import socket
from collections.abc import Awaitable
from math import inf
from types import TracebackType
from typing import Self, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from upstream.errors import BadReply, Broken, DeadlinePassed, Phase, ReplyTooLarge, UpstreamError

HEAD_LIMIT = 64 * 1024  # bytes of a head; also of 1xx replies, of trailers, of a chunk's extensions
# Bytes of a whole answer that states no length. Triton's states it; this one may have no end.
UNSTATED = 16 * 1024 * 1024
JOIN_BELOW = 1024 * 1024  # a smaller body is copied behind its head: measured cheaper than two buffers
CLOCK_STEP = 0.001  # uvloop rounds timers to milliseconds: they may ring this much early


class Pool:
    """The connections of one client, and the limits they share; times in seconds, sizes in bytes."""

    def __init__(self, idle_timeout: float, max_idle: int, max_body: int, max_buffer: int) -> None:
        self.idle_timeout = idle_timeout
        self.max_idle = max_idle
        self.max_body = max_body
        self.max_buffer = max_buffer
        self.open: set[Connection] = set()
        self.idle: list[Connection] = []  # the last in is the first out, so that the others can expire
        self.closed = False

    def take(self) -> "Connection | None":
        """An idle connection, which its server may be closing just now."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    def close(self) -> None:
        """Drops every connection, and those still being made as soon as they are."""
        self.closed = True
        for connection in list(self.open):
            connection.lose("the client was closed")


class Stream:
    """An answer under way: its head, and what has arrived of its body. The `on_…` methods are the parser's."""

    __slots__ = (
        *("_chunks", "_connection", "_due", "_ended", "_keep", "_name", "_only_head", "_parser"),
        *("_quiet", "_read_timeout", "_size", "_waiter", "error", "headers", "status"),
    )
    on_status = on_chunk_header = on_chunk_complete = None  # or the parser meets an exception for each, every time

    def __init__(
        self,
        connection: "Connection",
        name: str,
        only_head: bool,
        due: float,
        read_timeout: float | None,
    ) -> None:
        """`read_timeout` None: unary, so wake the reader once, at the end."""
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.error: UpstreamError | None = None  # what broke it off
        self._connection = connection
        self._name = name
        self._only_head = only_head
        self._due = due
        self._read_timeout = read_timeout
        self._parser = HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self._size = 0  # of the chunks
        self._quiet = 0  # bytes received since the last that were the final head, or body
        self._keep = False  # the connection may serve another request
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """All that has arrived since the last read; b"" at the clean end.

        Raises UpstreamError if the answer broke off, after what had come before. Cancelled, it closes the stream.
        """
        if not self._chunks and not self._ended and self.error is None:
            await self._wait()
        if self.error is not None and not self._chunks:
            raise self.error
        return self.drain()

    async def all(self, limit: int) -> bytes:
        """The rest of the body. ReplyTooLarge, and the stream closed, when it is more than `limit` bytes."""
        parts = []
        while part := await self.read():
            parts.append(part)
            limit -= len(part)
            if limit < 0:
                self.close()
                raise ReplyTooLarge(f"{self._name}: more than its reader would take")
        return b"".join(parts)

    def close(self) -> None:
        """Ends the exchange now: an unfinished answer costs its connection, by which the server learns of it."""
        if not self._ended and self.error is None:
            self._connection.drop()
            self._fail(Broken(f"{self._name}: closed by its reader"))
        self._chunks.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def unheard(self) -> bool:
        """Whether the connection ended without one byte of an answer."""
        return isinstance(self.error, Broken) and not self.status and not self._quiet

    @property
    def at_end(self) -> bool:
        """Whether all of the answer has been read, to its clean end."""
        return self._ended and not self._chunks

    def drain(self) -> bytes:
        """What has arrived and was not read yet."""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        connection = self._connection
        if connection.paused and connection.stream is self:
            connection.resume()
            self._expect()
        return data

    def begin(self, head: bytes, body: bytes) -> Awaitable[None]:
        """Sends the request; then wait for the head of its answer, or if unary for all of it, or for an error."""
        connection = self._connection
        connection.stream = self
        connection.watch(self._due)
        if len(body) < JOIN_BELOW:
            connection.transport.write(head + body)
        else:
            connection.transport.write(head)
            connection.transport.write(body)
        return self._wait()

    async def _wait(self) -> None:
        self._waiter = self._connection.loop.create_future()
        try:
            await self._waiter
        except BaseException:
            self.close()
            raise

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def _expect(self) -> None:
        """Sets the time of the next byte; while the reader is the slow one, silence is not the server's."""
        connection = self._connection
        if self._read_timeout is None or self._read_timeout == inf or not self.status:
            return
        silence = inf if connection.paused else connection.loop.time() + self._read_timeout
        connection.watch(min(self._due, silence))

    def feed(self, data: bytes) -> None:
        """Takes what the connection received."""
        self._quiet += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._keep = False
            if not self._ended and self.error is None:
                self.error = BadReply(f"{self._name}: {error}")
        connection = self._connection
        if self._ended:
            connection.finish(self._keep)
            self._settle()
        elif self.error is not None:
            connection.drop()
            self._settle()
        elif self._quiet > HEAD_LIMIT:
            connection.drop()
            self._fail(BadReply(f"{self._name}: more than {HEAD_LIMIT} bytes that are no body"))
        elif self._read_timeout is not None:
            if self._size > connection.pool.max_buffer:
                connection.pause()
            self._expect()
            if not self._quiet:
                self._wake()

    def lost(self, reason: str) -> None:
        """The connection is gone; no `reason` is a clean end, which completes a body of no stated length."""
        coding = self.headers.get(b"transfer-encoding", b"").lower()
        stated = b"content-length" in self.headers or coding.endswith(b"chunked")
        if reason or stated or not self.status:
            self._fail(Broken(f"{self._name}: {reason or 'closed by the server'}"))
        else:
            self._ended = True
            self._settle()

    def expire(self, now: float) -> None:
        """The time that the connection was watched for has passed."""
        phase: Phase = "head" if not self.status else "body" if now + CLOCK_STEP >= self._due else "silence"
        self._fail(DeadlinePassed(phase, f"{self._name}: out of time ({phase})"))

    def _fail(self, error: UpstreamError) -> None:
        self.error = error
        self._settle()

    def _settle(self) -> None:
        del self._parser  # which holds this stream
        self._wake()

    def on_message_begin(self) -> None:
        if self._ended:
            raise BadReply("bytes after the answer")  # stops the parser; the answer itself stands

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:
            return  # a trailer
        name = name.lower()
        self.headers[name] = self.headers[name] + b", " + value if name in self.headers else value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer; the parser itself stops at a 101
            self.headers.clear()
            return
        if self._quiet > HEAD_LIMIT and sum(map(len, self.headers.values())) > HEAD_LIMIT:
            self._stop(BadReply(f"{self._name}: headers of more than {HEAD_LIMIT} bytes"))
        self.status = status
        self._quiet = 0
        self._keep = self._parser.should_keep_alive()
        if self._only_head:
            self._ended = True
            raise BadReply("no body follows")  # the parser cannot know: the connection serves no other request
        if self._read_timeout is None:
            self._bound(int(self.headers.get(b"content-length", 0)))

    def on_body(self, data: bytes) -> None:
        self._quiet = 0
        self._size += len(data)
        self._chunks.append(data)
        if self._read_timeout is None:
            self._bound(self._size)
            if self._size > UNSTATED and b"content-length" not in self.headers:
                self._stop(ReplyTooLarge(f"{self._name}: more than {UNSTATED} bytes of no stated length"))

    def on_message_complete(self) -> None:
        self._ended = self.status > 0

    def _bound(self, size: int) -> None:
        limit = self._connection.pool.max_body
        if size > limit:
            self._stop(ReplyTooLarge(f"{self._name}: more than {limit} bytes"))

    def _stop(self, error: UpstreamError) -> None:
        self.error = error
        raise error


class Connection(asyncio.Protocol):
    """A transport with the stream it carries, or its place among the idle, and one timer for either.

    The timer is lazy: it is set anew only for an earlier time, and looks at `due` when it rings. So an exchange
    costs no timer.
    """

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self.pool = pool
        self.loop = loop
        self.transport: asyncio.Transport  # from connection_made on
        self.stream: Stream | None = None
        self.paused = False
        self.dropped = False
        self._due = inf
        self._rings_at = inf
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pool.open.add(self)
        if self.pool.closed or self.dropped:  # dropped: its caller has left meanwhile
            self.drop()

    def data_received(self, data: bytes) -> None:
        if self.stream is not None:
            self.stream.feed(data)
        else:
            self.drop()  # bytes that nobody asked for

    def eof_received(self) -> None:
        if self.stream is None:
            self.drop()

    def connection_lost(self, error: Exception | None) -> None:
        self.lose(str(error or ""))

    def lose(self, reason: str) -> None:
        """The connection has ended, or does now; its stream hears why."""
        stream = self.stream
        self.drop()
        if stream is not None:
            stream.lost(reason)

    def finish(self, keep: bool) -> None:
        """The stream is complete: waits for the next, or ends where no other request can be served."""
        pool = self.pool
        if keep and len(pool.idle) < pool.max_idle and not self.transport.get_write_buffer_size():
            self.stream = None
            self.resume()
            self.watch(self.loop.time() + pool.idle_timeout)
            pool.idle.append(self)
        else:
            self.drop()

    def drop(self) -> None:
        """Ends the connection at once; the stream, if any, hears nothing of it."""
        self.dropped = True
        if self.stream is None and self in self.pool.idle:
            self.pool.idle.remove(self)
        self.stream = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self in self.pool.open:
            self.pool.open.remove(self)
            self.transport.abort()

    def pause(self) -> None:
        """Backpressure: leaves what comes to the kernel, and so to the server."""
        if not self.paused:
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Reads again."""
        if self.paused:
            self.paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def watch(self, due: float) -> None:
        """Sets the loop.time() at which the stream, or the idle connection, is given up."""
        self._due = due
        if due < self._rings_at:
            if self._timer is not None:
                self._timer.cancel()
            self._rings_at = due
            self._timer = self.loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer, self._rings_at = None, inf
        now = self.loop.time()
        if now + CLOCK_STEP < self._due:
            self.watch(self._due)
            return
        stream = self.stream
        self.drop()
        if stream is not None:
            stream.expire(now)
