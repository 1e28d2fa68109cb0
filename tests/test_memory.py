"""The gateway's memory over requests of every kind: what a request takes, it gives back."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

from openai import AsyncOpenAI

from handlers.ops.server import CROWD
from scripts.faulty import faulty
from scripts.gateways import Process, open_shop, settings
from scripts.load import FREE, Ask, Client, Seen, Target
from scripts.mixture import MODELS, choose_any
from scripts.triton import Triton
from tests.gateway import Conch

ROOT = Path(__file__).resolve().parents[1]
WARM, COUNTED = 200, 500
GROWTH = 12 << 10  # KiB: what the allocator may keep, far below a leak of one picture or sound in each request
ASK: Any = [{"role": "user", "content": "What is Conch?"}]


def resident(pid: int) -> int:
    """KiB of a process in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


async def kinds(sdk: AsyncOpenAI) -> list[Callable[[], Awaitable[object]]]:
    """One request of every kind; each reads its answer whole."""
    sound = (await sdk.audio.speech.create(model="voice", voice="alloy", input="The sea is calm.")).content

    async def streamed() -> None:
        async for _ in await sdk.chat.completions.create(model="assistant", messages=ASK, stream=True):
            """Every chunk is read."""

    async def pair() -> object:
        body = {"model": "reranker", "query": "sea", "documents": ["a boat", "a bank", "the coast"]}
        return await sdk.post("/rerank", body=body, cast_to=object)

    return [
        lambda: sdk.chat.completions.create(model="assistant", messages=ASK),
        streamed,
        lambda: sdk.completions.create(model="assistant", prompt="Say something", max_tokens=8),
        lambda: sdk.responses.create(model="assistant", input="What is a key?"),
        lambda: sdk.embeddings.create(model="minilm", input=["one", "two", "three"] * 8),
        pair,
        lambda: sdk.images.generate(model="diffusion", prompt="a boat", size="256x256"),
        lambda: sdk.audio.speech.create(model="voice", voice="alloy", input="The sea is calm.", response_format="opus"),
        lambda: sdk.audio.transcriptions.create(model="whisper", file=("a.mp3", sound)),
        lambda: _listed(sdk),
    ]


async def _listed(sdk: AsyncOpenAI) -> object:
    return [model async for model in sdk.models.list()]


async def test_memory_stays_flat(triton: Triton, tmp_path: Path) -> None:
    gateway = Conch(tmp_path, triton.url, grpc=triton.grpc_url)
    gateway.workspace("acme")
    key = gateway.key("acme")
    with gateway.running():
        async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as sdk:
            every = await kinds(sdk)
            await _ask(every, WARM)
            before = resident(gateway.pid)
            await _ask(every, COUNTED)
            after = resident(gateway.pid)
    assert after - before < GROWTH, f"{before} KiB before, {after} KiB after"


async def test_nothing_is_left_to_the_collector(triton: Triton, tmp_path: Path) -> None:
    """What refers to itself stays until the collector comes, which is seldom: a flood's would stay for long."""
    file, target, log, dice = tmp_path / "conch.toml", Target(), list[str](), Random(1)
    store, secret = await open_shop(f"sqlite:{tmp_path}/conch.db")
    async with faulty(triton.url, "vllm") as broken:
        file.write_text(settings(triton.url, MODELS.format(grpc=triton.grpc_url, root=ROOT, broken=broken)))
        gateway = await Process.start(file, f"sqlite:{tmp_path}/conch.db", target, log, ("-m", "scripts.telling"))
        try:
            seen: list[Seen] = []
            chosen, garbage = choose_any(seen), []
            for _ in range(2):
                for _ in range(200):
                    client = Client(target, secret)
                    answer = await client.ask(chosen(dice))
                    assert answer is not None
                    seen.append(answer)
                    client.close()
                garbage.append((await gateway.holds()).garbage)
            assert await gateway.stop() == 0
        finally:
            await gateway.kill()
            await store.close()
    assert garbage[1] < 200, f"{garbage} objects of 200 requests each"


async def test_what_a_crowd_took_is_given_back(triton: Triton, tmp_path: Path) -> None:
    file, target, log, url = tmp_path / "conch.toml", Target(), Log(), f"sqlite:{tmp_path}/conch.db"
    store, secret = await open_shop(url)
    file.write_text(settings(triton.url).replace("port = 0", 'port = 0\nlog_level = "debug"'))
    gateway = await Process.start(file, url, target, log)
    script = "script: " + json.dumps({"pieces": ["a ", "b "], "pace_ms": 1000})
    body = {"model": FREE, "messages": [{"role": "user", "content": script}], "max_tokens": 32, "stream": True}
    try:
        for _ in range(2):
            log.clear()
            clients = [Client(target, secret) for _ in range(CROWD + 20)]
            seen = await asyncio.gather(*(client.ask(Ask(json.dumps(body).encode())) for client in clients))
            for client in clients:
                client.close()
            assert all(each is not None and each.complete for each in seen)
            async with asyncio.timeout(10):
                await log.has("requests at once: memory is given back")
        assert await gateway.stop() == 0
    finally:
        await gateway.kill()
        await store.close()


class Log(list[str]):
    """Of a gateway, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self._longer = asyncio.Event()

    def append(self, line: str) -> None:
        super().append(line)
        self._longer.set()

    async def has(self, words: str) -> None:
        """Returns once a line has these words."""
        while not any(words in line for line in self):
            self._longer.clear()
            await self._longer.wait()


async def _ask(every: list[Callable[[], Awaitable[object]]], count: int) -> None:
    """`count` requests, four at a time, each kind in its turn."""
    turns = iter(range(count))

    async def worker() -> None:
        for turn in turns:
            await every[turn % len(every)]()

    await asyncio.gather(*(worker() for _ in range(4)))
