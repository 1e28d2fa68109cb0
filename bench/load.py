"""One measurement: wrk for some seconds, what the target's processes used meanwhile, and what else ran."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.targets import LOAD_CORE, SYSTEM_CORE, BenchError, Target

SCRIPT = Path(__file__).with_name("chat.lua")
TICK = os.sysconf("SC_CLK_TCK")
FOREIGN_LIMIT = 0.10  # of one core: above this a measurement is taken again
ATTEMPTS = 3


@dataclass(frozen=True)
class Load:
    """What is asked, by how many connections that each ask again as soon as they are answered."""

    name: str
    connections: int
    body: bytes
    stream: bool = False


@dataclass(frozen=True)
class Sample:
    """rate: requests/s. cpu: µs of the target per request. p50, p99: ms. foreign: cores used by others."""

    rate: float
    cpu: float
    p50: float
    p99: float
    foreign: float


def measure(target: Target, upstream: Target, load: Load, seconds: float) -> Sample:
    """Measure until a sample is undisturbed, ATTEMPTS times at most; the least disturbed one is returned."""
    samples: list[Sample] = []
    while not samples or (samples[-1].foreign > FOREIGN_LIMIT and len(samples) < ATTEMPTS):
        samples.append(_measure(target, upstream, load, seconds))
    return min(samples, key=lambda sample: sample.foreign)


def _measure(target: Target, upstream: Target, load: Load, seconds: float) -> Sample:
    started, busy, mine = time.monotonic(), _busy(), _mine(target, upstream)
    used = _used(target.pid)
    result = _wrk(target, load, seconds)
    used = _used(target.pid) - used
    foreign = (_busy() - busy) - (_mine(target, upstream) - mine)
    return Sample(
        rate=result["requests"] / result["seconds"],
        cpu=used / result["requests"] * 1e6,
        p50=result["p50"],
        p99=result["p99"],
        foreign=max(0.0, foreign / (time.monotonic() - started)),
    )


def _wrk(target: Target, load: Load, seconds: float) -> dict[str, float]:
    url = f"http://127.0.0.1:{target.port}{target.stream if load.stream else target.unary}"
    options = f"-t1 -c{load.connections} -d{seconds:.0f}s --timeout 10s".split()
    command = ["taskset", "-c", str(LOAD_CORE), "wrk", *options, "-s", str(SCRIPT), url, "--", target.key]
    try:
        done = subprocess.run(
            [*command, load.body.decode()], check=True, capture_output=True, text=True, timeout=seconds + 15
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchError(f"{target.name}, {load.name}: wrk failed: {error}") from error
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if result["failed"] or not result["requests"]:
        raise BenchError(f"{target.name}, {load.name}: {result['failed']} of {result['requests']} requests failed.")
    return result


def _mine(target: Target, upstream: Target) -> float:
    """CPU seconds so far of all that the measurement itself runs."""
    mine = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return _used(target.pid) + _used(upstream.pid) + sum(usage.ru_utime + usage.ru_stime for usage in mine)


def _used(root: int) -> float:
    """CPU seconds so far (user and system) of a process and its descendants."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = entry.read_text()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        fields = stat.rpartition(")")[2].split()
        pid = int(entry.parent.name)
        parents[pid] = int(fields[1])
        ticks[pid] = int(fields[11]) + int(fields[12])
    tree, total = [root], 0
    while tree:
        pid = tree.pop()
        total += ticks.get(pid, 0)
        tree += [child for child, parent in parents.items() if parent == pid]
    return total / TICK


def _busy() -> float:
    """CPU seconds so far of the two cores: user, nice, system, interrupts (a process is charged its own), steal."""
    total = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in (f"cpu{SYSTEM_CORE}", f"cpu{LOAD_CORE}"):
            total += sum(int(fields[column]) for column in (0, 1, 2, 5, 6, 7))
    return total / TICK
