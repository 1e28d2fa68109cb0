"""`make profile`: where the gateway's time goes in one scenario, as py-spy sees it from outside.

    python -m bench.profiling unary-16 [--seconds 10] [--native]

Prints the functions that the samples were in (self) and those above them (total), and writes a flamegraph.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

from bench.load import measure
from bench.report import RESULTS, ROOT
from bench.scenarios import SCENARIOS, Scenario
from bench.targets import LOAD_CORE, BenchError, Target, Upstreams, check, gateway, upstreams

SPY = Path(sys.executable).with_name("py-spy")
RATE = 400  # samples per second
ROWS = 30
IDLE = "_worker (concurrent/futures/thread.py"  # a thread that waits; some kernels do not tell py-spy that it does


def main() -> None:
    """Profile one scenario; print, and write the flamegraph."""
    parser = argparse.ArgumentParser(prog="python -m bench.profiling")
    parser.add_argument("scenario", choices=SCENARIOS, metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--native", action="store_true", help="C functions too; slower")
    options = parser.parse_args()
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: sys.exit("profile: stopped"))
    os.sched_setaffinity(0, {LOAD_CORE})
    RESULTS.mkdir(exist_ok=True)
    graph = RESULTS / f"{options.scenario}.svg"
    scenario = SCENARIOS[options.scenario]
    try:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conch-bench-")))
            behind = stack.enter_context(upstreams(folder))
            target = stack.enter_context(gateway("gateway", ROOT, folder, behind))
            check(target, scenario, behind)
            measure(target, behind, scenario, 1)
            stacks = folder / "stacks"
            for form, output in (("raw", stacks), ("flamegraph", graph)):
                wanted = ["-f", form, "-o", str(output), *(["--native"] if options.native else [])]
                spy(target, behind, scenario, options.seconds, wanted)
            print(report(stacks.read_text()))
    except BenchError as error:
        sys.exit(f"profile: {error}")
    print(f"\nflamegraph: {graph.relative_to(ROOT)}")


def spy(target: Target, behind: Upstreams, scenario: Scenario, seconds: int, options: list[str]) -> None:
    """Sample the gateway's stacks while the scenario runs. Raises BenchError."""
    load = threading.Thread(target=measure, args=(target, behind, scenario, seconds + 2), daemon=True)
    load.start()
    command = [str(SPY), "record", "-p", str(target.pid), "-d", str(seconds), "-r", str(RATE), "-F", *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    except OSError as error:
        raise BenchError(f"py-spy cannot be run ({error}); `make profile` installs it.") from error
    if done.returncode:
        raise BenchError(f"py-spy failed (it needs root, or ptrace of other processes): {done.stderr[-500:]}")
    load.join()


def report(stacks: str) -> str:
    """The tables of collapsed stacks: `a;b;c 12` is c, called by b, called by a, in 12 samples."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for line in stacks.splitlines():
        frames, _, count = line.rpartition(" ")
        called = frames.split(";")
        if called[-1].startswith(IDLE):
            continue
        own[called[-1]] += int(count)
        for frame in set(called):
            whole[frame] += int(count)
    samples = own.total() or 1

    def table(title: str, counter: Counter[str], other: Counter[str]) -> list[str]:
        rows = [
            f"  {count / samples:6.1%}  {other[frame] / samples:6.1%}   {frame}"
            for frame, count in counter.most_common(ROWS)
        ]
        return [title, *rows, ""]

    lines = table(f"  self     total   of {samples} samples", own, whole)
    return "\n".join(lines + table("  total    self", whole, own))


if __name__ == "__main__":
    main()
