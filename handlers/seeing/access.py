"""The access log: one line of JSON for each request that has ended. Never content, never a secret.

Lines are gathered and written by a thread of their own: whoever reads the log slowly keeps no request waiting.
"""

import asyncio
import logging
import os
import queue
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from handlers.seeing.metrics import NANO, ending

if TYPE_CHECKING:
    from handlers.door.errors import ApiError
    from handlers.door.lifetime import Request
    from handlers.door.stages import Stage

log = logging.getLogger("conch")

EVERY = 0.1  # seconds between two writes
ATOMIC = 4096  # bytes that a pipe takes as one, also from several workers: PIPE_BUF
MOST = 64 << 20  # bytes that wait for a reader; what comes beyond is lost, and that is said
STDOUT = 1


class StageLine(msgspec.Struct, omit_defaults=True):
    """What a request asked of one of several models."""

    stage: str
    model: str
    total_ms: float
    upstream_ms: float = 0.0


class Line(msgspec.Struct, omit_defaults=True):
    """One request. `key` is the start of the key, `…_ms` are milliseconds, `cost_usd` is exact."""

    time: str
    request_id: str
    method: str
    endpoint: str
    status: int
    total_ms: float
    bytes: int
    code: str = ""
    client_request_id: str = ""
    trace_id: str = ""
    workspace: str = ""
    key: str = ""
    model: str = ""
    stream: bool = False
    upstream_ms: float = 0.0
    first_ms: float = 0.0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    characters: int = 0
    audio_ms: int = 0
    cost_usd: str = ""
    stages: list[StageLine] = []


class AccessLog:
    """Writes to a file descriptor; belongs to the loop that runs when it is made."""

    def __init__(self, file: int = STDOUT) -> None:
        self._file = file
        self._loop = asyncio.get_running_loop()
        self._lines: list[bytes] = []
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._waiting = self._lost = 0  # bytes, lines
        self._thread = threading.Thread(target=self._write, name="access log", daemon=True)
        self._thread.start()
        self._second, self._text = 0, ""

    def note(self, request: "Request", now: float) -> None:
        """A request has ended, at a perf_counter()."""
        self._add(self._line(request, now))

    def refused(self, id: str, error: "ApiError", sent: int) -> None:
        """A request was refused before it was one: of its head, nothing is told."""
        code = error.code or error.type
        self._add(Line(self._time(), id, "other", "other", error.status, 0.0, sent, code))

    def _add(self, line: Line) -> None:
        if not self._lines:
            self._loop.call_later(EVERY, self._flush)
        self._lines.append(_encode(line))

    def _line(self, request: "Request", now: float) -> Line:
        status, code = ending(request)
        route = request.endpoint.route if request.endpoint is not None else f"{request.scope['method']} other"
        method, _, endpoint = route.partition(" ")
        line = Line(
            self._time(), request.id, method, endpoint, status, _ms(now - request.started_at), request.sent, code
        )
        line.client_request_id = (request.client_id or b"").decode()
        line.model = request.model or ""
        if request.upstream_seconds:
            line.upstream_ms = _ms(request.upstream_seconds)
        if request.trace is not None:
            line.trace_id = request.trace.id
        if request.first_at:
            line.stream, line.first_ms = True, _ms(request.first_at - request.started_at)
        authority = request.authority or (request.take.authority if request.take is not None else None)
        if authority is not None:  # also of a key that was refused
            line.workspace, line.key = authority.key.workspace, authority.key.prefix
        cost = _add_usage(line, request)
        if request.stages:
            cost += sum(_add_usage(line, stage) for stage in request.stages)
            line.stages = [_stage(stage) for stage in request.stages]
        if cost:
            line.cost_usd = f"{cost // NANO}.{cost % NANO:09d}"
        return line

    def _time(self) -> str:
        """UTC, ISO 8601, with milliseconds."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{int((now - second) * 1000):03d}Z"

    def _flush(self) -> None:
        """Pass what has been gathered to the thread, in pieces that do not mix with those of other workers."""
        lines, self._lines = self._lines, []
        if self._waiting > MOST:
            self._lost += len(lines)
            return
        if self._lost:
            log.error("access log: %d lines are lost: nobody has read them in time", self._lost)
            self._lost = 0
        piece = b""
        for line in lines:
            if len(piece) + len(line) > ATOMIC:
                self._pass(piece)
                piece = b""
            piece += line
        self._pass(piece)

    def _pass(self, piece: bytes) -> None:
        self._waiting += len(piece)
        self._pieces.put(piece)

    def _write(self) -> None:
        """The thread's life."""
        while (piece := self._pieces.get()) is not None:
            try:
                rest = piece
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except OSError as error:
                log.error("access log: it cannot be written (%s); there is none from here on", error)
                return
            self._loop.call_soon_threadsafe(self._written, len(piece))

    def _written(self, size: int) -> None:
        self._waiting -= size

    async def close(self) -> None:
        """Returns when everything is written, or the reader does not read."""
        self._flush()
        self._pieces.put(None)
        await asyncio.to_thread(self._thread.join, 5)


def _add_usage(line: Line, request: "Request") -> int:
    """What a request used, or a stage of one. Returns its cost in nano-dollars."""
    usage = request.bill.usage if request.bill is not None else None
    if usage is None:
        return 0
    units = usage.units
    line.input_tokens += units.input_tokens
    line.cached_tokens += units.cached_tokens
    line.output_tokens += units.output_tokens
    line.images += units.images
    line.characters += units.characters
    line.audio_ms += units.milliseconds
    return usage.cost


def _stage(stage: "Stage") -> StageLine:
    return StageLine(stage.name, stage.model or "", _ms(stage.lasted), _ms(stage.upstream_seconds))


def _encode(line: Line) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
