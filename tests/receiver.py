"""A receiver of webhooks on 127.0.0.1, the gateway that tells it, and what both are asked in the tests."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import web

from config import NANO
from store import accounts, open_store
from store.records import Closing, Hold, Units, Usage
from tests.gateway import ROOT, Conch
from tests.priced import judge

DOC = (ROOT / "docs" / "webhooks.md").read_text()
NOW = 1_700_000_000_000_000
CONFIG = """
[server]
port = 0

[store]
url = "sqlite:{store}"

[webhooks]
private = true
every = "100ms"
retry = "100ms"
timeout = "2s"

[upstreams.local]
urls = ["{triton}"]
connect_timeout = "1s"
check_every = "200ms"

[[models]]
id = "vllm"
task = "chat"
upstream = "local"
model = "vllm"
preset = "vllm"
max_output = 1000
price = {{ input = "1", output = "1000" }}
chat.template = "{root}/tests/plain.jinja"
"""


class Received(NamedTuple):
    """One POST."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """A real server on 127.0.0.1; `answer` decides on each POST, which it has in `seen` by then."""

    def __init__(self) -> None:
        self.seen: list[Received] = []
        self.answer: Callable[[Received], web.Response] = lambda _: web.Response(status=204)
        self.port = 0
        self._changed = asyncio.Condition()
        self._runner: web.ServerRunner | None = None

    async def open(self) -> None:
        """Again on the same port."""
        self._runner = web.ServerRunner(web.Server(self._handle))
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def until(self, enough: Callable[[list[Received]], bool], seconds: float = 20) -> list[Received]:
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: enough(self.seen))
        return list(self.seen)

    async def _handle(self, request: Any) -> web.Response:
        received = Received(request.path, dict(request.headers), await request.read())
        self.seen.append(received)
        response = self.answer(received)
        async with self._changed:
            self._changed.notify_all()
        return response


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.open()
    yield receiver
    await receiver.close()


def opened(folder: Path) -> Conch:
    """A gateway that is not started yet, before no Triton, and the workspace acme with ten dollars."""
    conch = Conch(folder, "http://127.0.0.1:1", CONFIG)
    conch.workspace("acme")
    conch.command("credits", "grant", "acme", "10")
    return conch


def create(conch: Conch, url: str, *arguments: str) -> Any:
    return conch.command("webhooks", "create", url, *arguments)


def verified(secret: str, received: Received) -> bool:
    """By the example of the documentation."""
    (code,) = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/webhooks.md", "exec"), names)
    told: bool = names["verified"](secret, received.headers["RunInfra-Signature"], received.body)
    return told


async def spend(url: str, dollars: float) -> None:
    """What a gateway writes for a request."""
    store = open_store(url, judge)
    amount = int(dollars * NANO)
    usage = Usage(NOW, "acme", "key", "m", Units(), amount)
    await store.run(accounts.settle([Hold("r1", "p", "acme", amount)], NOW))
    await store.run(accounts.settle([Closing("r1", held=True, usage=usage)], NOW))
    await store.close()


def deliveries(conch: Conch, **where: str) -> list[dict[str, Any]]:
    options = [text for name, value in where.items() for text in (f"--{name}", value)]
    found: list[dict[str, Any]] = conch.command("webhooks", "deliveries", *options)
    return found


async def delivered(conch: Conch, state: str = "delivered") -> dict[str, Any]:
    """The one delivery there is, once it is so."""
    async with asyncio.timeout(20):
        while True:
            found = await asyncio.to_thread(deliveries, conch)  # a command of its own has no event, and takes its time
            if found and found[0]["state"] == state:
                assert len(found) == 1
                return found[0]
