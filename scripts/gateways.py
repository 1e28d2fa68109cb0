"""Gateways that can be killed and started again: processes on one store, with the models that a load asks for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from config import PLANS
from handlers.door.admission import judge
from scripts.load import FREE, KEYED, PRICED, Target
from scripts.telling import TOLD, Holding
from store import Store, accounts, ledger, open_store
from store.teller import Clock

ROOT = Path(__file__).resolve().parents[1]
LISTENING = re.compile(r"listening on (https?://\S+)")
STARTING = 30.0  # seconds at most
CREDITS = 1_000 * 1_000_000_000
"""Nano-dollars that the workspace has: enough, also with all that the dead still hold."""

CONFIG = """
[server]
port = 0

[upstreams.local]
urls = ["{triton}"]
check_every = "1s"
"""
MODEL = """
[[models]]
id = "{id}"
task = "chat"
upstream = "local"
model = "vllm"
preset = "vllm"
max_output = 32
chat.template = "{root}/tests/plain.jinja"
"""
PRICE = 'price = { input = "1", output = "4" }\n'


class NotStarted(Exception):
    """A gateway that ended before it listened, with what it said."""


def settings(triton: str, extra: str = "") -> str:
    """A conch.toml with the models of the load before this Triton; `extra` are further tables."""
    models = [MODEL.format(id=id, root=ROOT) + (PRICE if id != FREE else "") for id in (KEYED, PRICED, FREE)]
    return CONFIG.format(triton=triton) + extra + "".join(models)


async def open_shop(url: str, workspace: str = "acme", *, limit: int | None = None) -> tuple[Store, str]:
    """The store at `url`, which is new, with a workspace that has credits, and the secret of its key."""
    clock = Clock()
    store = open_store(url, judge(PLANS), clock=clock)
    await store.migrate()
    await store.run(ledger.create_workspace(workspace, "enterprise", by="load", now=clock()))
    await store.run(accounts.grant(workspace, CREDITS, by="load", now=clock()))
    return store, await new_key(store, workspace, limit=limit)


async def new_key(store: Store, workspace: str = "acme", *, limit: int | None = None) -> str:
    """The secret of one more key."""
    minted = ledger.mint()
    await store.run(ledger.create_key(minted, workspace, limit=limit, by="load", now=Clock()()))
    return minted.secret


class Process:
    """A gateway's life."""

    def __init__(self, process: asyncio.subprocess.Process, target: Target, log: list[str]) -> None:
        self._process, self._target, self._log = process, target, log
        assert process.stderr is not None
        self._stderr = process.stderr
        self._follower: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, settings: Path, store: str, target: Target, log: list[str], program: Sequence[str] = ("app.py",)
    ) -> Process:
        """Returns when it listens, and `target` says where. Raises NotStarted."""
        started = cls(
            await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", sys.executable, *program, "serve", "--config", str(settings)),
                cwd=ROOT,
                env={**_environment(), "CONCH_STORE__URL": store},
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            ),
            target,
            log,
        )
        await started._await_address()
        return started

    @property
    def pid(self) -> int:
        return self._process.pid

    async def holds(self) -> Holding:
        """Of scripts.telling. Raises TimeoutError where it does not say."""
        said = len(self._log)
        self._process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(10):
            while not (told := TOLD.search("".join(self._log[said:]))):  # noqa: ASYNC110 - a log tells no event
                await asyncio.sleep(0.05)
        return msgspec.json.decode(told[1], type=Holding)

    async def kill(self) -> None:
        """kill -9, unless it has ended."""
        if self._process.returncode is None:
            self._process.kill()
        await self._ended()

    async def stop(self) -> int:
        """SIGTERM; its exit status."""
        self._process.terminate()
        return await self._ended()

    async def _ended(self) -> int:
        self._target.up.clear()
        status = await self._process.wait()
        if self._follower is not None:
            await self._follower
        return status

    async def _await_address(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STARTING):
                async for line in self._stderr:
                    self._log.append(line.decode())
                    if found := LISTENING.search(self._log[-1]):
                        parts = urlsplit(found[1])
                        self._target.begin(str(parts.hostname), int(parts.port or 0))
                        self._follower = asyncio.create_task(self._follow())
                        return
        await self.kill()
        raise NotStarted("The gateway did not start:\n" + "".join(self._log[-10:]))

    async def _follow(self) -> None:
        async for line in self._stderr:
            self._log.append(line.decode())


def _environment() -> dict[str, str]:
    """Ours without Conch's own settings: the generated file alone decides. One heap, as in what `deploy/` runs."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CONCH_")}
    return {"MALLOC_ARENA_MAX": "1", **ours}
