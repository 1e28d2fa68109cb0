"""GET /v1/openapi.json: the API described by its own signatures; GET /docs: that as a page to read and to try."""

import asyncio
import gzip
import hashlib
from functools import cache
from pathlib import Path
from typing import Annotated

from handlers.door.errors import NotFound
from handlers.door.lifetime import Headers, Request
from handlers.door.wire import Bytes, encode

VIEWER = Path(__file__).parent / "viewer"
FILES = {
    "page.css": b"text/css; charset=utf-8",
    "page.js": b"text/javascript; charset=utf-8",
    "viewer.js": b"text/javascript; charset=utf-8",
}
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The viewer styles its parts by `style` attributes, which no hash can allow; scripts are its own file only."""
VARY = (b"vary", b"accept-encoding")


async def show(request: Request) -> Annotated[Bytes, "application/json"]:
    """This document: OpenAPI 3.1, made of the signatures that decode the requests when it is first asked for."""
    gateway = request.gateway
    if gateway.openapi is None:
        from handlers.ops.openapi.document import document

        gateway.openapi = encode(document(gateway.routes(), gateway.config))
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-cache"), VARY]
    return await _bytes(request, gateway.openapi, headers)


async def page(request: Request) -> Annotated[Bytes, "text/html"]:
    """The same as a page to read, and to try with a key of yours."""
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"content-security-policy", POLICY),
        (b"referrer-policy", b"no-referrer"),
    ]
    return Bytes(_page(), headers)


async def asset(request: Request) -> Annotated[Bytes, "text/css", "text/javascript"]:
    """What the page is made of. Raises 404."""
    name = request.path_params["file"]
    kind = FILES.get(name)
    if kind is None:
        raise NotFound(f"There is no {name[:100]!r} here; see /docs.", code="unknown_route")
    headers = [
        (b"content-type", kind),
        (b"cache-control", b"public, max-age=86400"),  # the page asks for it by its digest
        VARY,
    ]
    return await _bytes(request, _file(name), headers)


async def _bytes(request: Request, body: bytes, headers: Headers) -> Bytes:
    """Compressed for who takes it: a quarter of the size, and less."""
    if b"gzip" not in (request.header(b"accept-encoding") or b""):
        return Bytes(body, headers)
    return Bytes(await asyncio.to_thread(_compressed, body), [*headers, (b"content-encoding", b"gzip")])


@cache
def _compressed(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)


@cache
def _file(name: str) -> bytes:
    return (VIEWER / name).read_bytes()


@cache
def _page() -> bytes:
    text = _file("page.html").decode()
    for name in FILES:
        text = text.replace(name, f"{name}?{hashlib.sha256(_file(name)).hexdigest()[:12]}")
    return text.encode()
