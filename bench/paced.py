"""The client of paced streams: how long each event took from the replayer to here."""

from __future__ import annotations

import asyncio
import re
import time
from statistics import quantiles
from typing import cast

import uvloop

STAMP = re.compile(rb" @(\d+)")
LONGEST = 32  # bytes of a stamp that was cut in two by a read


class PacedError(Exception):
    """A stream that broke, or was not whole."""


class Stream(asyncio.Protocol):
    """One request on its own connection, which the server closes after the answer."""

    def __init__(self, request: bytes) -> None:
        self.delays: list[int] = []  # ns
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.head = b""
        self._request = request
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self.head = self.head or data[:300]
        data = self._rest + data
        end = 0
        for found in STAMP.finditer(data):
            if found.end() < len(data):  # else its digits may go on
                self.delays.append(now - int(found[1]))
                end = found.end()
        self._rest = data[max(end, len(data) - LONGEST) :]

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(None)


def run(port: int, request: bytes, streams: int, events: int, seconds: float) -> dict[str, float]:
    """Open the streams and read them to their end; p50 and p99 of an event's delay in ms. Raises PacedError."""
    started = time.monotonic()
    delays = uvloop.run(_run(port, request, streams, events, seconds))
    cuts = quantiles(delays, n=100)
    return {
        "requests": len(delays),
        "seconds": time.monotonic() - started,
        "p50": cuts[49] / 1e6,
        "p99": cuts[98] / 1e6,
        "failed": 0,
    }


async def _run(port: int, request: bytes, streams: int, events: int, seconds: float) -> list[int]:
    loop = asyncio.get_running_loop()
    opened: list[Stream] = []
    for _ in range(streams):
        _, stream = await loop.create_connection(lambda: Stream(request), "127.0.0.1", port)
        opened.append(stream)
    _, late = await asyncio.wait([stream.ended for stream in opened], timeout=seconds + 10)
    if late:
        raise PacedError(f"{len(late)} streams did not end")
    for stream in opened:
        if len(stream.delays) != events:
            raise PacedError(f"{len(stream.delays)} of {events} events: {stream.head!r}")
    return [delay for stream in opened for delay in stream.delays]
