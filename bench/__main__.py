"""`make bench`: the gateway's speed against nginx in front of the same static Triton, interleaved.

    python -m bench [--base REVISION] [--seconds 3] [--rounds 3]

The ratios to nginx within a run are the figures to trust: absolute ones drift with the machine, and what is
under 10 % is noise. With --base, that revision runs as a further target: what a change did to speed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bench.load import FOREIGN_LIMIT, Load, Sample, measure
from bench.nginx import EVENTS
from bench.targets import BenchError, Target, check, gateway, proxy, static_triton

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
METRICS = ("rate", "cpu", "p50", "p99")
UNMETERED = "limits and ledger off"
Samples = dict[str, dict[str, list[Sample]]]  # load → target → one sample per round


def body(stream: bool = False) -> bytes:
    """The chat request of every load: 173 bytes, and a few more when it asks for a stream."""
    chat = {
        "model": "assistant",
        "messages": [
            {"role": "system", "content": "Be very brief."},
            {"role": "user", "content": "What does a gateway in front of Triton do for us?"},
        ],
        "max_tokens": 64,
    }
    return json.dumps(chat | {"stream": True} if stream else chat, separators=(",", ":")).encode()


LOADS = [
    *(Load(f"unary, {connections} at a time", connections, body()) for connections in (1, 16, 64)),
    Load(f"stream of {EVENTS} events, 16 at a time", 16, body(stream=True), stream=True),
]


def main() -> None:
    """Run, print the tables, keep the samples in bench/results/."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--base", metavar="REVISION", help="measure this revision beside the working tree")
    parser.add_argument("--seconds", type=int, default=3, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: sys.exit("bench: stopped"))
    try:
        samples = run(ROOT, options.base, options.seconds, options.rounds)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    print(report(samples))
    print(f"\nkept in {keep(samples, options.base).relative_to(ROOT)}")


def run(source: Path, base: str | None, seconds: int, rounds: int) -> Samples:
    """Measure every load on every target, round by round; BenchError when any answer was wrong."""
    if sys.platform != "linux" or (os.cpu_count() or 1) < 2:
        raise BenchError("needs Linux with two cores: one for the system under test, one for the load.")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conch-bench-")))
        upstream = stack.enter_context(static_triton(folder))
        targets = [stack.enter_context(proxy(folder, upstream))]
        targets.append(stack.enter_context(gateway("gateway", source, folder, upstream)))
        targets.append(stack.enter_context(gateway(UNMETERED, source, folder, upstream, metered=False)))
        if base:
            tree = stack.enter_context(worktree(source, base, folder / "tree"))
            targets.append(stack.enter_context(gateway("base", tree, folder, upstream)))
        for target in targets:
            check(target, body(), body(stream=True))
            for load in LOADS[1::2]:
                measure(target, upstream, load, 1)
        return interleave(targets, upstream, seconds, rounds)


def interleave(targets: list[Target], upstream: Target, seconds: int, rounds: int) -> Samples:
    """Every round takes every load through all targets, so that drift of the machine meets all alike."""
    samples: Samples = {load.name: {target.name: [] for target in targets} for load in LOADS}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for load in LOADS:
            for target in targets:
                samples[load.name][target.name].append(measure(target, upstream, load, seconds))
    return samples


@contextlib.contextmanager
def worktree(source: Path, revision: str, folder: Path) -> Iterator[Path]:
    """A checkout of a revision beside the working tree, gone afterwards."""
    git = ["git", "-C", str(source), "worktree"]
    added = subprocess.run(
        [*git, "add", "--detach", str(folder), revision], capture_output=True, text=True, check=False
    )
    if added.returncode:
        raise BenchError(f"git cannot check out {revision}: {added.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True, capture_output=True)


def report(samples: Samples) -> str:
    """A table per load: medians, and the median over the rounds of each ratio to nginx."""
    lines: list[str] = []
    for load, targets in samples.items():
        lines += ["", f"{load:34}   req/s ÷nginx   CPU µs ÷nginx   p50 ms ÷nginx   p99 ms ÷nginx"]
        for name, taken in targets.items():
            cells = [
                f"{median(getattr(sample, metric) for sample in taken):9,.{0 if metric == 'rate' else 2}f}"
                f"{ratio(taken, targets['nginx'], metric):7.2f}"
                for metric in METRICS
            ]
            lines.append(f"  {name:30}" + "".join(cells))
            if "stream" in load:
                lines[-1] += f"   {median(sample.rate for sample in taken) * EVENTS:11,.0f} events/s"
        for name in ("base", UNMETERED):
            if name in targets:
                cells = [f"{'':9}{ratio(targets['gateway'], targets[name], metric):7.2f}" for metric in METRICS]
                lines.append(f"  {f'gateway ÷ {name}':30}" + "".join(cells))
    noisy = sum(
        sample.foreign > FOREIGN_LIMIT for each in samples.values() for taken in each.values() for sample in taken
    )
    if noisy:
        lines += [
            "",
            f"{noisy} measurements stayed disturbed by other work: run again on an idle machine.",
        ]
    return "\n".join(lines)


def ratio(taken: list[Sample], to: list[Sample], metric: str) -> float:
    """The median over the rounds of one target's figure over another's of the same round."""
    ratios: list[float] = [getattr(own, metric) / getattr(other, metric) for own, other in zip(taken, to, strict=True)]
    return median(ratios)


def keep(samples: Samples, base: str | None) -> Path:
    """Write every sample with what is needed to compare it later."""
    revision = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    record = {
        "revision": revision,
        "base": base,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "samples": {
            load: {name: [dataclasses.asdict(sample) for sample in taken] for name, taken in targets.items()}
            for load, targets in samples.items()
        },
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False))
    return file


if __name__ == "__main__":
    main()
