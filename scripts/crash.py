"""`make crash`: kill -9 the gateway at random moments under load, restart it at once, and reconcile its books.

    python scripts/crash.py [--kills 50] [--seed N] [--clients 32] [--store postgresql://…]

The store must be new; without one it is an SQLite file in a temporary folder. Exits with 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import reconcile  # noqa: E402
from scripts.gateways import NotStarted, Process, open_shop, settings  # noqa: E402
from scripts.load import PRICED, Load, Seen, Target, choose  # noqa: E402
from scripts.triton import Triton, TritonError  # noqa: E402
from store import Store  # noqa: E402
from store.processes import BEAT, HOLDERS, SILENCE  # noqa: E402
from store.records import StoreError  # noqa: E402
from store.script import Script, Statement  # noqa: E402

LOOK = 0.25
"""Seconds between two looks at what the dead hold."""
LONGEST = 60.0
"""Seconds for which a hold may outlive its process."""
OVERDUE = BEAT + SILENCE / 1_000_000 + 15
"""Seconds after which nobody waits any longer for what the dead hold."""
PLACES = """
[plans.enterprise]
concurrency = 5000
"""
"""More than the living and the dead take together; they are counted all the same."""
IN_PROGRESS = "idempotency_in_progress"
"""The only refusal that a crash may cause: of a key whose request died, until it is reaped."""


@dataclass
class Plan:
    """How it is done: each life ends within `life`, in seconds after its gateway listens, by chance."""

    kills: int = 50
    clients: int = 32
    seed: int = 0
    life: tuple[float, float] = (0.3, 3.0)


@dataclass
class Outcome:
    """What came of it. `outlived`: the longest that anything was held after its process had died, in seconds."""

    seen: list[Seen]
    ledger: reconcile.Ledger
    keys: int
    outlived: float
    seconds: float
    faults: list[str]


class Dead:
    """The processes that were killed, and for how long each of them still held something."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._died: dict[str, float] = {}
        self.outlived = 0.0

    async def living(self) -> str:
        """The process that began last."""
        return await self._store.run(_newest())

    def note(self, process: str) -> None:
        """It was killed just now."""
        self._died[process] = time.monotonic()

    async def hold(self) -> bool:
        """Whether any of them holds anything."""
        asked = time.monotonic()
        holding = [asked - self._died[id] for id in await self._store.run(_holders()) if id in self._died]
        self.outlived = max([self.outlived, *holding])
        return bool(holding)

    async def reaped(self) -> None:
        """Returns when they hold nothing any more, or it is overdue."""
        deadline = time.monotonic() + OVERDUE
        while await self.hold() and time.monotonic() < deadline:  # noqa: ASYNC110 - a database tells no event
            await asyncio.sleep(LOOK)

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Looks at them again and again meanwhile."""

        async def watch() -> None:
            while True:
                await self.hold()
                await asyncio.sleep(LOOK)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        if not watching.cancelled():
            watching.result()


def _holders() -> Script[list[str]]:
    return [process for (process,) in (yield Statement(HOLDERS))]


def _newest() -> Script[str]:
    ((process,),) = yield Statement("SELECT id FROM processes ORDER BY started_at DESC LIMIT 1")
    return str(process)


Reaping = Callable[[Store, Dead], Awaitable[None]]


async def _by_time(store: Store, dead: Dead) -> None:
    await dead.reaped()


async def crash(triton: str, url: str, folder: Path, plan: Plan, reaping: Reaping = _by_time) -> Outcome:
    """Kill and restart as planned; `reaping` returns when the dead hold nothing. Raises NotStarted or StoreError."""
    file, log, started = folder / "conch.toml", list[str](), time.monotonic()
    file.write_text(settings(triton, PLACES))
    store, secret = await open_shop(url)
    dead, target, dice = Dead(store), Target(), random.Random(plan.seed)
    gateway = await Process.start(file, url, target, log)
    load = Load([target], secret, choose([PRICED], keyed=0.3), clients=plan.clients, seed=plan.seed)
    try:
        async with dead.watched():
            for number in range(plan.kills):
                if number % 10 == 0 and number:
                    print(f"{number} kills, {len(load.seen)} requests …", flush=True)
                process = await dead.living()
                await asyncio.sleep(dice.uniform(*plan.life))
                await gateway.kill()
                dead.note(process)
                gateway = await Process.start(file, url, target, log)
            await asyncio.sleep(dice.uniform(*plan.life))
            await load.stop()
        await reaping(store, dead)
        again = await load.repeat_all()
        status = await gateway.stop()
        books = await store.run(reconcile.read())
    finally:
        await load.abort()
        await gateway.kill()
        await store.close()
    seen = load.seen + again
    faults = [*reconcile.faults(books, seen), *_faults(load.seen, again, dead.outlived)]
    if status:
        faults.append(f"the gateway ended with status {status}: {''.join(log[-10:])}")
    return Outcome(seen, books, len(again), dead.outlived, time.monotonic() - started, faults)


def _faults(seen: Sequence[Seen], again: Sequence[Seen], outlived: float) -> Iterator[str]:
    for code, count in _refusals(seen).items():
        if code != IN_PROGRESS:
            yield f"{count} requests were refused: {code}"
    for each in again:
        if not each.complete:
            yield f"the key of {each.id} is stuck: {each.status} {each.code}"
    if outlived > LONGEST:
        yield f"something was held for {outlived:.1f} s after its process had died"


def _refusals(seen: Sequence[Seen]) -> Counter[str]:
    return Counter(each.code for each in seen if each.status not in (0, 200) or (each.whole and not each.complete))


def _table(outcome: Outcome, plan: Plan) -> str:
    seen, extras = outcome.seen, reconcile.extras(outcome.ledger, outcome.seen)
    rows: dict[str, object] = {
        "kill -9": plan.kills,
        "requests": len(seen),
        "  seen complete": sum(each.complete for each in seen),
        "    of these replays of a key": sum(each.complete and each.replayed for each in seen),
        "  cut off by a kill": sum(each.broken for each in seen),
        "  left by their client": sum(each.left for each in seen),
        "  refused, their key being in progress": _refusals(seen)[IN_PROGRESS],
        "in the ledger": len(outcome.ledger.usage),
        "  more than seen complete, as cut off": extras.cut_off,
        "  more than seen complete, as left": extras.left,
        "idempotency keys, each tried again at the end": outcome.keys,
        "longest hold after a death, s": f"{outcome.outlived:.1f}",
        "faults": len(outcome.faults),
        "seconds": f"{outcome.seconds:.0f}",
    }
    return "\n".join(f"{name:<48}{value:>10}" for name, value in rows.items())


def main() -> int:
    """Start a Triton, crash, print what came of it."""
    parser = argparse.ArgumentParser(prog="crash.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=Plan.kills)
    parser.add_argument("--clients", type=int, default=Plan.clients)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="of the chosen moments")
    parser.add_argument("--store", help="a new database, such as postgresql://…; else an SQLite file")
    arguments = parser.parse_args()
    plan = Plan(arguments.kills, arguments.clients, arguments.seed)
    try:
        with tempfile.TemporaryDirectory(prefix="conch-crash-") as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            print(f"Starting Triton; then {plan.kills} times kill -9, seed {plan.seed} …", flush=True)
            triton = stack.enter_context(Triton(_repository(folder), log=folder / "triton.log"))
            outcome = asyncio.run(crash(triton.url, arguments.store or f"sqlite:{folder}/conch.db", folder, plan))
    except (TritonError, NotStarted, StoreError, TimeoutError, ValueError) as error:
        print(f"make crash: {error}", file=sys.stderr)
        return 1
    print(_table(outcome, plan))
    for fault in outcome.faults[:20]:
        print(f"FAULT: {fault}")
    return 1 if outcome.faults else 0


def _repository(folder: Path) -> Path:
    """Of the one model that is asked: it says what its script says."""
    repository = folder / "models"
    repository.mkdir()
    (repository / "vllm").symlink_to(ROOT / "tests" / "contracts" / "vllm")
    return repository


if __name__ == "__main__":
    sys.exit(main())
