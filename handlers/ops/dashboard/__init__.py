"""The dashboard: a page and its files, which lie beside this one; what they show comes from /admin and /v1."""

import asyncio
import hashlib
from pathlib import Path

from starlette.types import Receive, Scope, Send

from handlers.door.errors import NotFound
from handlers.door.lifetime import Headers, Request

FOLDER = Path(__file__).parent
KINDS = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".txt": b"text/plain; charset=utf-8",
    ".woff2": b"font/woff2",
}
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' data: blob:; "
    b"media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'"
)
"""No code and no style but these files, and no HTML made of strings: the browser itself refuses them."""
SAFE: Headers = [
    (b"content-security-policy", POLICY),
    (b"permissions-policy", b"microphone=(self), camera=(), geolocation=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),  # kept, and asked about each time: a new Conch is seen at once
]


class Dashboard:
    """GET /dashboard and /dashboard/{path}: an ASGI application, as every Endpoint is.

    The files are read when the first of them is asked for: a start reads none.
    """

    name = "handlers.ops.dashboard"

    def __init__(self) -> None:
        self._files: dict[str, tuple[bytes, bytes, bytes]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starlette's way in: the Lifetime has opened the request already."""
        request: Request = scope["conch"]
        request.path_params = scope["path_params"]
        await self.serve(request)

    async def serve(self, request: Request) -> None:
        """The file, or a 304 to who has it. Raises 404."""
        if not self._files:
            self._files = await asyncio.to_thread(_read)
        name = request.path_params.get("path", "index.html")
        if name == "":
            await request.respond(b"", 307, [*SAFE, (b"location", b"../dashboard")])
            return
        if name not in self._files:
            raise NotFound(f"The dashboard has no file {name[:100]!r}; it begins at /dashboard.", code="unknown_route")
        content, kind, etag = self._files[name]
        known = request.header(b"if-none-match") == etag
        headers = [*SAFE, (b"etag", etag), (b"content-type", kind)]
        await request.respond(b"" if known else content, 304 if known else 200, headers)


def _read() -> dict[str, tuple[bytes, bytes, bytes]]:
    """Every file by its path: its content, its type, its tag."""
    files = {}
    for path in FOLDER.rglob("*"):
        if path.suffix in KINDS:
            content = path.read_bytes()
            tag = b'"%b"' % hashlib.sha256(content).hexdigest()[:32].encode()
            files[path.relative_to(FOLDER).as_posix()] = (content, KINDS[path.suffix], tag)
    return files
