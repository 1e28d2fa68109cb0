"""An upstream that says it has a model, and breaks every request for it, each time in another way."""

from __future__ import annotations

import asyncio
import itertools
import json
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

PATHS = ("/v2/health/live", "/v2/health/ready", "/v2/models/{}", "/v2/models/{}/ready", "/v2/models/{}/config")
HEAD = b"HTTP/1.1 %b\r\nContent-Type: %b\r\n"
STREAM = HEAD % (b"200 OK", b"text/event-stream") + b"Transfer-Encoding: chunked\r\n\r\n"
TOKEN = {"text_output": "half ", "finish_reason": "None", "num_input_tokens": 2, "num_output_tokens": 1}
EVENT = b"data: %b\n\n" % json.dumps(TOKEN).encode()
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


def _json(status: bytes, body: bytes) -> bytes:
    return HEAD % (status, b"application/json") + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


BREAKS = (
    b"",
    _json(b"500 Internal Server Error", b'{"error":"out of memory"}'),
    _json(b"503 Service Unavailable", b'{"error":"Exceeds maximum queue size"}'),
    _json(b"200 OK", b'{"error":"the model failed"}'),
    _json(b"200 OK", b'{"text_output": 1e999, "finish_reason'),
    _json(b"200 OK", b"{}")[:-30],
    b"\x16\x03\x01\x00\xff" * 40,
    STREAM + CHUNK,
    STREAM + CHUNK + CHUNK[:20],
    STREAM + CHUNK + b'15\r\ndata: {"error":"x"}\n\n\r\n0\r\n\r\n',
    STREAM + CHUNK + b"zz\r\n",
)


@asynccontextmanager
async def faulty(triton: str, model: str) -> AsyncIterator[str]:
    """Its URL, while it runs. What it tells of `model` is what this Triton does."""
    told = {path.format(model): await asyncio.to_thread(_get, triton + path.format(model)) for path in PATHS}
    breaks = itertools.cycle(BREAKS)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, path, _ = head.decode().split(" ", 2)
                if method == "GET" and path in told:
                    writer.write(_json(b"200 OK", told[path]))
                else:
                    writer.write(next(breaks))
                    await writer.drain()
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the gateway has closed it
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield "http://{}:{}".format(*server.sockets[0].getsockname())


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as reply:
        body: bytes = reply.read()
    return body
