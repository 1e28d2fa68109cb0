"""What fails open, where the operator wants it: the keys that were good within the last minute.

Nothing else is remembered of a key between two requests, and nothing at all unless [store] when_down = "open".
"""

from time import monotonic

from handlers.door.lifetime import Request
from store.records import Authority

RECENT = 60.0  # seconds
MOST_OWED = 50_000  # usage rows that wait for the store to come back


class Recent:
    """The keys of the last minute, by digest, the oldest first."""

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[float, Authority]] = {}

    def note(self, digest: bytes, authority: Authority) -> None:
        """A take was granted."""
        now = monotonic()
        self._seen.pop(digest, None)
        self._seen[digest] = now, authority
        oldest = next(iter(self._seen))
        if self._seen[oldest][0] < now - RECENT:
            del self._seen[oldest]

    def forget(self, digest: bytes) -> None:
        """A take was refused for good."""
        self._seen.pop(digest, None)

    def admit(self, request: Request, digest: bytes) -> bool:
        """Let a request pass while the store is away; not when too much waits to be written already."""
        at, authority = self._seen.get(digest, (0.0, None))
        expires_at = authority.key.expires_at if authority is not None else None
        if expires_at is not None and expires_at <= request.gateway.clock():
            return False
        if authority is None or at < monotonic() - RECENT or request.gateway.store.teller.owed > MOST_OWED:
            return False
        request.authority, request.unchecked = authority, True
        return True
