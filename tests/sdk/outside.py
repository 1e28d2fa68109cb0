"""A witness: the only way out that the examples are given, which refuses and remembers what they asked for."""

from __future__ import annotations

import contextlib
import socketserver
from collections.abc import Iterator
from threading import Thread


class Outside(socketserver.ThreadingTCPServer):
    """A proxy on a free port that serves nothing; `asked` holds the first line of every request to it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Refuse)
        self.asked: list[str] = []

    def variables(self) -> dict[str, str]:
        """The environment that leads a client here for everything but the gateway."""
        here = f"http://127.0.0.1:{self.server_address[1]}"
        proxies = dict.fromkeys(
            ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), here
        )
        return {**proxies, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1", "NODE_USE_ENV_PROXY": "1"}


class _Refuse(socketserver.StreamRequestHandler):
    server: Outside

    def handle(self) -> None:
        self.server.asked.append(self.rfile.readline(1000).decode("latin-1").strip())
        self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@contextlib.contextmanager
def outside() -> Iterator[Outside]:
    """The witness, for as long as the block lasts."""
    with Outside() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
