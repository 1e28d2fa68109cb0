"""kill -9 of one of two Tritons under a crowd of clients: who notices it, for how long, and who pays."""

import asyncio
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from scripts.load import Ask, Client, Seen, Target
from scripts.triton import Triton
from tests.chaos.stand import ADMIN
from tests.gateway import ONE, ROOT, Conch
from tests.priced import Books, open_books
from tests.raw import Wire, bearer
from tests.test_pool import Pair, until

CONFIG = ONE.replace('"{triton}"]', '"ONE", "TWO"]') + 'max_output = 100\nprice = {{ output = "1" }}\n'
TAKEN_OVER_IN = 1.0  # seconds

log = logging.getLogger("chaos")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Two Tritons of the test's own, with one model."""
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "vllm").symlink_to(ROOT / "tests" / "contracts" / "vllm")
    with ExitStack() as stack:
        logs = tmp_path / "one.log", tmp_path / "two.log"
        one, two = (stack.enter_context(Triton(repository, log=each)) for each in logs)
        yield one, two


class Asked(NamedTuple):
    """A request, when it was sent, and when its answer ended."""

    sent: float
    ended: float
    seen: Seen


class Crowd:
    """So many clients that ask for whole answers, and as many for streams, one after the other, until told to stop."""

    def __init__(self, conch: Conch, secret: str, count: int, pace: int) -> None:
        """`pace` is in milliseconds for each of ten pieces."""
        self.asked: list[Asked] = []
        self._running = True
        parts = urlsplit(conch.url)
        target = Target()
        target.begin(str(parts.hostname), int(parts.port or 0))
        words = "script: " + json.dumps({"pieces": list("abcdefghij"), "pace_ms": pace})
        asks = [
            Ask(
                json.dumps(
                    {"model": "vllm", "messages": [{"role": "user", "content": words}], "max_tokens": 50, "stream": s}
                ).encode()
            )
            for s in (False, True)
        ]
        self._clients = [
            asyncio.create_task(self._ask(Client(target, secret), ask, 10 * pace / 1000 * number / count))
            for ask in asks
            for number in range(count)
        ]

    @property
    def good(self) -> list[Asked]:
        return [each for each in self.asked if each.seen.complete]

    async def stop(self) -> None:
        """Returns when each client has its last answer."""
        self._running = False
        await asyncio.gather(*self._clients)

    async def _ask(self, client: Client, ask: Ask, later: float) -> None:
        await asyncio.sleep(later)  # they come one by one, so that the ends are spread over time
        while self._running:
            sent = time.monotonic()
            seen = await client.ask(ask)
            assert seen is not None
            self.asked.append(Asked(sent, time.monotonic(), seen))
        client.close()


def second(conch: Conch) -> int:
    """How many requests the second server has had."""
    with Wire(conch.url) as wire:
        wire.request("GET", "/admin/deployments", **bearer(ADMIN))
        (card,) = wire.answer().json["data"]
        return int(card["servers"][1]["requests"])


async def test_one_of_two_is_killed(pair: Pair, tmp_path: Path, long: bool) -> None:
    count, pace = (200, 100) if long else (12, 20)
    conch = Conch(tmp_path, "", CONFIG.replace("ONE", pair[0].url).replace("TWO", pair[1].url))
    with conch.running(CONCH_ADMIN_TOKEN=ADMIN):
        async with open_books(conch) as books:
            customer = await books.customer("100")
            crowd = Crowd(conch, customer.key, count, pace)
            await until(lambda: len(crowd.good) > 4 * count, 60)
            killed = time.monotonic()
            assert pair[1].process is not None
            pair[1].process.kill()
            await until(lambda: len(crowd.good) > 12 * count, 60)
            returned = await start_again(pair[1], conch)
            await until(lambda: len(crowd.good) > 20 * count, 60)
            await crowd.stop()
            await check_books(books, customer.workspace, crowd)
    check_broken(conch, crowd, killed)
    gap = longest_gap(crowd, killed)
    kinds = Counter(outcome(each.seen) for each in crowd.asked)
    log.info("%d streams and %d whole answers at once: %s", count, count, dict(kinds))
    log.info("longest time without a success %.3f s; back in use %.3f s after it was ready", gap, returned)
    assert gap < TAKEN_OVER_IN


async def start_again(triton: Triton, conch: Conch) -> float:
    """On the same ports: how long after it is ready the gateway sends to it, in seconds."""
    await asyncio.to_thread(triton.stop)
    before = await asyncio.to_thread(second, conch)
    http, grpc, metrics = triton.ports
    again = Triton(triton.repositories, http_port=http, grpc_port=grpc, metrics_port=metrics, log=triton.log)
    await asyncio.to_thread(again.start)
    ready = time.monotonic()
    triton.process = again.process  # whoever ends the one ends the other
    async with asyncio.timeout(30):
        while await asyncio.to_thread(second, conch) == before:  # noqa: ASYNC110 - the gateway tells no event
            await asyncio.sleep(0.01)
    return time.monotonic() - ready


def outcome(seen: Seen) -> str:
    kind = "stream" if b'"stream": true' in seen.ask.body else "whole"
    if seen.complete:
        return f"{kind}: good"
    return f"{kind}: {seen.status}" if seen.status != 200 else f"{kind}: error frame"


def check_broken(conch: Conch, crowd: Crowd, killed: float) -> None:
    """Only what the dead server had was lost, and each client of it was told."""
    broken = [each for each in crowd.asked if not each.seen.complete]
    assert broken, "nobody was harmed: it had nothing to do"
    assert len(broken) <= len(crowd._clients)
    for each in broken:
        seen = each.seen
        assert seen.whole, "told, and not cut off"
        assert seen.code == "upstream_error"
        assert each.sent < killed + TAKEN_OVER_IN
        if seen.status == 200:
            assert seen.body.rstrip().rpartition(b"\n\n")[2].startswith(b'data: {"error":')
            assert b"[DONE]" not in seen.body
        else:
            assert seen.status == 502
        (told,) = [line for line in conch.log if seen.id in line]
        assert "upstream: Broken" in told, "it had been sent there"


def longest_gap(crowd: Crowd, killed: float) -> float:
    """Seconds between two good answers, from a moment before the kill on."""
    ends = sorted(each.ended for each in crowd.good if each.ended > killed - 0.5)
    return max(after - before for before, after in itertools.pairwise(ends))


async def check_books(books: Books, workspace: str, crowd: Crowd) -> None:
    """Who has a good answer has paid for it, once; nobody else has, and nothing is held."""
    rows = await books.rows("SELECT id, output_tokens, whole FROM usage WHERE workspace = $1", workspace)
    assert sorted(rows) == sorted((each.seen.id, 10, 1) for each in crowd.good)
    assert await books.rows("SELECT COUNT(*) FROM holds") == [(0,)]
