"""The requests that wait for a model to have room: first come, first served, and no more than so many."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from upstream.errors import DeadlinePassed, QueueFull, UpstreamError

if TYPE_CHECKING:
    from upstream.replica import Replica


class Watcher:
    """Is told of what happens at a model, by its deployment's id, and what is waited for, in seconds; this one does not
    mind.

    A request that is answered at once, where it is sent first, tells it nothing.
    """

    def queued(self, model: str) -> None:
        """A request waits for a place."""

    def unqueued(self, model: str, seconds: float) -> None:
        """It has waited so long: its turn has come, or it has given up."""

    def turned_away(self, model: str) -> None:
        """A request found the queue full."""

    def woken(self, model: str, seconds: float) -> None:
        """A request has waited so long for the model to be loaded, perhaps in vain."""

    def loaded(self, model: str, seconds: float, outcome: str) -> None:
        """Triton has taken so long to load it, or to say that it cannot: `outcome` is loaded or failed."""

    def unloaded(self, model: str) -> None:
        """Its servers are told to unload it: nobody has asked for long."""

    def retried(self, model: str) -> None:
        """Another server is asked what one before could not have run."""


class Queue:
    """`take` gives a server with a place taken there, or None. Who leaves a place calls `advance` if any wait."""

    def __init__(self, name: str, most: int, take: Callable[[], "Replica | None"], watcher: Watcher) -> None:
        self.waiting: deque[asyncio.Future[Replica]] = deque()
        self.refused = 0  # requests that found it full
        self._name = name
        self.most = most
        self._take = take
        self._watcher = watcher

    async def wait(self, deadline: float) -> "Replica":
        """A server with a place taken there. Raises QueueFull, DeadlinePassed, or what `fail` is given.

        Who is cancelled has left the queue.
        """
        if len(self.waiting) >= self.most:
            self.refused += 1
            self._watcher.turned_away(self._name)
            raise QueueFull(f"{self._name}: {self.most} requests wait already", retry_after=1)
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[Replica] = loop.create_future()
        self.waiting.append(turn)
        since = loop.time()
        self._watcher.queued(self._name)
        try:
            async with asyncio.timeout_at(deadline):
                return await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                turn.result().leave()  # its turn came as it left
            elif turn in self.waiting:
                self.waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise DeadlinePassed("connect", f"{self._name}: out of time in the queue") from error
            raise
        finally:
            self._watcher.unqueued(self._name, loop.time() - since)

    def advance(self) -> None:
        """Give what room there is to those who wait."""
        while self.waiting:
            if self.waiting[0].done():  # it is leaving
                self.waiting.popleft()
                continue
            replica = self._take()
            if replica is None:
                return
            self.waiting.popleft().set_result(replica)

    def fail(self, error: Callable[[], UpstreamError]) -> None:
        """No server is left that they could wait for."""
        while self.waiting:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_exception(error())
