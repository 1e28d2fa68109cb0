"""`make bench`: the gateway's speed against nginx in front of the same static Triton, interleaved.

    python -m bench [--only unary-16,stream-burst] [--rounds 3] [--seconds 2] [--base REVISION] [--unmetered]

The ratios to nginx within a run are the figures to trust: absolute ones drift with the machine, and what is
under 10 % is noise. With --base, that revision runs as a further target: what a change did to speed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import growth, many, peers, report
from bench.load import measure
from bench.report import ROOT, Figure, Samples
from bench.scenarios import SCENARIOS, Scenario
from bench.targets import LOAD_CORE, BenchError, Target, Upstreams, check, gateway, proxy, upstreams

SECONDS, PEERS_SECONDS = 2, 6  # of a measurement; the slowest peer answers 11 streams a second


def main() -> None:
    """Run, print the tables, keep the samples in bench/results/."""
    options = _options()
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: sys.exit("bench: stopped"))
    try:
        samples, figures = run(options)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    print(report.report(samples, figures))
    print(f"\nkept in {report.keep(samples, figures, base=options.base).relative_to(ROOT)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument(
        "--only", metavar="NAMES", help=f"some of {', '.join([*SCENARIOS, *growth.NAMES, *many.CROWDS])}"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, help=f"per measurement: {SECONDS}, with peers {PEERS_SECONDS}")
    parser.add_argument("--base", metavar="REVISION", help="measure this revision beside the working tree")
    parser.add_argument("--peers", action="store_true", help="also LiteLLM, Portkey and TensorZero")
    parser.add_argument("--unmetered", action="store_true", help="also without limits and ledger: what these cost")
    options = parser.parse_args()
    options.seconds = options.seconds or (PEERS_SECONDS if options.peers else SECONDS)
    known = [*SCENARIOS, *growth.NAMES, *many.CROWDS]
    options.only = options.only.split(",") if options.only else peers.SCENARIOS if options.peers else known
    if unknown := set(options.only) - set(known):
        parser.error(f"no scenario is called {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    return options


def run(options: argparse.Namespace) -> tuple[Samples, list[Figure]]:
    """Measure every scenario on every target, round by round; BenchError when any answer was wrong."""
    if sys.platform != "linux" or (os.cpu_count() or 1) < 2:
        raise BenchError("needs Linux with two cores: one for the system under test, one for the load.")
    os.sched_setaffinity(0, {LOAD_CORE})
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conch-bench-")))
        behind = stack.enter_context(upstreams(folder))
        samples: Samples = {}
        if scenarios := [SCENARIOS[name] for name in options.only if name in SCENARIOS]:
            samples = compare(scenarios, folder, behind, options)
        figures = report.promised(samples)
        if "memory" in options.only:
            figures += growth.memory(folder, behind)
        if "workers" in options.only:
            samples["workers"], figure = growth.workers(folder, behind, options.rounds, options.seconds)
            figures.append(figure)
        if crowds := [name for name in many.CROWDS if name in options.only]:
            crowded, told = many.measure(crowds, folder, behind)
            samples |= crowded
            figures += told
        return samples, figures


def compare(scenarios: Sequence[Scenario], folder: Path, behind: Upstreams, options: argparse.Namespace) -> Samples:
    """Start the targets, see that each answers rightly, and measure them."""
    with contextlib.ExitStack() as stack:
        targets = [stack.enter_context(proxy(folder, behind))]
        targets.append(stack.enter_context(gateway("gateway", ROOT, folder, behind)))
        if options.unmetered:
            targets.append(stack.enter_context(gateway("unmetered", ROOT, folder, behind, metered=False)))
        if options.base:
            tree = stack.enter_context(worktree(options.base, folder / "tree"))
            targets.append(stack.enter_context(gateway("base", tree, folder, behind)))
        if options.peers:
            targets += stack.enter_context(peers.peers(folder, behind))
        for target in targets:
            for scenario in scenarios:
                check(target, scenario, behind)
                measure(target, behind, scenario, max(options.seconds // 2, 1))
        return interleave(scenarios, targets, behind, options)


def interleave(
    scenarios: Sequence[Scenario], targets: Sequence[Target], behind: Upstreams, options: argparse.Namespace
) -> Samples:
    """Every round takes every scenario through all targets, so that drift of the machine meets all alike."""
    asked = {each: [behind.replayer, *targets] if each.paced else targets for each in scenarios}
    samples: Samples = {scenario.name: {target.name: [] for target in of} for scenario, of in asked.items()}
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        for scenario, of in asked.items():
            for target in of:
                samples[scenario.name][target.name].append(measure(target, behind, scenario, options.seconds))
    return samples


@contextlib.contextmanager
def worktree(revision: str, folder: Path) -> Iterator[Path]:
    """A checkout of a revision beside the working tree, gone afterwards."""
    git = ["git", "-C", str(ROOT), "worktree"]
    added = subprocess.run(
        [*git, "add", "--detach", str(folder), revision], capture_output=True, text=True, check=False
    )
    if added.returncode:
        raise BenchError(f"git cannot check out {revision}: {added.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True, capture_output=True)


if __name__ == "__main__":
    main()
