"""What workspaces may do at once, over several gateway processes on one store: credits to the last, and places."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from scripts.triton import Triton
from tests.gateway import Conch
from tests.priced import CONFIG, NANO, Books, Customer, open_books, started
from tests.raw import Answer, Wire, await_true, bearer, head, quiet, script

CHAT = "/v1/chat/completions"
PROCESSES, EACH, PAID = 8, 200, 50
PATIENT = {"CONCH_SERVER__HEADER_TIMEOUT": "30s", "CONCH_SERVER__BODY_TIMEOUT": "30s"}  # with so many, one waits


@pytest.fixture(scope="module")
def fleet(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Conch]]:
    """Gateways on one store."""
    folder = tmp_path_factory.mktemp("fleet")
    gateways = [Conch(folder, triton.url, CONFIG, grpc=triton.grpc_url) for _ in range(PROCESSES)]
    gateways[0].workspace("spare")
    with ExitStack() as stack, ThreadPoolExecutor() as side_by_side:
        for gateway in side_by_side.map(lambda each: stack.enter_context(each.running(**PATIENT)), gateways):
            assert gateway.url
        yield gateways
        spare = gateways[0].key("spare")
        for gateway in gateways:
            quiet(gateway, spare)


@pytest.fixture(scope="module")
async def books(fleet: list[Conch]) -> AsyncIterator[Books]:
    async with open_books(fleet[0]) as books:
        yield books


async def status(conch: Conch, request: bytes) -> int:
    """The status of one request on a connection of its own, once its answer is whole."""
    parts = urlsplit(conch.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(request)
        answer = await reader.read()
    finally:
        writer.close()
    return int(answer[9:12])


async def test_credits_are_exact(fleet: list[Conch], books: Books, triton: Triton) -> None:
    """The issue's own measure: eight processes with 200 requests each, all at once, on credit for 50."""
    customer, before = await books.customer(str(PAID)), started(triton)
    body = script("a", "b", model="coin").replace(b"100000", b"1")  # one token of one dollar
    request = head("POST", CHAT, "x", len(body), connection="close", **bearer(customer.key)) + body
    asked = [status(conch, request) for conch in fleet for _ in range(EACH)]
    assert Counter(await asyncio.gather(*asked)) == {200: PAID, 402: PROCESSES * EACH - PAID}
    assert started(triton) - before == PAID
    assert [row.cost for row in await books.usage(customer)] == [NANO] * PAID
    account = await books.account(customer)
    assert (account.credits, account.held, account.spent) == (0, 0, PAID * NANO)


# The places of a plan ------------------------------------------------------------------------------


def ask(conch: Conch, customer: Customer, body: bytes) -> Answer:
    with Wire(conch.url) as wire:
        wire.request("POST", CHAT, body, **bearer(customer.key))
        return wire.answer()


def running(conch: Conch, customer: Customer) -> Wire:
    """A stream that has begun and does not end by itself."""
    wire = Wire(conch.url)
    wire.request("POST", CHAT, script(*["x"] * 20_000, stream=True, pace_ms=5), **bearer(customer.key))
    assert wire.answer_head()[0] == 200
    return wire


def refused(conch: Conch, customer: Customer) -> None:
    """Assert that there is no place."""
    answer = ask(conch, customer, script("a"))
    error = answer.error(429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "concurrency_limit_exceeded")
    assert error["message"].startswith("2 requests of this workspace")
    assert answer.headers["retry-after"] == "1"


async def places(books: Books, customer: Customer, expected: int) -> None:
    """Look until so many are taken."""
    async with asyncio.timeout(10):
        sql, taken = "SELECT running FROM places WHERE workspace = $1", -1
        while taken != expected:
            ((taken,),) = await books.rows(sql, customer.workspace)


async def test_a_workspace_has_so_many_places_in_all_processes(fleet: list[Conch], books: Books) -> None:
    customer, other = await books.customer(plan="pair"), await books.customer(plan="pair")
    with running(fleet[0], customer), running(fleet[1], customer):
        for conch in fleet[:3]:
            refused(conch, customer)
        assert ask(fleet[2], other, script("a")).status == 200
    await_true(lambda: ask(fleet[2], customer, script("a")).status == 200)


ENDS: dict[str, tuple[bytes, int]] = {
    "an answer": (script("a"), 200),
    "a stream": (script("a", stream=True), 200),
    "a failure": (script("a", fail_after=0), 502),
    "a stream that fails": (script("a", "b", stream=True, fail_after=1), 200),
    "a request that is wrong": (b"{}", 400),
    "one that cannot be paid": (script("a", model="coin"), 402),
}


@pytest.mark.parametrize("how", ENDS)
async def test_a_place_is_free_when_its_request_is_answered(fleet: list[Conch], books: Books, how: str) -> None:
    """Whoever asks again at once, also another process, is not refused."""
    body, expected = ENDS[how]
    customer = await books.customer(plan="pair")
    with running(fleet[0], customer):
        statuses = [ask(fleet[turn % 3], customer, body).status for turn in range(60)]
        assert Counter(statuses) == {expected: 60}
        with running(fleet[1], customer):
            refused(fleet[2], customer)


async def test_a_place_is_free_when_its_client_has_left(fleet: list[Conch], books: Books) -> None:
    customer = await books.customer(plan="pair")
    with running(fleet[0], customer):
        for _ in range(5):
            with Wire(fleet[1].url) as wire:
                wire.request("POST", CHAT, script("a", wait_ms=2000), **bearer(customer.key))
                await places(books, customer, 2)
                refused(fleet[2], customer)
            await_true(lambda: ask(fleet[2], customer, script("a")).status == 200)
    await places(books, customer, 0)
    taken = await books.rows("SELECT taken FROM slots WHERE workspace = $1", customer.workspace)
    assert {each for (each,) in taken} == {0}
