"""Clients that remember what they saw: many at once, whole answers and streams, some sent again with their key."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from uuid import UUID

PATH = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"
CODE = re.compile(rb'"code":"(\w+)"')
UNTOLD = "store_unavailable"
KEYED, PRICED, FREE = "keyed", "priced", "free"
"""Models. Only requests with an Idempotency-Key are for the first, so that their usage is told from that of others."""
LONGEST = 25.0
"""Seconds after which a client gives up on an answer: no answer here takes as long."""

_lives = itertools.count(1)

Chosen = Callable[[random.Random], "Ask"]


@dataclass(frozen=True)
class Ask:
    """A request, of a chat unless `path` says otherwise; `cost` in nano-dollars, where its answer counts no tokens.

    Its client leaves once `patience` pieces of the answer's body have come, or after so many seconds, `leaves`, or
    when it has sent so many bytes, if it has no more of it.
    """

    body: bytes
    key: str | None = None
    patience: int | None = None
    leaves: float | None = None
    sends: int | None = None
    path: str = PATH
    method: str = "POST"
    content_type: str = "application/json"
    kind: str = "chat"
    cost: int | None = None


@dataclass
class Seen:
    """What a client saw of one answer: nothing more than its head or a part of its body where it ended early."""

    ask: Ask
    life: int
    id: str = ""
    status: int = 0
    replayed: bool = False
    streamed: bool = False
    body: bytes = b""
    retry_after: bool = False
    whole: bool = False
    left: bool = False
    hung: bool = False
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether it is a success that came to its end: for a stream, [DONE]."""
        return self.status == 200 and (self.body.endswith(DONE) if self.streamed else self.whole)

    @property
    def broken(self) -> bool:
        """Whether it ended early, and not by its client: it may have run, and been charged.

        So may one whose answer says that the ledger could not be told: the ledger may have heard it all the same.
        """
        return not self.complete and not self.left and (not self.whole or self.code == UNTOLD)

    @property
    def code(self) -> str:
        """Of the error in it, if any."""
        found = CODE.search(self.body)
        return found[1].decode() if found else ""


@dataclass
class Target:
    """Where a gateway listens. `life` is another number for each of its processes, `up` set while there is one."""

    host: str = ""
    port: int = 0
    life: int = -1
    up: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, host: str, port: int) -> None:
        """It has a process again."""
        self.host, self.port, self.life = host, port, next(_lives)
        self.up.set()


def choose(models: Sequence[str], keyed: float) -> Chosen:
    """Asks of a few pieces at a random pace, for one of `models`; this part of them with a key of its own."""

    def chosen(dice: random.Random) -> Ask:
        key = str(UUID(int=dice.getrandbits(128))) if dice.random() < keyed else None
        stream = dice.random() < 0.6
        pieces = [f"{dice.getrandbits(24):06x} " for _ in range(dice.randint(1, 12))]
        script = {"pieces": pieces, "pace_ms": dice.choice((0, 2, 10, 20))}
        asked = {
            "model": KEYED if key else dice.choice(models),
            "messages": [{"role": "user", "content": "script: " + json.dumps(script)}],
            "max_tokens": 32,
            "stream": stream,
        }
        if stream:
            asked["stream_options"] = {"include_usage": True}
        leaves = stream and dice.random() < 0.05
        return Ask(json.dumps(asked).encode(), key, dice.randint(1, 3) if leaves else None)

    return chosen


class Load:
    """So many `clients`, spread over `targets`, that each ask again as soon as they are answered.

    They make at most about `rate` requests per second together. `seen`, which may have begun before, is in the order
    of the ends. Of the requests, `repeats` are one with a key that was sent before, once more.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        secret: str,
        chosen: Chosen,
        *,
        clients: int,
        seed: int,
        repeats: float = 0.15,
        rate: float = inf,
        seen: list[Seen] | None = None,
    ) -> None:
        self.seen: list[Seen] = [] if seen is None else seen
        self._progress = asyncio.Condition()
        self._targets, self._secret, self._chosen = targets, secret, chosen
        self._dice, self._repeats = random.Random(seed), repeats
        self._keyed: list[Ask] = []
        self._pause = clients / rate
        self._stopping = False
        self._clients = [asyncio.create_task(self._ask_on(targets[n % len(targets)])) for n in range(clients)]

    async def until(self, enough: Callable[[Sequence[Seen]], bool], seconds: float = 20.0) -> None:
        """Returns when what came from now on is enough. Raises TimeoutError."""
        since = len(self.seen)
        async with asyncio.timeout(seconds), self._progress:
            await self._progress.wait_for(lambda: enough(self.seen[since:]))

    async def stop(self) -> None:
        """Returns when every client has its last answer. Raises what a client raised."""
        self._stopping = True
        await asyncio.gather(*self._clients)

    async def abort(self) -> None:
        """Ends the clients as they are."""
        for client in self._clients:
            client.cancel()
        await asyncio.wait(self._clients)

    async def repeat_all(self) -> list[Seen]:
        """Each request with a key once more, at last: what comes of it."""
        waiting, seen = self._keyed[::-1], list[Seen]()

        async def repeat(target: Target) -> None:
            client = Client(target, self._secret)
            while waiting and not any(each.hung for each in seen[-1:]):
                ask = waiting.pop()
                seen.append(await client.ask(ask) or Seen(ask, target.life))
            client.close()

        await asyncio.gather(*(repeat(target) for target in self._targets for _ in range(8)))
        return seen

    async def _ask_on(self, target: Target) -> None:
        client = Client(target, self._secret)
        try:
            while not self._stopping:
                if self._pause:
                    await asyncio.sleep(self._dice.expovariate(1 / self._pause))
                seen = await client.ask(self._next())
                if seen is None:
                    await _restarted(target)
                    continue
                await self._note(seen)
                if seen.hung:  # one such client tells enough, and would hold up everything
                    break
                if seen.status == 503:  # a client that is told to wait, waits; for the load a moment is enough
                    await asyncio.sleep(0.05)
        finally:
            client.close()

    async def _note(self, seen: Seen) -> None:
        async with self._progress:
            self.seen.append(seen)
            self._progress.notify_all()

    def _next(self) -> Ask:
        if self._keyed and self._dice.random() < self._repeats:
            return self._dice.choice(self._keyed[-500:])
        ask = self._chosen(self._dice)
        if ask.key is not None:
            self._keyed.append(Ask(ask.body, ask.key))
        return ask


async def _restarted(target: Target) -> None:
    """Nobody listens there: wait for the next life, at most for a while."""
    await asyncio.sleep(0.02)
    async with asyncio.timeout(LONGEST):
        await target.up.wait()


class Client:
    """One client, on one connection until that breaks or the gateway's next life begins."""

    def __init__(self, target: Target, secret: str) -> None:
        self._target, self._secret = target, secret
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._life = -1

    async def ask(self, ask: Ask) -> Seen | None:
        """What came, at the latest after LONGEST; None where nobody listens."""
        if self._life != self._target.life:
            self.close()
        if self._connection is None:
            self._life = self._target.life
            try:
                self._connection = await asyncio.open_connection(self._target.host, self._target.port)
            except OSError:
                return None
        seen, started = Seen(ask, self._life), time.monotonic()
        try:
            async with asyncio.timeout(LONGEST if ask.leaves is None else ask.leaves):
                await self._exchange(*self._connection, seen)
        except TimeoutError:
            seen.hung, seen.left = ask.leaves is None, ask.leaves is not None
        except asyncio.IncompleteReadError as error:
            seen.body += error.partial if seen.status else b""
        except OSError:
            pass  # the connection broke: what came is what was seen
        seen.seconds = time.monotonic() - started
        if not seen.whole:
            self.close()
        return seen

    def close(self) -> None:
        """Gone, at once."""
        if self._connection is not None:
            self._connection[1].transport.abort()
        self._connection = None

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Seen) -> None:
        ask = seen.ask
        headers = {
            "host": f"{self._target.host}:{self._target.port}",
            "authorization": f"Bearer {self._secret}",
            "content-type": ask.content_type,
            "content-length": str(len(ask.body)),
        }
        if ask.key is not None:
            headers["idempotency-key"] = ask.key
        lines = [f"{ask.method} {ask.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        writer.write(("\r\n".join(lines).encode() + ask.body)[: ask.sends])
        if ask.sends is not None:
            await writer.drain()
            seen.left = True
            return
        status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        told = dict(line.split(": ", 1) for line in fields)
        seen.status, seen.id = int(status.split()[1]), told["x-request-id"]
        seen.replayed, seen.retry_after = "x-runinfra-idempotent-replay" in told, "retry-after" in told
        seen.streamed = told.get("content-type", "").startswith("text/event-stream")
        if "content-length" in told:
            seen.body = await reader.readexactly(int(told["content-length"]))
            seen.whole = True
        else:
            await _read_chunks(reader, seen)
        if told.get("connection") == "close":
            self.close()


async def _read_chunks(reader: asyncio.StreamReader, seen: Seen) -> None:
    pieces = 0
    while size := int(await reader.readuntil(b"\r\n"), 16):
        seen.body += await reader.readexactly(size)
        await reader.readexactly(2)
        pieces += 1
        if seen.ask.patience is not None and pieces >= seen.ask.patience:
            seen.left = True
            return
    await reader.readexactly(2)
    seen.whole = True
