"""The access log, as whoever collects stdout sees it: a line of JSON for each request, of all workers; no content."""

import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from scripts.triton import Triton
from tests.gateway import Conch
from tests.priced import CONFIG, NANO, Customer, open_books, post, send
from tests.raw import Wire, await_true, bearer, chat, script
from tests.secrecy import KEY

CHAT = "/v1/chat/completions"
ON = {"CONCH_SERVER__ACCESS_LOG": "true"}
ALWAYS = {"time", "request_id", "method", "endpoint", "status", "total_ms", "bytes"}


@pytest.fixture(scope="module")
def shop(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conch]:
    """A gateway with prices, whose stdout goes to `access.log`."""
    conch = Conch(tmp_path_factory.mktemp("access"), triton.url, CONFIG, grpc=triton.grpc_url)
    with conch.config.with_name("access.log").open("wb") as conch.stdout, conch.running(**ON):
        yield conch


def lines(conch: Conch) -> list[dict[str, Any]]:
    """What has been written so far."""
    return [json.loads(line) for line in conch.config.with_name("access.log").read_bytes().splitlines()]


def line(conch: Conch, id: str) -> dict[str, Any]:
    """That of one request, and only that."""
    await_true(lambda: any(each["request_id"] == id for each in lines(conch)))
    (found,) = [each for each in lines(conch) if each["request_id"] == id]
    return found


async def test_a_request_is_one_line(shop: Conch) -> None:
    async with open_books(shop) as books:
        customer = await books.customer()
        answer = post(shop, customer, CHAT, script("one ", "two", model="priced"), x_client_request_id='mine "1"')
        (row,) = await books.usage(customer)
    told = line(shop, answer.headers["x-request-id"])
    assert told.keys() == ALWAYS | {
        *("client_request_id", "workspace", "key", "model", "upstream_ms", "input_tokens", "output_tokens", "cost_usd")
    }
    assert (told["method"], told["endpoint"], told["status"], told["model"]) == ("POST", CHAT, 200, "priced")
    assert told["client_request_id"] == 'mine "1"'
    assert (told["workspace"], told["key"]) == (customer.workspace, customer.key[:16])
    assert (told["input_tokens"], told["output_tokens"]) == (row.units.input_tokens, row.units.output_tokens)
    assert Decimal(told["cost_usd"]) * NANO == row.cost
    assert told["bytes"] == len(answer.body)
    assert 0 < told["upstream_ms"] < told["total_ms"]
    assert abs((datetime.now(UTC) - datetime.fromisoformat(told["time"])).total_seconds()) < 60


async def test_a_stream_a_refusal_and_one_that_leaves(shop: Conch) -> None:
    async with open_books(shop) as books:
        customer, poor = await books.customer(), await books.customer("0.000001")
    answer = post(shop, customer, CHAT, script(*["x"] * 10, model="priced", stream=True, pace_ms=5))
    told = line(shop, answer.headers["x-request-id"])
    assert told["stream"] is True
    assert 0 < told["first_ms"] < told["total_ms"] - 20
    assert told["bytes"] == len(answer.body)
    answer = post(shop, poor, CHAT, script("x", model="priced"))
    told = line(shop, answer.headers["x-request-id"])
    assert (told["status"], told["code"], told["workspace"]) == (402, "insufficient_credits", poor.workspace)
    answer = post(shop, Customer("", "rp_live_" + "0" * 64), "/v1/nowhere/at/all", chat("hello"))
    told = line(shop, answer.headers["x-request-id"])
    assert told == {each: told[each] for each in ALWAYS} | {"endpoint": "other", "status": 404, "code": "unknown_route"}
    with Wire(shop.url) as wire:
        send(wire, customer, CHAT, script(*["x"] * 5000, model="priced", stream=True, pace_ms=5))
        status, headers = wire.answer_head()
        assert (status, bool(wire.chunk())) == (200, True)
    told = line(shop, headers["x-request-id"])
    assert (told["status"], told["code"]) == (499, "client_disconnected")
    assert told["output_tokens"] > 0


def test_a_head_that_is_refused_is_a_line_too(shop: Conch) -> None:
    with Wire(shop.url) as wire:
        wire.send(b"GET /secret HTTP/1.1\r\n\r\n")
        answer = wire.answer()
    told = line(shop, answer.headers["x-request-id"])
    assert told.keys() == ALWAYS | {"code"}
    assert (told["method"], told["endpoint"], told["status"], told["code"]) == ("other", "other", 400, "invalid_http")
    assert told["bytes"] == len(answer.body)


async def test_nothing_that_was_said_is_in_it(shop: Conch) -> None:
    async with open_books(shop) as books:
        customer = await books.customer()
    said, answered = "unmistakable-question", "unmistakable-answer"
    body = json.loads(script(answered, model="priced"))
    body["messages"].insert(0, {"role": "system", "content": said})
    answer = post(shop, customer, f"{CHAT}?also={said}", body)
    assert answered.encode() in answer.body
    line(shop, answer.headers["x-request-id"])
    text = shop.config.with_name("access.log").read_bytes()
    assert said.encode() not in text
    assert answered.encode() not in text
    assert not KEY.search(text)


def test_lines_of_workers_do_not_mix_and_none_is_lost_at_the_end(triton: Triton, tmp_path: Path) -> None:
    conch = Conch(tmp_path, triton.url)
    conch.workspace("acme")
    key = conch.key("acme")
    read, write = os.pipe()
    ids = set()
    with os.fdopen(read, "rb") as reader:
        with os.fdopen(write, "wb") as conch.stdout, conch.running(**ON, CONCH_SERVER__WORKERS="2"):
            wires = [Wire(conch.url) for _ in range(10)]
            for _ in range(8):
                for wire in wires:
                    wire.request("GET", "/v1/models", **bearer(key), x_client_request_id="x" * 400)
                ids |= {wire.answer().headers["x-request-id"] for wire in wires}
            for wire in wires:
                wire.close()
        told = [json.loads(each) for each in reader.read().splitlines()]  # until the last of them has closed it
    assert {each["request_id"] for each in told} == ids
    assert len(told) == len(ids) == 80


def test_nobody_waits_for_whoever_reads_it(triton: Triton, tmp_path: Path) -> None:
    """A pipe that nobody reads is full after 64 KiB."""
    conch = Conch(tmp_path, triton.url)
    conch.workspace("acme")
    key = conch.key("acme")
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader:
        with os.fdopen(write, "wb") as conch.stdout, conch.running(**ON), Wire(conch.url) as wire:
            for _ in range(300):
                wire.request("GET", "/v1/models", **bearer(key), x_client_request_id="x" * 500)
                assert wire.answer().status == 200
        assert 50_000 < len(reader.read()) <= 1 << 16, "it has ended, although nobody read"


def test_it_is_off_unless_it_is_asked_for(triton: Triton, tmp_path: Path) -> None:
    conch = Conch(tmp_path, triton.url)
    with (tmp_path / "access.log").open("wb") as conch.stdout, conch.running(), Wire(conch.url) as wire:
        wire.request("GET", "/healthz")
        assert wire.answer().status == 200
    assert (tmp_path / "access.log").read_bytes() == b""
    assert not re.search("healthz", "".join(conch.log))
