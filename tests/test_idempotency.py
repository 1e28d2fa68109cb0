"""Idempotency keys on the running gateway: sent again, a request gets its first answer, and runs and costs once."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from openai import ConflictError

from scripts.triton import Triton
from store import Clock, accounts, processes
from tests import priced
from tests.gateway import Conch
from tests.priced import CONFIG, NANO, Body, Books, Customer, done, open_books, recording, started
from tests.raw import Answer, Wire, await_true, bearer, quiet, script

CHAT, RESPONSES, IMAGES = "/v1/chat/completions", "/v1/responses", "/v1/images/generations"
SPEECH, TRANSCRIPTIONS = "/v1/audio/speech", "/v1/audio/transcriptions"
REPLAY = "x-runinfra-idempotent-replay"
DAY = 86_400_000_000  # µs
GOOD = script("a", "b", model="priced")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("idempotent")


@pytest.fixture(scope="module")
def shop(triton: Triton, folder: Path) -> Iterator[Conch]:
    """A gateway whose models have prices."""
    conch = Conch(folder, triton.url, CONFIG, grpc=triton.grpc_url)
    conch.workspace("piped")
    conch.command("credits", "grant", "piped", "1")
    with conch.running():
        yield conch
        quiet(conch, conch.key("piped"))


@pytest.fixture(scope="module")
async def books(shop: Conch) -> AsyncIterator[Books]:
    async with open_books(shop) as books:
        yield books


@pytest.fixture
async def customer(books: Books) -> Customer:
    """With ten dollars."""
    return await books.customer()


@pytest.fixture
def key() -> str:
    """An idempotency key."""
    return f"key-{uuid4()}"


def send(wire: Wire, customer: Customer, path: str, body: Body, key: str) -> None:
    priced.send(wire, customer, path, body, idempotency_key=key)


def post(conch: Conch, customer: Customer, path: str, body: Body, key: str, **headers: str) -> Answer:
    return priced.post(conch, customer, path, body, idempotency_key=key, **headers)


def ran(answer: Answer) -> bool:
    """Whether it is no replay."""
    assert answer.status == 200, answer
    assert answer.headers.get(REPLAY, "true") == "true"
    return REPLAY not in answer.headers


# The same answer again ----------------------------------------------------------------------------

SPOKEN = {"model": "voice", "voice": "alloy", "input": "Hello there."}
ANSWERS: dict[str, tuple[str, Body]] = {
    "chat": (CHAT, GOOD),
    "chat, streamed": (CHAT, script("a", "b", model="priced", stream=True)),
    "chat, 400 kB": (CHAT, script("x" * 400_000, model="priced")),
    "chat, 400 kB streamed": (CHAT, script(*["x" * 40_000] * 10, model="priced", stream=True)),
    "chat, free": (CHAT, script("a", "b")),
    "completion": ("/v1/completions", {"model": "priced", "prompt": ["a", "b"]}),
    "response": (RESPONSES, {"model": "priced", "input": "Hello."}),
    "response, streamed": (RESPONSES, {"model": "priced", "input": "Hello.", "stream": True}),
    "embedding": ("/v1/embeddings", {"model": "minilm", "input": "Hello.", "encoding_format": "base64"}),
    "rerank": ("/v1/rerank", {"model": "reranker", "query": "rice?", "documents": ["a", "b c"]}),
    "pictures": (IMAGES, {"model": "diffusion", "prompt": "a boat", "size": "64x64", "n": 2}),
    "pictures, streamed": (IMAGES, {"model": "diffusion", "prompt": "a boat", "size": "64x64", "stream": True}),
    "picture behind a URL": (IMAGES, {"model": "sd", "prompt": "a boat", "response_format": "url"}),
    "sound": (SPEECH, SPOKEN),
    "sound in events": (SPEECH, {**SPOKEN, "stream_format": "sse"}),
}


def begun(triton: Triton) -> int:
    """The requests that any of these models has had; Triton counts those of most when they are done."""
    return started(triton) + sum(done(triton, each) for each in ("minilm", "reranker", "diffusion", "sd", "voice"))


@pytest.mark.parametrize("what", ANSWERS)
async def test_the_same_answer_again(
    shop: Conch, books: Books, customer: Customer, key: str, triton: Triton, what: str
) -> None:
    """Byte for byte and in the same form; it ran once and is paid once."""
    (path, body), before = ANSWERS[what], begun(triton)
    first = post(shop, customer, path, body, key)
    assert ran(first)
    (row,) = await books.usage(customer)
    await_true(lambda: begun(triton) > before)
    once = begun(triton)
    for _ in range(2):
        again = post(shop, customer, path, body, key)
        assert not ran(again)
        assert again.body == first.body
        assert again.headers["x-request-id"] != first.headers["x-request-id"] == row.id
        for name in ("content-type", "cache-control", "transfer-encoding", "content-length"):
            assert again.headers.get(name) == first.headers.get(name)
    if "streamed" in what or "events" in what:
        assert first.headers["content-type"] == "text/event-stream; charset=utf-8"
    await books.paid(customer, row.id, row.model, row.units, row.cost)
    assert begun(triton) == once


def form(boundary: str, *parts: tuple[str, bytes]) -> bytes:
    made = b""
    for name, value in parts:
        named = '; filename="tone.wav"' if name == "file" else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
        made += head.encode() + value + b"\r\n"
    return made + f"--{boundary}--\r\n".encode()


async def test_a_form_with_another_boundary_is_the_same(
    shop: Conch, books: Books, customer: Customer, key: str
) -> None:
    """What counts is each part's name, filename and content, in their order."""
    _, sound = recording()
    parts = ("model", b"whisper"), ("language", b"en"), ("file", sound)

    def hear(boundary: str, *parts: tuple[str, bytes]) -> Answer:
        type = f"multipart/form-data; boundary={boundary}"
        return post(shop, customer, TRANSCRIPTIONS, form(boundary, *parts), key, content_type=type)

    first = hear("one", *parts)
    assert ran(first)
    assert not ran(again := hear("another", *parts))
    assert again.body == first.body
    for other in (parts[::-1], parts[:2], (*parts[:2], ("file", sound[:-2])), (*parts, ("temperature", b"0"))):
        assert hear("one", *other).error(409)["code"] == "idempotency_conflict"
    assert len(await books.usage(customer)) == 1


async def test_the_sdk(shop: Conch, books: Books, customer: Customer, triton: Triton) -> None:
    """Every form of answer that it knows, twice; it picks another boundary each time."""
    async with customer.sdk(shop) as sdk:
        for number in range(2):
            asked: Any = {"extra_headers": {"Idempotency-Key": "sdk-transcription"}}
            heard = await sdk.audio.transcriptions.with_raw_response.create(
                model="whisper", file=recording(), language="en", **asked
            )
            asked = {"extra_headers": {"Idempotency-Key": "sdk-speech"}}
            said = await sdk.audio.speech.with_raw_response.create(model="voice", voice="nova", input="Hi.", **asked)
            asked = {"extra_headers": {"Idempotency-Key": "sdk-chat"}}
            message: Any = [{"role": "user", "content": "Hello."}]
            told = await sdk.chat.completions.with_raw_response.create(
                model="priced", messages=message, stream=True, **asked
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in told.parse()])
            assert text == "Hello, wörld: 你好 🙂."
            assert [raw.headers.get(REPLAY) for raw in (heard, said, told)] == ([None] * 3, ["true"] * 3)[number]
    assert Counter(row.model for row in await books.usage(customer)) == {"whisper": 1, "voice": 1, "priced": 1}


async def test_a_replay_costs_nothing_and_needs_no_credits(shop: Conch, books: Books, key: str) -> None:
    customer = await books.customer("1")
    body = script("a", model="coin").replace(b"100000", b"1")
    assert ran(post(shop, customer, CHAT, body, key))
    assert post(shop, customer, CHAT, body, "another").status == 402
    answer = post(shop, customer, CHAT, body, key)
    assert not ran(answer)
    assert answer.headers["x-ratelimit-limit"] == "50000"
    assert (await books.account(customer)).credits == 0


# Another body, and the same one while it runs -------------------------------------------------------


async def test_another_body(shop: Conch, books: Books, customer: Customer, key: str) -> None:
    assert ran(post(shop, customer, CHAT, GOOD, key))
    for other in (GOOD + b" ", script("a", "c", model="priced"), b"{}"):
        answer = post(shop, customer, CHAT, other, key)
        error = answer.error(409)
        assert (error["type"], error["code"]) == ("idempotency_conflict", "idempotency_conflict")
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
    assert not ran(post(shop, customer, CHAT, GOOD, key))
    assert len(await books.usage(customer)) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_twenty_at_once(
    shop: Conch, books: Books, customer: Customer, key: str, triton: Triton, stream: bool
) -> None:
    """One inference, one charge; the others are told to come again, or get what it made."""
    before = started(triton)
    body = script("a", "b", "c", model="priced", stream=stream, pace_ms=100)
    asked = [asyncio.to_thread(post, shop, customer, CHAT, body, key) for _ in range(20)]
    answers = await asyncio.gather(*asked)
    assert started(triton) - before == 1
    assert len(await books.usage(customer)) == 1
    good = [answer for answer in answers if answer.status == 200]
    assert [ran(answer) for answer in good].count(True) == 1
    assert len({answer.body for answer in good}) == 1
    for answer in answers:
        if answer not in good:
            assert answer.error(409)["code"] == "idempotency_in_progress"
            assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("true", "1")
    assert len(good) < 20, "some came while it ran"


async def test_the_sdk_comes_again_for_it(shop: Conch, books: Books, customer: Customer, key: str) -> None:
    """A first request that it has lost sight of is still running: its retry gets the answer."""
    message: Any = [{"role": "user", "content": 'script: {"pieces": ["a", "b"], "pace_ms": 700}'}]
    asked: Any = {"model": "priced", "messages": message, "extra_headers": {"Idempotency-Key": key}}
    async with customer.sdk(shop, max_retries=2) as sdk:
        first, second = await asyncio.gather(*(sdk.chat.completions.with_raw_response.create(**asked) for _ in "12"))
        assert first.content == second.content
        assert sorted((first.retries_taken, second.retries_taken)) == [0, 1]
        assert len(await books.usage(customer)) == 1
        with pytest.raises(ConflictError) as refusal:
            await sdk.chat.completions.create(**{**asked, "model": "vllm"})
        assert refusal.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_too_large_to_be_kept(
    shop: Conch, books: Books, customer: Customer, key: str, triton: Triton, stream: bool
) -> None:
    body = script(*["x" * 300_000] * 4, model="priced", stream=stream)
    assert ran(post(shop, customer, CHAT, body, key))
    before, paid = started(triton), await books.account(customer)
    answer = post(shop, customer, CHAT, body, key)
    error = answer.error(422)
    assert (error["type"], error["code"]) == ("idempotency_replay_unavailable", "idempotency_replay_unavailable")
    assert answer.headers["x-should-retry"] == "false"
    assert (await books.account(customer), started(triton)) == (paid, before)
    assert len(await books.usage(customer)) == 1


# What did not run leaves the key free ---------------------------------------------------------------

FAILING: dict[str, tuple[Body, int]] = {
    "not JSON": (b"{", 400),
    "a field that is wrong": (script("a", model="priced").replace(b"100000", b"-1"), 400),
    "an unknown model": (script("a", model="nothing"), 404),
    "too few credits": (script("a", model="coin"), 402),
    "a model that is not there": (script("a", model="absent"), 503),
    "a model that fails": (script("a", model="priced", fail_after=0), 502),
    "a stream that fails": (script("a", "b", model="priced", stream=True, fail_after=1), 200),
}


@pytest.mark.parametrize("how", FAILING)
async def test_what_failed_leaves_the_key_free(
    shop: Conch, books: Books, customer: Customer, key: str, how: str
) -> None:
    """At once: whoever has been told, and sends another body, is not in conflict."""
    body, status = FAILING[how]
    for _ in range(3):
        answer = post(shop, customer, CHAT, body, key)
        assert answer.status == status
        assert REPLAY not in answer.headers
    assert ran(post(shop, customer, CHAT, GOOD, key))
    assert len(await books.usage(customer)) == 1


async def test_a_402_can_be_mended(shop: Conch, books: Books, key: str) -> None:
    customer = await books.customer("0")
    assert post(shop, customer, CHAT, GOOD, key).status == 402
    await books.store.run(accounts.grant(customer.workspace, NANO, by="test", now=1))
    assert ran(post(shop, customer, CHAT, GOOD, key))


async def test_429_leaves_the_key_free(shop: Conch, books: Books, key: str) -> None:
    customer = await books.customer(plan="pair")
    endless = script(*["x"] * 20_000, stream=True, pace_ms=5)
    with Wire(shop.url) as one, Wire(shop.url) as two:
        for wire in (one, two):
            priced.send(wire, customer, CHAT, endless)
            assert wire.answer_head()[0] == 200
        assert post(shop, customer, CHAT, script("b"), key).error(429)["code"] == "concurrency_limit_exceeded"
    await_true(lambda: post(shop, customer, CHAT, GOOD, key).status == 200)


@pytest.mark.parametrize("stream", [False, True])
async def test_who_left_finds_the_answer_under_the_key(
    shop: Conch, books: Books, customer: Customer, key: str, triton: Triton, stream: bool
) -> None:
    """What was begun is made to its end: nothing runs or is paid for twice."""
    before, body = started(triton), script(*["x"] * 100, model="priced", stream=stream, pace_ms=5)
    with Wire(shop.url) as wire:
        send(wire, customer, CHAT, body, key)
        await_true(lambda: started(triton) > before)
        assert post(shop, customer, CHAT, GOOD, key).error(409)["code"] == "idempotency_conflict"
    await_true(lambda: post(shop, customer, CHAT, body, key).status == 200)
    again = post(shop, customer, CHAT, body, key)
    assert again.headers["x-runinfra-idempotent-replay"] == "true"
    assert again.body.count(b"x") >= 100
    assert started(triton) == before + 1
    (row,) = await books.usage(customer)
    assert (row.units.output_tokens, row.whole) == (100, True)


async def test_who_left_pays_nothing_for_what_fails_then(
    shop: Conch, books: Books, customer: Customer, key: str, triton: Triton
) -> None:
    before, body = started(triton), script("a", "b", model="priced", stream=True, pace_ms=300, fail_after=1)
    with Wire(shop.url) as wire:
        send(wire, customer, CHAT, body, key)
        await_true(lambda: started(triton) > before)
    await_true(lambda: post(shop, customer, CHAT, GOOD, key).status == 200)
    (row,) = await books.usage(customer)
    assert row.whole


async def test_who_left_within_the_body(shop: Conch, books: Books, customer: Customer, key: str) -> None:
    """Nothing was claimed."""
    with Wire(shop.url) as wire:
        wire.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {customer.key}\r\n".encode())
        wire.send(f"idempotency-key: {key}\r\ncontent-length: 999\r\n\r\n{{".encode())
    assert ran(post(shop, customer, CHAT, GOOD, key))


async def test_a_process_that_was_killed(
    shop: Conch, books: Books, customer: Customer, key: str, triton: Triton, folder: Path
) -> None:
    """Its key is taken until it is known to be dead; then it is free, and so is what it held."""
    alive = [id for (id,) in await books.rows("SELECT id FROM processes")]
    other, before = Conch(folder, triton.url, CONFIG, grpc=triton.grpc_url), started(triton)
    other.status = -signal.SIGKILL
    body = script(*["x"] * 1000, model="priced", stream=True, pace_ms=5)
    with other.running(), Wire(other.url) as wire:
        send(wire, customer, CHAT, body, key)
        assert wire.answer_head()[0] == 200
        os.kill(other.pid, signal.SIGKILL)
    await_true(lambda: started(triton) > before)
    now = Clock()()
    for later in (0, processes.SILENCE - 20_000_000):
        await books.store.run(processes.beat([(id, {}) for id in alive], now + later))
        assert post(shop, customer, CHAT, body, key).error(409)["code"] == "idempotency_in_progress"
        assert (await books.account(customer)).held > 0
    await books.store.run(processes.beat([(id, {}) for id in alive], now + processes.SILENCE))
    await books.untouched(customer)
    assert ran(post(shop, customer, CHAT, GOOD, key))
    assert (await books.account(customer)).held == 0


# Whose key it is ----------------------------------------------------------------------------------


async def test_one_key_under_both_paths(shop: Conch, customer: Customer, key: str) -> None:
    first = post(shop, customer, CHAT, GOOD, key)
    assert ran(first)
    again = post(shop, customer, f"/api{CHAT}", GOOD, key)
    assert not ran(again)
    assert again.body == first.body


async def test_who_else_has_a_key_of_this_name(shop: Conch, books: Books, customer: Customer, key: str) -> None:
    """Another workspace, another path, a pipeline's path, a pipeline's key: each has its own."""
    piped = Customer("piped", shop.key("piped"))
    bound = Customer("piped", shop.key("piped", "--pipeline", "pipe_priced"))
    answers = [
        post(shop, customer, CHAT, GOOD, key),
        post(shop, await books.customer(), CHAT, GOOD, key),
        post(shop, piped, CHAT, GOOD, key),
        post(shop, piped, "/v1/pipe_priced/chat/completions", GOOD, key),
        post(shop, bound, CHAT, GOOD, key),
        post(shop, bound, "/v1/pipe_priced/chat/completions", GOOD, key),
        post(shop, piped, RESPONSES, {"model": "priced", "input": "Hello."}, key),
    ]
    assert all(map(ran, answers))
    assert not ran(post(shop, Customer("piped", shop.key("piped")), CHAT, GOOD, key)), "two keys of one workspace"


@pytest.mark.parametrize("given", ["", "x" * 256, "schlüssel", "a\tb"])
async def test_a_key_that_is_none(shop: Conch, books: Books, customer: Customer, given: str) -> None:
    with Wire(shop.url) as wire:
        send(wire, customer, CHAT, GOOD, given)
        error = wire.answer().error(400, "Idempotency-Key")
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")
    await books.untouched(customer)


async def test_the_longest_key_and_the_strangest(shop: Conch, customer: Customer) -> None:
    for given in ("x" * 255, "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ 1"):
        assert [ran(post(shop, customer, CHAT, GOOD, given)) for _ in range(2)] == [True, False]


async def test_it_is_for_posts(shop: Conch, customer: Customer, key: str) -> None:
    with Wire(shop.url) as wire:
        for _ in range(2):
            wire.request("GET", "/v1/models", idempotency_key=key, **bearer(customer.key))
            assert ran(wire.answer())


async def test_a_key_is_kept_for_a_day(shop: Conch, books: Books, customer: Customer, key: str) -> None:
    """Counted from its answer; then it is as new."""

    async def pass_by(time: int) -> None:
        assert await books.rows("UPDATE claims SET expires_at = expires_at - CAST($1 AS bigint) RETURNING id", time)

    assert ran(post(shop, customer, CHAT, GOOD, key))
    await pass_by(DAY - 30_000_000)
    assert not ran(post(shop, customer, CHAT, GOOD, key))
    await pass_by(31_000_000)
    assert ran(post(shop, customer, CHAT, script("c", model="priced"), key))
    assert not ran(post(shop, customer, CHAT, script("c", model="priced"), key))
    assert len(await books.usage(customer)) == 2
