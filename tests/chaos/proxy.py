"""A TCP proxy between the gateway and Triton that spoils the answers to inferences, and passes on all else as it comes.

By hand, over HTTP: python -m tests.chaos.proxy 127.0.0.1:8000 8100 "silence half-way"
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Literal

Way = Literal["events", "json", "tensors", "grpc"]
"""How an answer is made: of generate_stream, of generate, of infer, or of gRPC."""

WAYS: dict[bytes, Way] = {b"/generate_stream ": "events", b"/generate ": "json", b"/infer ": "tensors"}
LENGTHS = (b"content-length:", b"transfer-encoding:")
SECRET = "hunter2 at 10.11.12.13:8001"
"""In every error that the proxy invents: no client may see it."""
GARBAGE = Random(6).randbytes(4096)
RESET = struct.pack("ii", 1, 0)  # of SO_LINGER: a close is a reset
DRIPPED = 2000  # bytes that a drip sends one by one
PAUSE = 0.2
"""Seconds before a cut: gRPC forgets what it has not handed on when its connection ends."""
OTHER = {b"FP32": b"INT8", b"BYTES": b"INT64", b"UINT8": b"INT16", b"INT16": b"UINT8"}
"""Of each datatype, one whose name is as long."""
DATA, HEADERS, END_STREAM = 0, 1, 1  # RFC 9113, section 6


class Answer:
    """What Triton has said to one inference, and the gateway that is to hear it."""

    def __init__(self, way: Way, pieces: list[bytes], writer: asyncio.StreamWriter) -> None:
        """`pieces` as they came: the head, and the body whole, in its chunks, or in frames of HTTP/2."""
        self.way = way
        self.head, *self._parts = pieces
        self.body = b"".join(self._parts)
        self._writer = writer

    @property
    def several(self) -> bool:
        """Whether the body has several events: the last part is its end."""
        return len(self._parts) > 2

    @property
    def middle(self) -> int:
        """Where the first event ends, or the first frame of HTTP/2; of any other body, the first half."""
        return len(self._parts[0]) if self.several or self.way == "grpc" else len(self.body) // 2

    @property
    def content(self) -> bytes:
        """The body without the sizes of its chunks."""
        if _field(self.head, b"content-length"):
            return self.body
        return b"".join(part.partition(b"\r\n")[2][:-2] for part in self._parts)

    async def send(self, data: bytes) -> None:
        """Only that."""
        self._writer.write(data)
        await self._writer.drain()

    async def send_until(self, at: int) -> None:
        """The head, and so much of the body."""
        await self.send(self.head + self.body[:at])

    async def send_instead(self, content: bytes) -> None:
        """The head, and another body."""
        lines = [line for line in self.head.rstrip().split(b"\r\n") if not line.lower().startswith(LENGTHS)]
        await self.send(b"\r\n".join([*lines, b"Content-Length: %d" % len(content), b"", content]))

    async def send_error(self, status: str, body: str, *headers: str) -> None:
        """An answer of Triton's, or of who is before it, without an inference."""
        lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", body]
        await self.send("\r\n".join(lines).encode())

    def end(self) -> None:
        """No more from this side; the other one may still send."""
        self._writer.write_eof()

    def reset(self) -> None:
        """The connection, whatever is still to be sent."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._writer.transport.abort()


# The faults: each spoils one answer, and says whether the connection stays until the gateway closes it ----------------

Fault = Callable[[Answer], Awaitable[bool]]


async def reset_before(answer: Answer) -> bool:
    answer.reset()
    return False


async def reset_after_head(answer: Answer) -> bool:
    await answer.send(answer.head)
    answer.reset()
    return False


async def cut(answer: Answer) -> bool:
    """Of several events, within the second."""
    if answer.several:
        await answer.send_until(answer.middle)
        await asyncio.sleep(PAUSE)
        await answer.send(answer.body[answer.middle : answer.middle + 15])
    else:
        await answer.send_until(len(answer.body) // 2)
    return False


async def cut_in_character(answer: Answer) -> bool:
    """The first of more than a byte; what has none is cut after a quarter."""
    at = next((n for n, byte in enumerate(answer.body) if byte >= 0xC2), len(answer.body) // 4)
    await answer.send_until(at + 1)
    return False


async def half_close(answer: Answer) -> bool:
    """Of several events, after the first."""
    await answer.send_until(answer.middle)
    await asyncio.sleep(PAUSE)
    answer.end()
    return True


async def silence_before(answer: Answer) -> bool:
    return True


async def silence_within(answer: Answer) -> bool:
    await answer.send_until(answer.middle)
    return True


async def garbage(answer: Answer) -> bool:
    await answer.send(GARBAGE)
    return False


async def garbage_in_body(answer: Answer) -> bool:
    """HTTP's own framing is in order, and what is in it is noise."""
    noise = (GARBAGE * (len(answer.content) // len(GARBAGE) + 1))[: len(answer.content)]
    await answer.send_instead(b"data: " + noise.replace(b"\n", b" ") + b"\n\n" if answer.way == "events" else noise)
    return True


async def error_as_200(answer: Answer) -> bool:
    body = f'{{"error":"{SECRET}"}}'
    await answer.send_error("200 OK", f"data: {body}\n\n" if answer.way == "events" else body)
    return True


async def endless_line(answer: Answer) -> bool:
    """An event, or a JSON text, that does not end."""
    begun = b'data: {"text_output":"' if answer.way == "events" else b'{"text_output":"'
    await answer.send(b"HTTP/1.1 200 OK\r\n\r\n" + begun)
    while True:
        await answer.send(b"a" * (1 << 18))


async def endless_header(answer: Answer) -> bool:
    await answer.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        await answer.send(b"a" * (1 << 13))


async def drip(answer: Answer) -> bool:
    """In single bytes, and to the end."""
    raw = answer.head + answer.body
    for at in range(min(len(raw), DRIPPED)):
        await answer.send(raw[at : at + 1])
        await asyncio.sleep(0)
    await answer.send(raw[DRIPPED:])
    return True


async def slow_drip(answer: Answer) -> bool:
    """Of what is left after half, a byte each 50 ms."""
    await answer.send_until(answer.middle)
    for at in range(answer.middle, len(answer.body)):
        await answer.send(answer.body[at : at + 1])
        await asyncio.sleep(0.05)
    return True


async def failure(answer: Answer) -> bool:
    await answer.send_error("500 Internal Server Error", f'{{"error":"{SECRET}"}}')
    return True


async def busy(answer: Answer) -> bool:
    await answer.send_error("503 Service Unavailable", SECRET)
    return True


async def busy_for_a_time(answer: Answer) -> bool:
    await answer.send_error("503 Service Unavailable", SECRET, "Retry-After: 7")
    return True


async def queue_full(answer: Answer) -> bool:
    await answer.send_error("503 Service Unavailable", '{"error":"Exceeds maximum queue size"}')
    return True


async def wrong_dtype(answer: Answer) -> bool:
    """Each tensor is said to be of another datatype; in JSON, which says none, text is a number."""
    if answer.way == "grpc":
        told = re.compile(rb"(?<=[\x04\x05])(FP32|BYTES|UINT8|INT16)(?=\x1a)")
        await answer.send(answer.head + told.sub(lambda found: OTHER[found[0]], answer.body))
    elif answer.way == "tensors":
        told = re.compile(rb'(?<="datatype":")\w+(?=")')
        await answer.send_instead(told.sub(lambda found: OTHER[found[0]], answer.content))
    else:
        await answer.send_instead(re.sub(rb'"text_output":"(\\.|[^"\\])*"', b'"text_output":7', answer.content))
    return True


async def wrong_length(answer: Answer) -> bool:
    """Each tensor has other bytes than its shape says; in JSON, text is a list within a list."""
    if answer.way == "grpc":
        told = re.compile(rb"((?:FP32|BYTES|UINT8|INT16)\x1a[\x01-\x08])[\x00-\x7f]")  # the first number of the shape
        await answer.send(answer.head + told.sub(rb"\g<1>\x71", answer.body))
    elif answer.way == "tensors":
        told = re.compile(rb'(?<="binary_data_size":)\d+')
        await answer.send_instead(told.sub(lambda found: b"%d" % (int(found[0]) - 1), answer.content))
    else:
        await answer.send_instead(re.sub(rb'"text_output":("(\\.|[^"\\])*")', rb'"text_output":[[\1]]', answer.content))
    return True


FAULTS: dict[str, Fault] = {
    "resets before the head": reset_before,
    "resets after the head": reset_after_head,
    "cuts half-way, a stream within an event": cut,
    "cuts within a character": cut_in_character,
    "half-closes half-way": half_close,
    "is silent": silence_before,
    "falls silent half-way": silence_within,
    "drips past the deadline": slow_drip,
    "drips, and ends in time": drip,
    "sends garbage": garbage,
    "sends garbage as the body": garbage_in_body,
    "sends a line without an end": endless_line,
    "sends a header without an end": endless_header,
    "says 200, and then an error": error_as_200,
    "says 500": failure,
    "says 503": busy,
    "says 503 with `Retry-After: 7`": busy_for_a_time,
    "says 503, its own queue is full": queue_full,
    "names another datatype": wrong_dtype,
    "gives more or less than the shape": wrong_length,
}
OVER_GRPC = (
    *(reset_before, reset_after_head, cut, half_close, silence_before, silence_within),
    *(garbage, wrong_dtype, wrong_length),
)
PAST_DEADLINE = (silence_before, silence_within, slow_drip)


class Proxy:
    """One port before one of Triton's. `fault` is done to each answer that begins while it is set.

    `asked` counts the inferences.
    """

    def __init__(self, target: str, *, grpc: bool = False) -> None:
        """`target` is host:port."""
        self.fault: Fault | None = None
        self.asked = 0
        self.port = 0
        self._target = target.rpartition(":")
        self._relay = self._relay_grpc if grpc else self._relay_http
        self._server: asyncio.Server | None = None
        self._open = set[asyncio.Task[None]]()
        self._socket: socket.socket | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def allow(self) -> None:
        """Take connections."""
        if self._socket is None:
            self._socket = self._bound()
        self._server = await asyncio.start_server(self._take, sock=self._socket)

    async def refuse(self) -> None:
        """Take none, and end those that there are. The port is still ours."""
        await self.close()
        self._socket = self._bound()

    async def close(self) -> None:
        """End all."""
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.close()
        self._server = self._socket = None
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _bound(self) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", self.port))
        self.port = made.getsockname()[1]
        return made

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target
        there, onward = await asyncio.open_connection(host, int(port))
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # one of the two has gone
                await self._relay(reader, writer, there, onward)
        finally:
            onward.transport.abort()
            writer.close()

    async def _relay_http(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: asyncio.StreamReader,
        onward: asyncio.StreamWriter,
    ) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            onward.write(head + await reader.readexactly(int(_field(head, b"content-length") or 0)))
            line = head.partition(b"HTTP/1.1\r\n")[0]
            way = next((way for end, way in WAYS.items() if line.endswith(end)), None)
            self.asked += way is not None
            fault = self.fault if way is not None else None
            pieces: list[bytes] = []
            async for piece in _read_answer(there):
                pieces.append(piece)
                if fault is None:
                    writer.write(piece)
                    await writer.drain()
            if fault is not None and way is not None and not await fault(Answer(way, pieces, writer)):
                return

    async def _relay_grpc(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: asyncio.StreamReader,
        onward: asyncio.StreamWriter,
    ) -> None:
        asking = asyncio.create_task(_pass(reader, onward))
        spoilt: dict[bytes, tuple[Fault, list[bytes]]] = {}  # by the id of its stream, what is done to which frames
        try:
            while True:
                head = await there.readexactly(9)
                frame = head + await there.readexactly(int.from_bytes(head[:3], "big"))
                stream, kind, ends = head[5:], head[3], head[4] & END_STREAM
                if kind == HEADERS and not ends:
                    self.asked += 1
                    if self.fault is not None:
                        spoilt[stream] = self.fault, []
                if kind > HEADERS or stream not in spoilt:
                    writer.write(frame)
                    await writer.drain()
                    continue
                fault, frames = spoilt[stream]
                frames.append(frame)
                if ends and not await fault(Answer("grpc", frames, writer)):
                    return
        finally:
            asking.cancel()
            await asyncio.wait([asking])


def _field(head: bytes, name: bytes) -> bytes | None:
    """The value of a header of HTTP/1.1."""
    found = re.search(rb"\r\n%b: *([^\r]*)\r\n" % name, head, re.IGNORECASE)
    return found and found[1]


async def _read_answer(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """An answer of Triton's: its head; its body, or each of its chunks as it comes."""
    head = await reader.readuntil(b"\r\n\r\n")
    yield head
    if length := int(_field(head, b"content-length") or 0):
        yield await reader.readexactly(length)
    elif _field(head, b"transfer-encoding"):
        size = 1
        while size:
            line = await reader.readuntil(b"\r\n")
            size = int(line, 16)
            yield line + await reader.readexactly(size + 2)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All that comes, and then that nothing more does."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


async def main(target: str, port: str, fault: str) -> None:
    """Spoil every inference, until Ctrl-C."""
    proxy = Proxy(target)
    proxy.port, proxy.fault = int(port), FAULTS[fault]
    await proxy.allow()
    await asyncio.Event().wait()


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[3] not in FAULTS:
        sys.exit("\n  ".join(["usage: python -m tests.chaos.proxy HOST:PORT PORT FAULT, which is one of:", *FAULTS]))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
