"""Our pooled HTTP/1.1 client for model servers: heads compiled once, one write and one wake per exchange."""

import asyncio
import re
from collections.abc import Coroutine, Mapping
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from upstream.connection import CLOCK_STEP, Connection, Pool, Stream
from upstream.errors import Broken, ConnectFailed, DeadlinePassed
from upstream.trace import TRACE

if TYPE_CHECKING:
    import ssl


STALE = 0.5
"""Seconds within which a kept connection that was closed before ends; later, the request may have begun to run."""


class Reply(NamedTuple):
    """A whole answer; header names are lower-case, repeated ones joined by a comma."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class Client:
    """The connections to one server; they belong to the event loop of the first call."""

    def __init__(
        self,
        url: str,
        *,
        connect_timeout: float = 5.0,
        idle_timeout: float = 60.0,
        max_idle: int = 64,
        max_body: int = 256 * 1024 * 1024,
        max_buffer: int = 256 * 1024,
        tls: "ssl.SSLContext | None" = None,
        at: str | None = None,
    ) -> None:
        """`url` is http[s]://host[:port][/prefix], else ValueError. Times are in seconds, sizes in bytes.

        `at` is the one address to connect to, of several that the host has.

        `max_body` bounds a unary answer; `max_buffer` is what a stream holds unread before its connection is
        paused. `tls` replaces the default context.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http:// or https:// address: {url!r}")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(f"user, query and fragment have no place in the address of {parts.hostname}")
        literal = ":" in parts.hostname
        self.host = parts.hostname if literal else parts.hostname.encode("idna").decode()
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        name = f"[{self.host}]" if literal else self.host
        self.address = f"{name}:{self.port}"
        self._authority = name if parts.port is None else self.address
        self.at = at
        if at is not None:
            self.address = f"[{at}]:{self.port}" if ":" in at else f"{at}:{self.port}"
        self._prefix = parts.path.rstrip("/")
        self._secure = parts.scheme == "https"
        self._tls = tls
        self._connect_timeout = connect_timeout
        self._pool = Pool(idle_timeout, max_idle, max_body, max_buffer)

    @property
    def open(self) -> int:
        """Connections that stand."""
        return len(self._pool.open)

    @property
    def idle(self) -> int:
        """Of those, the ones that wait for a request."""
        return len(self._pool.idle)

    @property
    def in_use(self) -> int:
        """Of those, the ones with a request under way."""
        return self.open - self.idle

    def target(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> "Target":
        """Compiles a request's head; `path` is percent-encoded already. ValueError: not fit for a head."""
        headers = headers or {}
        line = f"{method} {self._prefix}{path}"
        if not re.fullmatch("[A-Z]+ /[!-~]*", line):
            raise ValueError(f"not a request line: {line!r}")
        for name, value in headers.items():
            if not re.fullmatch(r"[!#$%&'*+.^`|~\w-]+", name, re.ASCII) or not re.fullmatch("[\t -~]*", value):
                raise ValueError(f"not a header: {name!r}")
        lines = [f"{line} HTTP/1.1", f"Host: {self._authority}", *(f"{k}: {v}" for k, v in headers.items())]
        return Target(self, method, path, "".join(f"{each}\r\n" for each in lines).encode())

    def close(self) -> None:
        """Drops every connection: what is under way ends as Broken, a later call as ConnectFailed."""
        self._pool.close()

    async def connect(self, due: float) -> Connection:
        """A fresh connection. Raises ConnectFailed, or DeadlinePassed when `due`, a loop.time(), was first."""
        if self._pool.closed:
            raise ConnectFailed(f"{self.address}: the client is closed")
        loop = asyncio.get_running_loop()
        connection = Connection(self._pool, loop)
        try:
            async with asyncio.timeout_at(min(due, loop.time() + self._connect_timeout)):
                tls = self._context()
                await loop.create_connection(
                    lambda: connection,
                    self.at or self.host,
                    self.port,
                    ssl=tls,
                    server_hostname=self.host if tls is not None else None,
                )
        except BaseException as error:
            connection.drop()
            if isinstance(error, TimeoutError) and loop.time() + CLOCK_STEP >= due:
                raise DeadlinePassed("connect", f"{self.address}: out of time (connect)") from error
            if isinstance(error, OSError):
                raise ConnectFailed(f"{self.address}: {str(error) or 'no connection in time'}") from error
            raise
        if connection.dropped or connection.transport.is_closing():
            raise ConnectFailed(f"{self.address}: closed at once")
        return connection

    def _context(self) -> "ssl.SSLContext | None":
        if self._secure and self._tls is None:
            import ssl

            self._tls = ssl.create_default_context()
        return self._tls if self._secure else None


class Target:
    """A method and a path, with the static bytes of their head; any number of calls may run at once."""

    __slots__ = ("_bare", "_bodiless", "_client", "_head", "name", "only_head")

    def __init__(self, client: Client, method: str, path: str, head: bytes) -> None:
        self._client = client
        self._bare = head
        self._head = head + b"Content-Length: "
        self._bodiless = method in ("GET", "HEAD")
        self.only_head = method == "HEAD"
        self.name = f"{client.address} {method} {path}"

    async def call(self, body: bytes = b"", *, deadline: float | None = None, extra: bytes = b"") -> Reply:
        """One exchange, whole, whatever its status. Raises UpstreamError.

        `deadline` is a loop.time() and covers everything; `extra` is header lines, each ending in CRLF.
        """
        stream = await self._exchange(body, deadline, extra, None)
        return Reply(stream.status, stream.headers, stream.drain())

    def open(
        self,
        body: bytes = b"",
        *,
        deadline: float | None = None,
        extra: bytes = b"",
        read_timeout: float = inf,
    ) -> Coroutine[Any, Any, Stream]:
        """One exchange up to the head of its answer. The deadline goes on to hold for the reads.

        `read_timeout`, in seconds, bounds each silence of the server after the head.
        """
        return self._exchange(body, deadline, extra, read_timeout)

    async def _exchange(self, body: bytes, deadline: float | None, extra: bytes, read_timeout: float | None) -> Stream:
        client = self._client
        due = inf if deadline is None else deadline
        now = monotonic()  # the clock of loop.time(), without asking for the loop: that is a system call
        if due <= now:
            raise DeadlinePassed("connect", f"{self.name}: the deadline had passed")
        if (trace := TRACE.get()) is not None:
            extra += trace.lines()
        if body or not self._bodiless:
            head = b"%b%d\r\n%b\r\n" % (self._head, len(body), extra)
        else:
            head = b"%b%b\r\n" % (self._bare, extra)
        kept = client._pool.take()
        stream = Stream(kept or await client.connect(due), self.name, self.only_head, due, read_timeout)
        await stream.begin(head, body)
        if kept is not None and stream.unheard and monotonic() - now < STALE:
            # The server had closed the kept connection meanwhile: the one case that is tried again.
            try:
                fresh = await client.connect(due)
            except ConnectFailed as error:
                raise Broken(f"{self.name}: a kept connection was closed, then {error}") from error
            stream = Stream(fresh, self.name, self.only_head, due, read_timeout)
            await stream.begin(head, body)
        if stream.error is not None and (read_timeout is None or not stream.status):
            raise stream.error
        return stream
