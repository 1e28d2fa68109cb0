"""Which web pages may call the API from a browser (the CORS protocol of the Fetch standard): none, unless configured.

A key is a header that a page must send itself. Cookies mean nothing here, so credentials are never allowed.
"""

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from handlers.door.lifetime import Headers, Request

PATHS = ("/v1/", "/api/v1/")
EXPOSED = (
    b"x-request-id, x-client-request-id, retry-after, x-should-retry, x-ratelimit-limit, x-ratelimit-remaining,"
    b" x-ratelimit-reset, x-ratelimit-tier, x-runinfra-idempotent-replay, openai-processing-ms, server-timing"
)
KEPT = b"7200"  # seconds for which a browser keeps the answer to a preflight; Chromium's most
_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,2048}")


class Cors:
    """The pages of `origins`, "https://app.example.com" each; or of all, for ["*"]."""

    def __init__(self, origins: Collection[str]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    def headers(self, request: "Request") -> "Headers":
        """What an answer tells a browser."""
        if not request.scope["path"].startswith(PATHS):
            return []
        if self._any:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", EXPOSED)]
        vary = (b"vary", b"origin")  # for caches: another page gets another answer
        origin = request.header(b"origin")
        if origin not in self._origins:
            return [vary]
        assert origin is not None
        return [vary, (b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED)]

    async def preflight(self, request: "Request") -> bool:
        """Answer an OPTIONS by which a browser asks whether its page may; False: it is none, or may not."""
        method = request.header(b"access-control-request-method")
        if method is None or len(self.headers(request)) < 2:
            return False
        told = [(b"access-control-allow-methods", b"GET, POST, DELETE"), (b"access-control-max-age", KEPT)]
        wanted = request.header(b"access-control-request-headers")
        if wanted is not None and _NAMES.fullmatch(wanted):  # SDKs have dozens of their own
            told.append((b"access-control-allow-headers", wanted))
        await request.respond(b"", headers=told)
        return True
