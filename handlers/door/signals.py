"""What a connection waits on: hardly ever does anybody wait there."""

import asyncio
from typing import Literal


class Signal(asyncio.Event):
    """An event that makes its queue for who waits. asyncio's has one from the start, of 760 bytes, and each connection
    has an event, and each request."""

    _turns: tuple[asyncio.Future[None], ...] = ()

    def __init__(self, is_set: bool = False) -> None:
        self._value = is_set

    def set(self) -> None:
        """Wakes all who wait."""
        self._value = True
        turns, self._turns = self._turns, ()
        for turn in turns:
            if not turn.done():
                turn.set_result(None)

    async def wait(self) -> Literal[True]:
        """Returns once it has been set."""
        if not self._value:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._turns += (turn,)
            await turn
        return True
