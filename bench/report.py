"""What a bench run prints and keeps: a table per scenario, the figures that are promised, and a file of all samples."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.load import FOREIGN_LIMIT, Sample
from bench.scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
METRICS = ("rate", "cpu", "p50", "p99")
Samples = dict[str, dict[str, list[Sample]]]  # scenario → target → one sample per round


class Figure(NamedTuple):
    """A figure that is promised, good at `must` or beyond, towards `aim`; or one that is only told."""

    name: str
    value: float
    must: float | None = None
    aim: float = 0

    @property
    def line(self) -> str:
        """Its row of the table."""
        if self.must is None:
            return f"  {self.name:62}{self.value:9.2f}"
        sign = "≥" if self.aim > self.must else "≤"
        good = self.value >= self.must if sign == "≥" else self.value <= self.must
        return f"  {self.name:62}{self.value:9.2f}   {sign} {self.must:<7g}{self.aim:<7g}{'' if good else 'missed'}"


def median_of(taken: list[Sample], metric: str) -> float:
    """The median of a metric over the rounds."""
    values: list[float] = [getattr(sample, metric) for sample in taken]
    return median(values)


def ratio(taken: list[Sample], to: list[Sample], metric: str) -> float:
    """The median over the rounds of one target's figure over another's of the same round."""
    ratios: list[float] = [getattr(own, metric) / getattr(other, metric) for own, other in zip(taken, to, strict=True)]
    return median(ratios)


def added(taken: list[Sample], direct: list[Sample]) -> list[float]:
    """What a target adds to the p50 of the one behind it, in ms, round by round."""
    return [own.p50 - other.p50 for own, other in zip(taken, direct, strict=True)]


def report(samples: Samples, figures: list[Figure]) -> str:
    """All tables: medians, the median over the rounds of each ratio to nginx, and the promised figures."""
    lines: list[str] = []
    for scenario, targets in samples.items():
        unit = "events/s" if scenario.startswith(("stream-paced", "many-")) else "   req/s"
        to = "÷nginx" if "nginx" in targets else "÷first"
        lines += ["", f"{scenario:24}{unit}  {to}    CPU µs  {to}    p50 ms  {to}    p99 ms  {to}"]
        lines += [_row(scenario, name, taken, targets) for name, taken in targets.items()]
    if figures:
        lines += ["", f"{'promised':64}{'is':>9}   must     aim", *(figure.line for figure in figures)]
    taken = [sample for targets in samples.values() for each in targets.values() for sample in each]
    if noisy := sum(sample.foreign > FOREIGN_LIMIT for sample in taken):
        lines += [
            "",
            f"~ {noisy} of {len(taken)} measurements were disturbed by others: run again when it is quiet.",
        ]
    return "\n".join(lines)


def _row(scenario: str, name: str, taken: list[Sample], targets: Mapping[str, list[Sample]]) -> str:
    to = targets.get("nginx") or next(iter(targets.values()))
    asked = SCENARIOS.get(scenario)
    cells = [
        f"{median_of(taken, metric):10,.{0 if metric in ('rate', 'cpu') else 2}f}{ratio(taken, to, metric):8.3g}"
        for metric in METRICS
    ]
    disturbed = any(sample.foreign > FOREIGN_LIMIT for sample in taken)
    row = f"{'~' if disturbed else ' '} {name:21}" + "".join(cells)
    if "upstream" in targets and name != "upstream":
        row += f"   adds {median(added(taken, targets['upstream'])) * 1e3:.0f} µs"
    elif asked and asked.events:
        row += f"   {median_of(taken, 'rate') * asked.events:,.0f} events/s"
    return row


def promised(samples: Samples) -> list[Figure]:
    """The figures that these samples allow, each with what it must be and what we aim at."""
    made: list[Figure] = []

    def add(name: str, must: float, aim: float, value: Callable[[], float]) -> None:
        try:
            made.append(Figure(name, value(), must, aim))
        except KeyError:  # it was not measured in this run
            return

    def of(scenario: str, name: str = "gateway") -> list[Sample]:
        return samples[scenario][name]

    def to_nginx(scenario: str) -> float:
        return ratio(of(scenario), of(scenario, "nginx"), "rate")

    def paced() -> float:
        ours, theirs = (
            added(of("stream-paced", name), of("stream-paced", "upstream")) for name in ("gateway", "nginx")
        )
        return median(own / other for own, other in zip(ours, theirs, strict=True))

    add("unary chat, 16 connections: req/s ÷ nginx", 0.14, 0.20, lambda: to_nginx("unary-16"))
    for peer, must, aim in (("tensorzero", 1.3, 2.0), ("portkey", 7.0, 10.0), ("litellm", 70.0, 100.0)):
        add(f"the same ÷ {peer}", must, aim, lambda peer=peer: ratio(of("unary-16"), of("unary-16", peer), "rate"))  # type: ignore[misc]
    add("unloaded p50 added over nginx, ms", 0.30, 0.18, lambda: median(added(of("unary-1"), of("unary-1", "nginx"))))
    add("stream burst: events/s ÷ nginx", 0.30, 0.40, lambda: to_nginx("stream-burst"))
    add("stream paced: added p50 per event ÷ nginx's", 4.0, 3.0, paced)
    add("CPU per request at 64 connections ÷ at 16", 1.15, 1.05, lambda: ratio(of("unary-64"), of("unary-16"), "cpu"))
    return made


def keep(samples: Samples, figures: list[Figure], **about: object) -> Path:
    """Write every sample with what is needed to compare it later; the file."""
    described = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    record = {
        "revision": described.stdout.strip(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        **about,
        "figures": [figure._asdict() for figure in figures],
        "samples": {
            scenario: {name: [dataclasses.asdict(sample) for sample in taken] for name, taken in targets.items()}
            for scenario, targets in samples.items()
        },
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False))
    return file
