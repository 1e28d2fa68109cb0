"""A Triton that paces: each of its streams gets an event every interval, which says when it was sent.

    python -m bench.replay --port 9000 --interval 0.1 --slots 64

nginx cannot do that. Streams are spread over the interval in `slots`, so that their events do not come in one burst.
A stream has as many events as the request's max_tokens says; the text of each is " @" and the clock (monotonic, ns).
"""

from __future__ import annotations

import argparse
import asyncio
import re
import threading
import time
from typing import cast

import httptools
import uvloop

from bench.models import PACED, reply

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n"
ASKED = re.compile(rb'max_tokens\\?":\s*(\d+)')
BEFORE, AFTER = reply(PACED.name, " @*", "None", 1).encode().split(b"*")
LAST = AFTER.replace(b'"None"', b'"stop"')
SAID = {
    f"{PACED.path}/ready": b"",
    f"{PACED.path}/config": PACED.config().encode(),
    PACED.path: PACED.metadata().encode(),
    "/v2/health/live": b"",
    "/v2/health/ready": b"",
}


class Metronome:
    """Beats `slots` times per interval, each time for the streams of the next slot."""

    def __init__(self, interval: float, slots: int) -> None:
        self.slots: list[set[Exchange]] = [set() for _ in range(slots)]
        self._step = interval / slots
        self._next = 0
        self._loop = asyncio.get_running_loop()
        # A thread, since the loop's own timers go by whole milliseconds.
        threading.Thread(target=self._tick, daemon=True).start()

    def join(self, stream: Exchange) -> None:
        """Puts a stream into the emptiest slot."""
        min(self.slots, key=len).add(stream)

    def leave(self, stream: Exchange) -> None:
        """Takes it out again, wherever it is."""
        for slot in self.slots:
            slot.discard(stream)

    def _tick(self) -> None:
        due = time.monotonic()
        while True:
            due = max(due + self._step, time.monotonic() - self._step)  # what was missed is not made up for
            time.sleep(max(0.0, due - time.monotonic()))
            if any(self.slots):
                self._loop.call_soon_threadsafe(self._beat)

    def _beat(self) -> None:
        self._next = (self._next + 1) % len(self.slots)
        for stream in list(self.slots[self._next]):
            stream.beat()


class Exchange(asyncio.Protocol):
    """A connection and its request."""

    def __init__(self, metronome: Metronome) -> None:
        self._metronome = metronome
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._url = b""
        self._body = b""
        self._left = 0
        self._keeps = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._metronome.leave(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        path = self._url.decode()
        asked = ASKED.search(self._body)
        if path in SAID:
            body = SAID[path]
            self._transport.write(HEAD % b"application/json" + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        elif path == f"{PACED.path}/generate_stream" and asked is not None and int(asked[1]):
            self._transport.write(HEAD % b"text/event-stream; charset=utf-8" + b"Transfer-Encoding: chunked\r\n\r\n")
            self._left = int(asked[1])
            self._keeps = self._parser.should_keep_alive()
            self._metronome.join(self)
        else:
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def beat(self) -> None:
        """Sends the next event; with the last one, the end."""
        self._left -= 1
        event = b"data: %b%d%b\n\n" % (BEFORE, time.monotonic_ns(), AFTER if self._left else LAST)
        end = b"" if self._left else b"0\r\n\r\n"
        self._transport.write(b"%x\r\n%b\r\n%b" % (len(event), event, end))
        if not self._left:
            self._metronome.leave(self)
            if not self._keeps:
                self._transport.close()


async def serve(port: int, interval: float, slots: int) -> None:
    """Listen on 127.0.0.1 until the process ends."""
    metronome = Metronome(interval, slots)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Exchange(metronome), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.replay", description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--interval", type=float, default=0.005, help="seconds between two events of a stream")
    parser.add_argument("--slots", type=int, default=16, help="parts of an interval that streams are spread over")
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.interval, options.slots))


if __name__ == "__main__":
    main()
