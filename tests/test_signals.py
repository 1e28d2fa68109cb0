"""The event of connections: it wakes all who wait, and nobody twice."""

import asyncio

from handlers.door.signals import Signal


async def test_it_wakes_all_who_wait() -> None:
    signal = Signal()
    waiting = [asyncio.create_task(signal.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    signal.set()
    signal.clear()  # who waited is woken all the same
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [done[0], done[2]] == [True, True]
    assert isinstance(done[1], asyncio.CancelledError)
    assert not signal.is_set()


async def test_one_that_is_set_waits_for_nothing() -> None:
    signal = Signal(True)
    assert await signal.wait()
    signal.clear()
    waiting = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    signal.set()
    assert await waiting
    assert await signal.wait()
