"""A GET answered by the application itself, without a socket: `conch get PATH`."""

import asyncio
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit

from starlette.types import Message

from handlers.door.lifetime import Lifetime


class _NoConnection:
    """Stands where the server's connection would: no client can leave, and no body is on its way."""

    running: Any = None
    body_is_here = True

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    write_paused = False

    @property
    def flow(self) -> "_NoConnection":
        """It never is in the way."""
        return self

    def hold(self) -> None:
        """Nothing is written to a socket."""

    release = hold

    def discard_body(self) -> None:
        """Nothing to discard."""


async def get(app: Lifetime, path: str, key: str | None, out: TextIO) -> int:
    """Print the answer's body; returns 0 for a success, 1 for an error. The first / of the path may be left out."""
    url = urlsplit(f"/{path.lstrip('/')}")
    scope = {
        "type": "http",
        "method": "GET",
        "path": unquote(url.path),
        "raw_path": url.path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": url.query.encode(),
        "headers": [(b"authorization", b"Bearer " + key.encode())] if key else [],
        "connection": _NoConnection(),
    }
    status = 0

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            out.write(message["body"].decode())

    async with app.app.router.lifespan_context(app.app):
        await app(scope, receive, send)
    out.write("\n")
    return 0 if status < 400 else 1
