"""Many paced streams at once: the longest silence that the gateway makes in any of them, and what memory they take.

The load's own stalls do not count: an event bears the time at which the replayer sent it, its arrival is the
kernel's, and by as much as the replayer was late, a silence is shorter.
"""

from __future__ import annotations

import resource
import selectors
import socket
import struct
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import quantiles

from bench.load import Sample, request, resident, sampled
from bench.paced import STAMP
from bench.report import ROOT, Figure, Samples
from bench.scenarios import SCENARIOS, Scenario
from bench.targets import BenchError, Target, Upstreams, check, gateway, replayer

TELL_ARRIVAL = 35  # SO_TIMESTAMPNS of asm-generic/socket.h
SECOND = 1_000_000_000  # ns
SILENCE = 0.25  # seconds without an event that are too many
SLOTS = 50
WARMING = 20  # streams at once, before memory is looked at
SETTLING = 10.0  # seconds from the last stream's end until memory is looked at
FILES = 200  # beside those of the streams


@dataclass(frozen=True)
class Crowd:
    """So many streams with an event every `interval` seconds each, for `seconds` if none is late."""

    streams: int
    interval: float
    seconds: int = 15
    promised: bool = True


CROWDS = {
    "many-100": Crowd(1_000, 0.1),
    "many-20": Crowd(250, 0.02),
    "many-20-1000": Crowd(1_000, 0.02, 4, promised=False),
}


class Stream:
    """One stream, as its client sees it; times in ns.

    `delays` are those of its events, `longest` is the longest silence, `too_long` how many there were.
    """

    def __init__(self, port: int, interval: float) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.SOL_SOCKET, TELL_ARRIVAL, 1)
        self.delays = array("q")
        self.longest = self.too_long = 0
        self.rest = b""
        self._interval = round(interval * SECOND)
        self._sent = self._came = 0

    def read(self, ahead: int) -> bool:
        """Takes what has come; False at the end. `ahead`: of the replayer's clock, that of the kernel."""
        data, told, _, _ = self.socket.recvmsg(1 << 16, 64)
        if not data:
            return False
        seconds, ns = struct.unpack("qq", told[0][2]) if told else (0, time.time_ns())  # its first ones bear no time
        came, end = seconds * SECOND + ns - ahead, 0
        data = self.rest + data
        for found in STAMP.finditer(data):
            if found.end() < len(data):  # else its digits may go on
                self._note(int(found[1]), came)
                end = found.end()
        self.rest = data[max(end, len(data) - 300) :]
        return True

    def _note(self, sent: int, came: int) -> None:
        self.delays.append(came - sent)
        if self._sent:
            late = max(0, sent - self._sent - self._interval)
            silence = came - self._came - late
            self.longest = max(self.longest, silence)
            self.too_long += silence > SILENCE * SECOND
        self._sent, self._came = sent, came


def measure(names: Sequence[str], folder: Path, behind: Upstreams) -> tuple[Samples, list[Figure]]:
    """These crowds, each through a gateway of its own, and straight from the replayer."""
    samples: Samples = {}
    figures: list[Figure] = []
    most = max(CROWDS[name].streams for name in names) + FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, max(most, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    for name in names:
        crowd = CROWDS[name]
        scenario = replace(SCENARIOS["stream-paced"], name=name, connections=crowd.streams, interval=crowd.interval)
        with (
            replayer(folder, name, crowd.interval, SLOTS) as paced,
            gateway(f"gateway of {name}", ROOT, folder, behind._replace(replayer=paced)) as target,
        ):
            around = behind._replace(replayer=paced)
            check(target, scenario, around)
            direct, _ = _sample(paced, around, scenario, crowd.seconds)
            _read(target, replace(scenario, connections=WARMING), 1, [])
            memory = [_settled(target.pid)]
            through, streams = _sample(target, around, scenario, crowd.seconds)
            memory += [resident(target.pid, "VmHWM"), _settled(target.pid)]
            if crowd.promised:
                _read(target, scenario, crowd.seconds, [])
                memory.append(_settled(target.pid))
            samples[name] = {"upstream": [direct], "gateway": [through]}
            figures += _figures(name, crowd, streams, memory)
    return samples, figures


def _figures(name: str, crowd: Crowd, streams: Sequence[Stream], memory: Sequence[float]) -> Iterator[Figure]:
    """`memory`: MiB before, at most, after, and after as many again, if they came."""
    longest = max(stream.longest for stream in streams) / 1e6
    before, most, after, *again = memory
    told = {
        "longest silence that the gateway made, ms": (longest, SILENCE * 1e3, 100.0),
        f"silences of over {SILENCE * 1e3:.0f} ms": (sum(stream.too_long for stream in streams), 0, 0),
        "RSS at most, MiB": (most, 250, 150),
        f"RSS {SETTLING:.0f} s after their end, more than before, MiB": (after - before, 10, 5),
    }
    if again:
        told["RSS after as many again, more than after the first, MiB"] = (again[0] - after, 5, 2)
    for what, (value, must, aim) in told.items():
        yield Figure(f"{name}: {what}", value, must if crowd.promised else None, aim)


def _settled(pid: int) -> float:
    """Its resident memory, MiB, when it has rested."""
    time.sleep(SETTLING)
    return resident(pid)


def _sample(target: Target, behind: Upstreams, scenario: Scenario, asked: int) -> tuple[Sample, list[Stream]]:
    streams: list[Stream] = []

    def run() -> dict[str, float]:
        started = time.monotonic()
        _read(target, scenario, asked, streams)
        delays = [delay for stream in streams for delay in stream.delays]
        cuts = quantiles(delays, n=100)
        seconds = time.monotonic() - started
        return {"requests": len(delays), "seconds": seconds, "p50": cuts[49] / 1e6, "p99": cuts[98] / 1e6}

    return sampled(target, behind, run), streams


def _read(target: Target, scenario: Scenario, seconds: int, streams: list[Stream]) -> None:
    """Open the streams, all at once, and read them to their ends. Raises BenchError where one is not whole."""
    asked, ahead = request(target, scenario, seconds), time.time_ns() - time.monotonic_ns()
    deadline = time.monotonic() + seconds * 4 + 10
    with selectors.EpollSelector() as ready:

        def read(timeout: float) -> None:
            for key, _ in ready.select(timeout):
                if not key.data.read(ahead):
                    ready.unregister(key.fileobj)
                    key.data.socket.close()

        for _ in range(scenario.connections):
            stream = Stream(target.port, scenario.interval)
            stream.socket.sendall(asked)
            ready.register(stream.socket, selectors.EVENT_READ, stream)
            streams.append(stream)
            read(0)
        while ready.get_map() and time.monotonic() < deadline:
            read(1)
    for stream in streams:
        stream.socket.close()
        if len(stream.delays) != round(seconds / scenario.interval):
            raise BenchError(f"{target.name}, {scenario.name}: {len(stream.delays)} events, then {stream.rest!r}")
