"""`make soak`, a few seconds of it; and that it sees what grows."""

import asyncio
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from scripts.load import Ask, Seen
from scripts.mixture import BROKEN, GARBAGE
from scripts.reconcile import Ledger
from scripts.soak import Held, Outcome, Plan, growth, shares, slope, soak, table
from scripts.telling import Holding
from scripts.triton import Triton

HELD = Held(Holding(10, 0, {"Task": 10}, 1_000, 1 << 20, 0, 0), sockets=9, files=28, resident=100 << 10)
LEDGER = Ledger({}, [], [], [], {})
TRIED = (("chat", True), (BROKEN, False), ("chat", False))
GROWN = ("it has 11 tasks", "it has 10 sockets", "it has 29 files", "its memory grows by 60.0")


async def test_a_few_seconds_of_everything(triton: Triton, tmp_path: Path) -> None:
    plan = Plan(minutes=0.2, warm=0.06, level=0.1, rest=1.0, rate=60, seed=1)
    outcome = await soak(triton, f"sqlite:{tmp_path}/conch.db", tmp_path, plan)
    lasting = ("memory", "sockets", "files")  # are told by half an hour
    assert [fault for fault in outcome.faults if not any(word in fault for word in lasting)] == []
    kinds = {seen.ask.kind for seen in outcome.seen}
    assert kinds >= {BROKEN, GARBAGE, "chat", "completions", "responses", "embeddings", "speech", "transcriptions"}
    assert len(outcome.ledger.usage) > 100
    assert "abandoned by their client" in await asyncio.to_thread(table, outcome)


def steady(per_minute: float, spread: float = 300.0) -> list[tuple[float, int]]:
    """Half an hour of memory in KiB, each second's."""
    dice = Random(1)
    return [(s / 60, round(100_000 + per_minute * s / 60 + dice.gauss(0, spread))) for s in range(1800)]


@pytest.mark.parametrize("per_minute", [-60, 0, 60])
def test_the_slope_of_memory(per_minute: float) -> None:
    found = slope(steady(per_minute))
    assert abs(found.value - per_minute) < 2 * found.noise
    assert 0 < found.noise < 20


def test_what_grew_is_named() -> None:
    late = HELD._replace(told=Holding(11, 0, {"Task": 11}, 1_000, 1 << 20, 0, 0), sockets=10, files=29)
    grown = Outcome([], LEDGER, HELD, late, [], slope(steady(60, spread=0)), [])
    assert [fault for fault, start in zip(growth(grown), GROWN, strict=True) if not fault.startswith(start)] == []
    level = replace(grown, late=HELD, slope=slope(steady(0)))
    assert list(growth(level)) == []


def test_too_few_that_left_are_a_fault() -> None:
    left, broken, well = (Seen(Ask(b"", kind=kind), 1, left=left) for kind, left in TRIED)
    assert list(shares([left] * 10 + [broken] * 5 + [well] * 85)) == []
    assert [told.split(" of")[0] for told in shares([left] * 5 + [broken] * 2 + [well] * 93)] == ["5.0%", "2.0%"]
