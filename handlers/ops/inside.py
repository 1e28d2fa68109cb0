"""A GET answered by the application itself, without a socket: `conch get PATH`."""

import asyncio
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit

from handlers.door.entrance import Lifetime


class _Printer:
    """Stands where the server's connection and its exchange would: no client can leave, and no body is on its way."""

    running: Any = None
    body_is_here = True
    more_body = disconnected = write_paused = False
    tasks = ()

    def __init__(self, out: TextIO, fields: dict[bytes, bytes]) -> None:
        self.loop = asyncio.get_running_loop()
        self.fields = fields
        self.served = self.flow = self.transport = self
        self.status = 0
        self._out = out

    def head(self, status: int, lines: bytes, length: int | None = None) -> bytes:
        """Only the status is of interest."""
        self.status = status
        return b""

    def write(self, head: bytes, body: bytes, *, last: bool) -> None:
        """Print a piece of the answer."""
        self._out.write(body.decode())

    def get_write_buffer_size(self) -> int:
        """All of it is out."""
        return 0

    def take_body(self) -> bytes:
        """There is none."""
        return b""

    def discard_body(self) -> None:
        """Nothing to discard."""


async def get(app: Lifetime, path: str, key: str | None, out: TextIO) -> int:
    """Print the answer's body; returns 0 for a success, 1 for an error. The first / of the path may be left out."""
    url = urlsplit(f"/{path.lstrip('/')}")
    headers = [(b"authorization", b"Bearer " + key.encode())] if key else []
    printer = _Printer(out, dict(headers))
    scope = {
        "type": "http",
        "method": "GET",
        "path": unquote(url.path),
        "raw_path": url.path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": url.query.encode(),
        "headers": headers,
        "connection": printer,
    }
    async with app.lifespan():
        await app(scope, _never, _never)
    out.write("\n")
    return 0 if printer.status < 400 else 1


async def _never(*_: object) -> Any:
    raise AssertionError("the printer stands where ASGI's messages would go")
