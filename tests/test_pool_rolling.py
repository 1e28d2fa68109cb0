"""A server is stopped and started again under load: what the clients of a gateway notice of it."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from scripts.triton import Triton
from tests.gateway import ONE, Conch
from tests.raw import Wire, bearer, head, script
from tests.test_cold_start import call, state
from tests.test_pool import Pair, repository, until

__all__ = ["repository"]

PATH = "/v1/chat/completions"
CLIENTS = 12
CONFIG = ONE.replace('"{triton}"]', '"ONE", "TWO"]\ncheck_every = "1s"')


@pytest.fixture
def pair(repository: Path, tmp_path: Path) -> Iterator[Pair]:
    """Two Tritons of the test's own: one of them is stopped."""
    with ExitStack() as stack:
        logs = tmp_path / "one.log", tmp_path / "two.log"
        one, two = (stack.enter_context(Triton(repository, log=log, explicit=True)) for log in logs)
        yield one, two


class Load:
    """Clients that ask one thing after the other: every second one for streams. `seen` counts how they ended."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._key = parts.hostname, parts.port, key
        self.seen = Counter[str]()
        self.running = True

    async def client(self, number: int) -> None:
        stream = bool(number % 2)
        body = script(*"abcdefghij", stream=stream, pace_ms=10)
        request = head("POST", PATH, "x", len(body), connection="close", **bearer(self._key)) + body
        while self.running:
            reader, writer = await asyncio.open_connection(self._host, self._port)
            writer.write(request)
            answer = await reader.read()
            writer.close()
            self.seen[self._outcome(answer, stream)] += 1

    def _outcome(self, answer: bytes, stream: bool) -> str:
        kind, status = "stream" if stream else "unary", int(answer[9:12])
        if status != 200:
            return f"{kind} {status}"
        if stream:
            if b"data: [DONE]" in answer:
                return "stream whole"
            return "stream broken" if b'data: {"error":' in answer else "stream without an end"
        said = json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"]
        return "unary whole" if said == "abcdefghij" else "unary torn"


async def test_a_server_rolled_out_and_in_loses_no_request(pair: Pair, tmp_path: Path) -> None:
    """Its model is unloaded first, since Triton cuts what is under way over HTTP when it is told to stop."""
    conch = Conch(tmp_path, "", CONFIG.replace("ONE", pair[0].url).replace("TWO", pair[1].url))
    conch.workspace("acme")
    key = conch.key("acme")
    with conch.running():
        load = Load(conch.url, key)
        clients = [asyncio.create_task(load.client(number)) for number in range(CLIENTS)]
        await until(lambda: load.seen["unary whole"] > 30 and load.seen["stream whole"] > 30)
        await asyncio.to_thread(call, pair[1], "vllm/unload")
        async with asyncio.timeout(10):
            while state(pair[1]) != "UNAVAILABLE":  # noqa: ASYNC110 - Triton tells no event
                await asyncio.sleep(0.05)
        await asyncio.to_thread(pair[1].stop)
        before = load.seen.total()
        await until(lambda: load.seen.total() > before + 60)
        ports = pair[1].ports
        again = Triton(pair[1].repositories, http_port=ports[0], log=tmp_path / "again", explicit=True)
        await asyncio.to_thread(again.start)
        try:
            await until(lambda: any("again" in line for line in conch.log), 30)
            before = load.seen.total()
            await until(lambda: load.seen.total() > before + 60)
            load.running = False
            await asyncio.gather(*clients)
        finally:
            await asyncio.to_thread(again.stop)
    assert set(load.seen) == {"unary whole", "stream whole"}, load.seen


def test_debug_tells_which_server_answered(pair: Pair, tmp_path: Path) -> None:
    """And only debug: an address is nobody's business. One that had no connection for it is told, too."""
    urls = [each.url for each in pair]
    conch = Conch(tmp_path, urls[0], CONFIG.replace("ONE", urls[0]).replace("TWO", urls[1]).replace("1s", "60s"))
    conch.workspace("acme")
    key = conch.key("acme")

    def told() -> list[str | None]:
        answers = []
        with Wire(conch.url) as wire:
            for stream in (False, True) * 5:
                wire.request("POST", PATH, script("x", stream=stream), **bearer(key))
                answer = wire.answer()
                assert answer.status == 200
                answers.append(answer.headers.get("x-conch-upstream"))
        return answers

    with conch.running(CONCH_SERVER__LOG_LEVEL="debug"):
        assert set(told()) == set(urls)
        pair[0].stop()
        assert f"{urls[0]}, {urls[1]}" in told()
    with conch.running():
        assert set(told()) == {None}
