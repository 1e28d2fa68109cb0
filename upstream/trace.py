"""The trace that a request belongs to, and what Triton is told of it: W3C Trace Context, by the task of the request."""

from contextvars import ContextVar
from time import perf_counter


class Trace:
    """Ids in hexadecimal, "" where there is none: `parent` is the span that the request came from, `server` and
    `client` are those of our own spans. `headers` go to Triton with each exchange, of which the first began `sent_at`,
    a perf_counter().
    """

    __slots__ = ("client", "headers", "id", "parent", "sent_at", "server")

    def __init__(self, id: str, parent: str, flags: str, state: str, *, server: str = "", client: str = "") -> None:
        self.id, self.parent, self.server, self.client = id, parent, server, client
        self.sent_at = 0.0
        traceparent = ("traceparent", f"00-{id}-{client or parent}-{flags}")
        self.headers = (traceparent, ("tracestate", state)) if state else (traceparent,)

    def lines(self) -> bytes:
        """For HTTP: header lines, each with its end."""
        return "".join(f"{name}: {value}\r\n" for name, value in self.metadata()).encode()

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """For gRPC."""
        self.sent_at = self.sent_at or perf_counter()
        return self.headers


ASKED: ContextVar[list[str] | None] = ContextVar("asked", default=None)
"""The servers that this request was sent to, in their order, by their addresses; None: nobody wants to know."""

TRACE: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""That of the request whose task this is."""
