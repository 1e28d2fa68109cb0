"""`make soak`: every endpoint under a light load for half an hour; what the gateway keeps of it, and whether its
books are right.

    python scripts/soak.py [--minutes 30] [--rate 30] [--clients 24] [--seed N]

A tenth of the requests is abandoned by its client, a twentieth is faulty: for a model whose upstream breaks every
request in another way, or such as nobody should send. Exits with 1 where something grows, or the ledger is off.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, linear_regression, stdev
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import reconcile  # noqa: E402
from scripts.faulty import faulty  # noqa: E402
from scripts.gateways import NotStarted, Process, open_shop, settings  # noqa: E402
from scripts.load import Load, Seen, Target  # noqa: E402
from scripts.mixture import (  # noqa: E402
    ABANDONED,
    BROKEN,
    FAULTY,
    GARBAGE,
    MODELS,
    UNBILLED,
    Tally,
    choose_any,
    repository,
)
from scripts.telling import Holding  # noqa: E402
from scripts.triton import Triton, TritonError  # noqa: E402
from store.records import StoreError  # noqa: E402

WARM, LEVEL = 3.0, 10.0
"""Minutes after which it must not have more, and after which its memory must not grow: by then what has bounds is full,
such as SQLite's 2 MiB of pages, statements for each count of rows, and the heaps of the threads that make sound."""
REST = 65.0
"""Seconds without a request, after which connections to Triton that are kept for the next one have been closed."""
PATIENCE = 2
"""Further rests after which what is still open stays."""
BLOCKS = 30
"""Of the time that is looked at: what memory was in each is one point of its slope."""
NEARLY = 0.95
"""Of the parts that are to be abandoned and faulty: at least so much of each must have been."""
IN_PROGRESS = "idempotency_in_progress"
"""The only refusal of what is neither broken nor abandoned: of a key that is asked again while it runs."""


@dataclass
class Plan:
    """How it is done; `warm` and `level` in minutes, `rest` in seconds."""

    minutes: float = 30.0
    rate: float = 30.0
    clients: int = 24
    seed: int = 0
    warm: float = WARM
    level: float = LEVEL
    rest: float = REST


class Held(NamedTuple):
    """What the gateway has while nothing is asked of it."""

    told: Holding
    sockets: int
    files: int
    resident: int  # KiB


class Slope(NamedTuple):
    """KiB per minute, and half the width of its interval of 95 % confidence."""

    value: float
    noise: float


@dataclass
class Outcome:
    """What came of it."""

    seen: list[Seen]
    ledger: reconcile.Ledger
    early: Held
    late: Held
    resident: list[tuple[float, int]]  # minute, KiB: under load, after the warm-up
    slope: Slope
    faults: list[str]


class Gateway:
    """Looks at the gateway's process from outside."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.resident: list[tuple[float, int]] = []  # (minute, KiB)

    async def held(self) -> Held:
        """Now. Raises TimeoutError where it does not say."""
        told, links = await self._process.holds(), self._links()
        return Held(told, sum(link.startswith("socket:") for link in links), len(links), self._resident())

    async def watch(self) -> None:
        """Notes its memory every second."""
        while True:
            self.resident.append((time.monotonic() / 60, self._resident()))
            await asyncio.sleep(1)

    def _links(self) -> list[str]:
        return [str(entry.readlink()) for entry in Path(f"/proc/{self._process.pid}/fd").iterdir()]

    def _resident(self) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])


def slope(points: Sequence[tuple[float, int]]) -> Slope:
    """Of memory over minutes: least squares over the means of BLOCKS, which count for fewer where each resembles the
    one before (as in Santer et al. 2000, doi:10.1029/1999JD901105)."""
    size = max(1, len(points) // BLOCKS)
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    x = [fmean(minute for minute, _ in block) for block in blocks]
    y = [fmean(resident for _, resident in block) for block in blocks]
    value, at_zero = linear_regression(x, y)
    rest = [own - at_zero - value * minute for minute, own in zip(x, y, strict=True)]
    spread = sum(each * each for each in rest)
    alike = sum(own * after for own, after in pairwise(rest)) / spread if spread else 0.0
    effective = max(3.0, len(x) * (1 - max(0.0, alike)) / (1 + max(0.0, alike)))
    error = (spread / (effective - 2)) ** 0.5 / (stdev(x) * (len(x) - 1) ** 0.5)
    return Slope(value, 2.05 * error)  # Student's t of 28 degrees of freedom, 97.5 %


async def soak(triton: Triton, url: str, folder: Path, plan: Plan) -> Outcome:
    """Load it as planned. Raises NotStarted, StoreError, or TimeoutError where it hangs."""
    file, log, target = folder / "conch.toml", list[str](), Target()
    store, secret = await open_shop(url)
    seen: list[Seen] = []
    async with faulty(triton.url, "vllm") as broken, contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        file.write_text(settings(triton.url, MODELS.format(grpc=triton.grpc_url, root=ROOT, broken=broken)))
        process = await Process.start(file, url, target, log, ("-m", "scripts.telling"))
        stack.push_async_callback(process.kill)
        gateway = Gateway(process)

        async def load(minutes: float, seed: int) -> Held:
            chosen = choose_any(seen)
            asking = Load([target], secret, chosen, clients=plan.clients, seed=seed, rate=plan.rate, seen=seen)
            try:
                await asyncio.sleep(minutes * 60)
                await asking.stop()
            finally:
                await asking.abort()
            await asyncio.sleep(plan.rest)
            return await gateway.held()

        early = await load(plan.warm, plan.seed)
        print(f"after {plan.warm:g} minutes: {early.told.tasks} tasks, {early.resident} KiB", flush=True)
        watching = asyncio.create_task(gateway.watch())
        late = await load(plan.minutes - plan.warm, plan.seed + 1)
        watching.cancel()
        for _ in range(PATIENCE):
            if late.sockets > early.sockets:  # kept, perhaps, by checks that overlapped a minute ago
                await asyncio.sleep(plan.rest)
                late = await gateway.held()
        status = await process.stop()
        books = await store.run(reconcile.read())
    told = [*reconcile.faults(books, [each for each in seen if each.ask.kind != UNBILLED]), *answers(seen)]
    if status or any("Traceback" in line for line in log):
        told.append(f"the gateway ended with status {status}: {''.join(log[-10:])}")
    steady = gateway.resident[: -round(plan.rest) or None]
    since = steady[0][0] + plan.level - plan.warm
    level = [point for point in steady if point[0] >= since]
    outcome = Outcome(seen, books, early, late, steady, slope(level), told)
    outcome.faults += [*growth(outcome), *shares(seen)]
    return outcome


def answers(seen: Sequence[Seen]) -> Iterator[str]:
    """What should have been answered, and was not; and the other way round."""
    for each in seen:
        broken = each.ask.kind in (BROKEN, GARBAGE)
        if each.complete is broken and not each.left and each.code != IN_PROGRESS:
            yield f"{each.ask.kind}: {each.id} was answered {each.status} {each.code or each.body[-200:]!r}"


def growth(outcome: Outcome) -> Iterator[str]:
    """What there is more of than there was at the beginning."""
    early, late = outcome.early, outcome.late
    for name, before, after in (
        ("tasks", early.told.tasks, late.told.tasks),
        ("sockets", early.sockets, late.sockets),
        ("files", early.files, late.files),
    ):
        if after > before:
            yield f"it has {after} {name}, and had {before}"
    if outcome.slope.value > outcome.slope.noise:
        yield f"its memory grows by {outcome.slope.value:.1f} ± {outcome.slope.noise:.1f} KiB a minute"


def shares(seen: Sequence[Seen]) -> Iterator[str]:
    """What it did not do as it says."""
    tally = Tally(seen)
    tally.count()
    for what, count, part in (("abandoned", tally.abandoned, ABANDONED), ("faulty", tally.faulty, FAULTY)):
        if count < NEARLY * part * len(seen):
            yield f"{count / len(seen):.1%} of the requests were {what}, not {part:.0%}"


def table(outcome: Outcome) -> str:
    """The figures, one to a line."""
    seen, early, late = outcome.seen, outcome.early, outcome.late
    kinds, tally, before, after = Counter(each.ask.kind for each in seen), Tally(seen), early.told, late.told
    tally.count()
    total = len(seen)
    rows: dict[str, object] = {
        "requests": len(seen),
        **{f"  {kind}": count for kind, count in kinds.most_common()},
        "seen complete": sum(each.complete for each in seen),
        "abandoned by their client": f"{tally.abandoned}, {tally.abandoned / total:.1%}",
        "faulty": f"{tally.faulty}, {tally.faulty / total:.1%}",
        "in the ledger": len(outcome.ledger.usage),
        "tasks: after the warm-up, at the end": f"{before.tasks}, {after.tasks}",
        "garbage": f"{before.garbage}, {after.garbage}",
        "sockets": f"{early.sockets}, {late.sockets}",
        "files, sockets among them": f"{early.files}, {late.files}",
        "RSS at rest, MiB": f"{early.resident / 1024:.1f}, {late.resident / 1024:.1f}",
        "blocks of Python's allocator": f"{before.blocks}, {after.blocks}",
        "malloc's in use, MiB": f"{_mib(before.used + before.mapped)}, {_mib(after.used + after.mapped)}",
        "malloc's free, MiB": f"{_mib(before.free)}, {_mib(after.free)}",
        "objects, where there are more": _more(before.objects, after.objects),
        "RSS under load, in fifths": _fifths(outcome.resident),
        "RSS once it is level, KiB a minute": f"{outcome.slope.value:+.1f} ± {outcome.slope.noise:.1f}",
        "faults": len(outcome.faults),
    }
    return "\n".join(f"{name:<40}{value:>32}" for name, value in rows.items())


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f}"


def _more(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """The types of which there are more, and by how many: those that grew most."""
    grown = Counter(after)
    grown.subtract(before)
    return " ".join(f"{name}+{count}" for name, count in grown.most_common(5) if count > 0) or "none"


def _fifths(points: Sequence[tuple[float, int]]) -> str:
    ends = [len(points) * part // 5 for part in range(6)]
    return " ".join(f"{fmean(kib for _, kib in points[start:end]) / 1024:.1f}" for start, end in pairwise(ends))


def main() -> int:
    """Start a Triton, soak, print what came of it."""
    parser = argparse.ArgumentParser(prog="soak.py", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=Plan.minutes)
    parser.add_argument("--rate", type=float, default=Plan.rate, help="requests a second")
    parser.add_argument("--clients", type=int, default=Plan.clients)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    arguments = parser.parse_args()
    third = arguments.minutes / 3
    plan = Plan(**vars(arguments), warm=min(WARM, third), level=min(LEVEL, third))
    try:
        with tempfile.TemporaryDirectory(prefix="conch-soak-") as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            print(f"Starting Triton; then {plan.minutes:g} minutes, seed {plan.seed} …", flush=True)
            triton = stack.enter_context(Triton(repository(folder), log=folder / "triton.log"))
            outcome = asyncio.run(soak(triton, f"sqlite:{folder}/conch.db", folder, plan))
    except (TritonError, NotStarted, StoreError, TimeoutError, ValueError) as error:
        print(f"make soak: {error!r}", file=sys.stderr)
        return 1
    print(table(outcome))
    for fault in outcome.faults[:20]:
        print(f"FAULT: {fault}")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
