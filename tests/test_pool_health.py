"""When a server is left out and asked again, who waits in a queue, and which servers a name stands for."""

import asyncio
from math import inf
from typing import Any, cast

import pytest

from upstream.errors import DeadlinePassed, QueueFull, Unavailable, failure
from upstream.health import LONGEST_BACKOFF, MOST_FAILURES, Health
from upstream.names import Names, endpoints, is_name
from upstream.queue import Queue, Watcher
from upstream.replica import _failure


def state(health: Health) -> str:
    return health.state


def serving() -> Health:
    health = Health()
    assert state(health) == "unverified"
    health.verified(0.0)
    assert state(health) == "serving"
    return health


def ejected(now: float = 0.0) -> Health:
    health = serving()
    for _ in range(MOST_FAILURES - 1):
        assert not health.failed(now, alone=False)
    assert health.failed(now, alone=False)
    assert state(health) == "ejected"
    return health


def test_failures_in_a_row_eject() -> None:
    health = serving()
    for _ in range(3 * MOST_FAILURES):
        assert not health.failed(0.0, alone=False)
        health.succeeded()
    assert state(health) == "serving"
    assert ejected().ejections == 1


def test_the_last_one_is_not_ejected() -> None:
    health = serving()
    for _ in range(3 * MOST_FAILURES):
        assert not health.failed(0.0, alone=True)
    assert state(health) == "serving"
    assert health.failed(0.0, alone=False), "one more serves again"


def test_after_its_time_one_request_decides() -> None:
    health = ejected()
    health.verified(health.due - 0.01)
    assert state(health) == "ejected", "its check passes, and its requests failed"
    first = health.due
    health.verified(first)
    assert state(health) == "trial"
    assert health.due == inf
    assert health.failed(first, alone=True), "a trial is over at the first failure"
    assert state(health) == "ejected"
    health.verified(health.due)
    health.succeeded()
    assert state(health) == "serving"
    assert health.ejections == 2


def test_a_refused_connection_ejects_at_once_and_a_check_decides() -> None:
    health = serving()
    health.refused(1.0)
    assert (state(health), health.ejections) == ("ejected", 1)
    assert 1.0 < health.due < 1.5
    health.refused(1.0)
    assert health.ejections == 1, "those that were under way tell nothing new"
    health.verified(1.1)
    assert state(health) == "serving"


def test_the_time_doubles_up_to_a_bound_and_is_jittered() -> None:
    waits = []
    for _ in range(20):
        health, now = serving(), 0.0
        each = []
        for _ in range(12):
            health.unreachable(now)
            each.append(health.due - now)
            now = health.due
        waits.append(each)
    for number, column in enumerate(zip(*waits, strict=True)):
        backoff = min(0.25 * 2**number, LONGEST_BACKOFF)
        assert all(0.5 * backoff <= wait <= 1.5 * backoff for wait in column)
        assert len(set(column)) > 1


def test_a_server_without_the_model_is_no_candidate() -> None:
    health = ejected()
    health.unverified()
    assert (state(health), health.due) == ("unverified", inf)
    health.verified(0.0)
    assert state(health) == "serving", "it has loaded the model anew"


# What Triton's core says of a request that has not begun --------------------------------------------


@pytest.mark.parametrize(
    ("message", "absent"),
    [
        ("Exceeds maximum queue size", False),
        ("[request id: <id_unknown>] Exceeds maximum queue size", False),
        ("Request for unknown model: 'x' is not found", True),
        ("Request for unknown model: 'x' has no available versions", True),
        ("Server is stopping, scheduler for model has stopped accepting new inference requests", True),
        ("Server not ready", True),
    ],
)
def test_not_begun(message: str, absent: bool) -> None:
    error = failure(message, "status 503", busy=True)
    assert isinstance(error, Unavailable)
    assert (error.sent, error.absent) == (False, absent)


@pytest.mark.parametrize(
    "message",
    [
        "in ensemble 'e', Exceeds maximum queue size",  # a step of it has run
        "Request timeout expired",
        "the file is not found",
        "the adapter is not ready",
    ],
)
def test_may_have_begun(message: str) -> None:
    error = failure(message, "status 503", busy=True)
    assert isinstance(error, Unavailable)
    assert (error.sent, error.absent) == (True, False)


@pytest.mark.parametrize(
    ("status", "told", "wait"),
    [(503, b"7", 7), (503, b"0", 1), (503, b"99999", 3600), (503, b"Wed, 21 Oct 2026 07:28:00 GMT", 1), (404, b"7", 7)],
)
def test_who_stands_before_triton_says_when_to_come_again(status: int, told: bytes, wait: int) -> None:
    error = _failure(status, {b"retry-after": told}, b"<html>")
    assert isinstance(error, Unavailable)
    assert error.retry_after == wait
    assert not hasattr(_failure(500, {b"retry-after": told}, b"<html>"), "retry_after")


# The queue ------------------------------------------------------------------------------------------


class Place:
    """A server with one place, as far as a queue knows one."""

    def __init__(self) -> None:
        self.free = True
        self.queue = Queue("m", 2, cast(Any, self.take), Watcher())

    def take(self) -> "Place | None":
        if not self.free:
            return None
        self.free = False
        return self

    def leave(self) -> None:
        self.free = True
        self.queue.advance()


def now() -> float:
    return asyncio.get_running_loop().time()


def waiting(place: Place, seconds: float = 60.0) -> asyncio.Task[Any]:
    return asyncio.create_task(place.queue.wait(now() + seconds))


async def test_first_come_first_served() -> None:
    place = Place()
    assert place.take() is place
    first, second = waiting(place), waiting(place)
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as refused:
        await place.queue.wait(now() + 1)
    assert (refused.value.retry_after, place.queue.refused) == (1, 1)
    place.leave()
    assert await first is place
    assert not second.done()
    place.leave()
    assert await second is place


async def test_who_leaves_the_queue_makes_room_at_once() -> None:
    place = Place()
    place.take()
    first, second = waiting(place), waiting(place)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    assert len(place.queue.waiting) == 1
    place.leave()
    assert await second is place


@pytest.mark.parametrize("served_first", [True, False])
async def test_leaving_as_the_turn_comes_loses_no_place(served_first: bool) -> None:
    place = Place()
    place.take()
    first, second = waiting(place), waiting(place)
    await asyncio.sleep(0)
    if served_first:
        place.leave()
        first.cancel()
    else:
        first.cancel()
        place.leave()
    assert await second is place
    assert first.cancelled()
    place.leave()
    assert place.free


async def test_a_deadline_in_the_queue() -> None:
    place = Place()
    place.take()
    with pytest.raises(DeadlinePassed) as passed:
        await waiting(place, 0.02)
    assert not passed.value.sent
    assert not place.queue.waiting


# Names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addresses", "servers"),
    [
        (["10.0.0.1"], [None]),
        (["127.0.0.1", "::1"], [None]),
        (["10.0.0.2", "10.0.0.1", "10.0.0.2"], ["10.0.0.1", "10.0.0.2"]),
        (["10.0.0.2", "fd00::1", "10.0.0.1", "fd00::2"], ["10.0.0.1", "10.0.0.2"]),
        (["fd00::2", "fd00::1"], ["fd00::1", "fd00::2"]),
    ],
)
def test_servers_of_a_name(addresses: list[str], servers: list[str | None]) -> None:
    assert endpoints(addresses) == servers


@pytest.mark.parametrize(
    ("url", "named"),
    [("http://triton:8000", True), ("http://127.0.0.1:8000", False), ("http://[::1]:8000", False)],
)
def test_what_is_a_name(url: str, named: bool) -> None:
    assert is_name(url) == named


async def test_changes_of_a_name() -> None:
    answers: list[list[str] | OSError] = [["10.0.0.1"], ["10.0.0.1"], OSError("away"), ["10.0.0.2"], ["10.0.0.1"], []]

    async def resolve(name: str) -> list[str]:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    names = Names(resolve)
    told = [await names.look("triton") for _ in range(6)]
    assert told == [[None], None, None, ["10.0.0.2"], ["10.0.0.1"], None]
