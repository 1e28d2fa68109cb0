"""One measurement: a load for some seconds, what the target's processes used meanwhile, and what else ran."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench import paced
from bench.scenarios import Scenario
from bench.targets import LOAD_CORE, SYSTEM_CORE, BenchError, Target, Upstreams

SCRIPT = Path(__file__).with_name("wrk.lua")
TICK = os.sysconf("SC_CLK_TCK")
FOREIGN_LIMIT = 0.10  # of one core: above this a measurement is taken again
ATTEMPTS = 3
PATIENCE = 10  # seconds that a disturbed measurement waits for quiet before it is taken again


@dataclass(frozen=True)
class Sample:
    """A request's figures, or of a paced stream an event's.

    rate: how many per second. cpu: µs of the target for each. p50, p99: ms. foreign: cores used by others.
    """

    rate: float
    cpu: float
    p50: float
    p99: float
    foreign: float


def measure(target: Target, behind: Upstreams, scenario: Scenario, seconds: float) -> Sample:
    """Measure until a sample is undisturbed, ATTEMPTS times at most; the least disturbed one is returned."""
    samples = [_measure(target, behind, scenario, seconds)]
    while samples[-1].foreign > FOREIGN_LIMIT and len(samples) < ATTEMPTS:
        _await_quiet(target, behind)
        samples.append(_measure(target, behind, scenario, seconds))
    return min(samples, key=lambda sample: sample.foreign)


def resident(root: int, line: Literal["VmRSS", "VmHWM"] = "VmRSS") -> float:
    """MiB of memory that a process and its descendants have, what they share counted in each; VmHWM: had at most."""
    total = 0
    for pid in tree(root):
        for told in Path(f"/proc/{pid}/status").read_text().splitlines():
            if told.startswith(f"{line}:"):
                total += int(told.split()[1])
    return total / 1024


def tree(root: int) -> dict[int, float]:
    """A process and its descendants, and the CPU seconds (user and system) of each so far."""
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = entry.read_text()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        fields = stat.rpartition(")")[2].split()
        pid = int(entry.parent.name)
        parents[pid] = int(fields[1])
        used[pid] = (int(fields[11]) + int(fields[12])) / TICK
    members, found = [root], {}
    while members:
        pid = members.pop()
        found[pid] = used.get(pid, 0.0)
        members += [child for child, parent in parents.items() if parent == pid]
    return found


def _await_quiet(target: Target, behind: Upstreams) -> None:
    """Return when others leave the two cores alone for half a second, or after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    foreign = 1.0
    while foreign > FOREIGN_LIMIT and time.monotonic() < deadline:
        busy, mine = _busy(), _mine(target, behind)
        time.sleep(0.5)
        foreign = ((_busy() - busy) - (_mine(target, behind) - mine)) / 0.5


def _measure(target: Target, behind: Upstreams, scenario: Scenario, seconds: float) -> Sample:
    return sampled(target, behind, lambda: (_paced if scenario.paced else _wrk)(target, scenario, seconds))


def sampled(target: Target, behind: Upstreams, run: Callable[[], dict[str, float]]) -> Sample:
    """What a load did to its target. `run` returns its requests, its seconds, and their p50 and p99 in ms."""
    started, busy, mine = time.monotonic(), _busy(), _mine(target, behind)
    used = _used(target)
    result = run()
    used = _used(target) - used
    foreign = (_busy() - busy) - (_mine(target, behind) - mine)
    return Sample(
        rate=result["requests"] / result["seconds"],
        cpu=used / result["requests"] * 1e6,
        p50=result["p50"],
        p99=result["p99"],
        foreign=max(0.0, foreign / (time.monotonic() - started)),
    )


def _wrk(target: Target, scenario: Scenario, seconds: float) -> dict[str, float]:
    url = f"http://127.0.0.1:{target.port}{target.path(scenario)}"
    options = f"-t1 -c{scenario.connections} -d{seconds:.0f}s --timeout 30s".split()
    heads = [f"{name}: {value}" for name, value in target.heads(scenario).items()]
    with tempfile.NamedTemporaryFile(prefix="conch-bench-") as body:  # an argument holds 128 KiB at most
        body.write(target.body(scenario))
        body.flush()
        command = ["wrk", *options, "-s", str(SCRIPT), url, "--", body.name, *heads]
        try:
            done = subprocess.run(
                ["taskset", "-c", str(LOAD_CORE), *command],
                check=True,
                capture_output=True,
                text=True,
                timeout=seconds + 40,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise BenchError(f"{target.name}, {scenario.name}: wrk failed: {error}") from error
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if result["failed"] or not result["requests"]:
        raise BenchError(f"{target.name}, {scenario.name}: {result['failed']} of {result['requests']} requests failed.")
    return result


def request(target: Target, scenario: Scenario, seconds: float) -> bytes:
    """The request for a paced stream that takes so long, on a connection of its own."""
    body = scenario.lasting(seconds)
    heads = {"Host": "bench", "Content-Length": str(len(body)), "Connection": "close", **target.heads(scenario)}
    lines = [f"POST {target.path(scenario)} HTTP/1.1", *(f"{name}: {value}" for name, value in heads.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def _paced(target: Target, scenario: Scenario, seconds: float) -> dict[str, float]:
    asked, events = request(target, scenario, seconds), round(seconds / scenario.interval)
    try:
        return paced.run(target.port, asked, scenario.connections, events, seconds)
    except (OSError, paced.PacedError) as error:
        raise BenchError(f"{target.name}, {scenario.name}: {error}") from error


def _mine(target: Target, behind: Upstreams) -> float:
    """CPU seconds so far of all that the measurement itself runs."""
    mine = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    ours = {each.pid: _used(each) for each in (target, *behind)}
    return sum(ours.values()) + sum(usage.ru_utime + usage.ru_stime for usage in mine)


def _used(target: Target) -> float:
    return sum(tree(target.pid).values())


def _busy() -> float:
    """CPU seconds so far of the two cores: user, nice, system, interrupts (a process is charged its own), steal."""
    total = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in (f"cpu{SYSTEM_CORE}", f"cpu{LOAD_CORE}"):
            total += sum(int(fields[column]) for column in (0, 1, 2, 5, 6, 7))
    return total / TICK
