"""What more of something does to the gateway: its memory over 100,000 requests, its CPU with a second worker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bench.load import Sample, measure, resident
from bench.report import ROOT, Figure, ratio
from bench.scenarios import SCENARIOS
from bench.targets import LOAD_CORE, SYSTEM_CORE, Upstreams, check, gateway

NAMES = ("memory", "workers")
REQUESTS = 100_000
TWO_CORES = (SYSTEM_CORE, LOAD_CORE + 1 if (os.cpu_count() or 1) > 2 else LOAD_CORE)


def memory(folder: Path, behind: Upstreams) -> list[Figure]:
    """The gateway's resident memory once it is ready, and after so many chats by 16 connections."""
    scenario = SCENARIOS["unary-16"]
    with gateway("memory", ROOT, folder, behind) as target:
        idle, served = resident(target.pid), 0.0
        while served < REQUESTS:
            served += measure(target, behind, scenario, 5).rate * 5
        return [
            Figure("RSS when ready, MiB", idle, 55, 40),
            Figure(f"RSS after {REQUESTS:,} requests, MiB", resident(target.pid), 65, 45),
        ]


def workers(folder: Path, behind: Upstreams, rounds: int, seconds: float) -> tuple[dict[str, list[Sample]], Figure]:
    """Chats by 64 connections to one worker on a core, and to two workers on two."""
    scenario = SCENARIOS["unary-64"]
    cores: dict[str, Sequence[int]] = {"one worker": TWO_CORES[:1], "two workers": TWO_CORES}
    samples: dict[str, list[Sample]] = {name: [] for name in cores}
    with (
        gateway("one worker", ROOT, folder, behind, cores=cores["one worker"]) as one,
        gateway("two workers", ROOT, folder, behind, workers=2, cores=cores["two workers"]) as two,
    ):
        for target in (one, two):
            check(target, scenario, behind)
            measure(target, behind, scenario, 1)
        for _ in range(rounds):
            for target in (one, two):
                samples[target.name].append(measure(target, behind, scenario, seconds))
    value = ratio(samples["two workers"], samples["one worker"], "cpu")
    return samples, Figure("CPU per request, two workers ÷ one", value, 1.10, 1.0)
