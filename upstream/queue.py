"""The requests that wait for a model to have room: first come, first served, and no more than so many."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from upstream.errors import DeadlinePassed, QueueFull, UpstreamError

if TYPE_CHECKING:
    from upstream.replica import Replica


class Queue:
    """`take` gives a server with a place taken there, or None. Who leaves a place calls `advance` if any wait."""

    def __init__(self, name: str, most: int, take: Callable[[], "Replica | None"]) -> None:
        self.waiting: deque[asyncio.Future[Replica]] = deque()
        self.refused = 0  # requests that found it full
        self._name = name
        self.most = most
        self._take = take

    async def wait(self, deadline: float) -> "Replica":
        """A server with a place taken there. Raises QueueFull, DeadlinePassed, or what `fail` is given.

        Who is cancelled has left the queue.
        """
        if len(self.waiting) >= self.most:
            self.refused += 1
            raise QueueFull(f"{self._name}: {self.most} requests wait already", retry_after=1)
        turn: asyncio.Future[Replica] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
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
