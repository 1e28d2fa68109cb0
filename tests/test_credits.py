"""Credits on the running gateway: what every task costs, to the nano-dollar, and what costs nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient

from scripts.triton import Triton
from store import accounts
from store.records import Units
from tests.gateway import Conch
from tests.priced import CONFIG, NANO, Body, Books, Customer, cost, done, open_books, post, recording, send, started
from tests.raw import Wire, await_true, chat, quiet, script
from tests.test_media import file_of

CHAT = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": 'script: {"pieces": ["one", " two", " three", " four", " five"]}'}]


@pytest.fixture(scope="module")
def shop(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conch]:
    """A gateway whose models have prices."""
    conch = Conch(tmp_path_factory.mktemp("shop"), triton.url, CONFIG, grpc=triton.grpc_url)
    conch.workspace("spare")
    conch.command("credits", "grant", "spare", "1")
    with conch.running():
        yield conch
        quiet(conch, conch.key("spare"))


@pytest.fixture(scope="module")
async def books(shop: Conch) -> AsyncIterator[Books]:
    async with open_books(shop) as books:
        yield books


@pytest.fixture
async def customer(books: Books) -> Customer:
    """With ten dollars."""
    return await books.customer()


@pytest.fixture
async def sdk(shop: Conch, customer: Customer) -> AsyncIterator[AsyncOpenAI]:
    async with customer.sdk(shop) as sdk:
        yield sdk


# What each task costs: what the answer says of its usage, at the price list ------------------------


def tokens(usage: Any) -> Units:
    """The units that an answer's own usage tells."""
    details = usage.prompt_tokens_details
    return Units(usage.prompt_tokens, details.cached_tokens if details else 0, usage.completion_tokens)


@pytest.mark.parametrize(("model", "n"), [("priced", 1), ("assistant", 1), ("assistant", 2), ("one-by-one", 2)])
async def test_chat(books: Books, customer: Customer, sdk: AsyncOpenAI, model: str, n: int) -> None:
    raw = await sdk.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, n=n, max_tokens=50)
    units = tokens(raw.parse().usage)
    assert units.input_tokens > 0 < units.output_tokens
    due = cost(model, input=units.input_tokens, output=units.output_tokens)
    await books.paid(customer, raw.headers["x-request-id"], model, units, due)


@pytest.mark.parametrize("n", [1, 2])
async def test_chat_streamed(books: Books, customer: Customer, sdk: AsyncOpenAI, n: int) -> None:
    """Its last frame comes when the ledger has it all."""
    raw = await sdk.chat.completions.with_raw_response.create(
        model="one-by-one", messages=MESSAGES, n=n, stream=True, stream_options={"include_usage": True}
    )
    async with aclosing(raw.parse()) as stream:
        *_, last = [chunk async for chunk in stream]
    units = tokens(last.usage)
    assert units.output_tokens == 5 * n
    due = cost("one-by-one", input=units.input_tokens, output=units.output_tokens)
    await books.paid(customer, raw.headers["x-request-id"], "one-by-one", units, due)


async def test_chat_streamed_without_usage_costs_the_same(books: Books, customer: Customer, sdk: AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(model="priced", messages=MESSAGES, stream=True)
    assert "".join([each.choices[0].delta.content or "" async for each in stream]) == "one two three four five"
    (row,) = await books.usage(customer)
    assert (row.units.output_tokens, row.cost) == (5, cost("priced", input=row.units.input_tokens, output=5))


@pytest.mark.parametrize("stream", [False, True])
async def test_cached_input(books: Books, customer: Customer, sdk: AsyncOpenAI, stream: bool) -> None:
    """Of the prompt's tokens all but two were in the cache of this model, and cost less."""
    options: Any = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    raw = await sdk.chat.completions.with_raw_response.create(model="cached", messages=MESSAGES, **options)
    answer = raw.parse()
    usage = [chunk async for chunk in answer][-1].usage if stream else answer.usage
    units = tokens(usage)
    assert units.cached_tokens == units.input_tokens - 2 > 0
    due = cost("cached", input=2, cached_input=units.cached_tokens, output=5)
    await books.paid(customer, raw.headers["x-request-id"], "cached", units, due)


async def test_a_model_that_miscounts_is_paid_for_what_can_be(shop: Conch, books: Books, customer: Customer) -> None:
    """More tokens from the cache than there were: nobody earns by that."""
    answer = post(shop, customer, CHAT, chat("miscount", "cached"))
    used = answer.json["usage"]["prompt_tokens"]
    units = Units(used, used, answer.json["usage"]["completion_tokens"])
    due = cost("cached", cached_input=used, output=units.output_tokens)
    await books.paid(customer, answer.headers["x-request-id"], "cached", units, due)


async def test_completions_of_several_prompts(books: Books, customer: Customer, sdk: AsyncOpenAI) -> None:
    raw = await sdk.completions.with_raw_response.create(
        model="one-by-one", prompt=["a b c", 'script: {"pieces": ["x", "y"]}'], n=2, max_tokens=4
    )
    units = tokens(raw.parse().usage)
    assert (units.input_tokens, units.output_tokens) == (3 + 4, 2 * (4 + 2))
    due = cost("one-by-one", input=units.input_tokens, output=units.output_tokens)
    await books.paid(customer, raw.headers["x-request-id"], "one-by-one", units, due)


async def test_responses(books: Books, customer: Customer, sdk: AsyncOpenAI) -> None:
    raw = await sdk.responses.with_raw_response.create(model="cached", input="Hello there.")
    usage = raw.parse().usage
    assert usage is not None
    cached = usage.input_tokens_details.cached_tokens
    units = Units(usage.input_tokens, cached, usage.output_tokens)
    due = cost("cached", input=2, cached_input=cached, output=usage.output_tokens)
    await books.paid(customer, raw.headers["x-request-id"], "cached", units, due)


async def test_embeddings(books: Books, customer: Customer, sdk: AsyncOpenAI) -> None:
    raw = await sdk.embeddings.with_raw_response.create(model="minilm", input=["One text.", "And another one: 🐚"])
    used = raw.parse().usage.prompt_tokens
    assert used > 8
    await books.paid(customer, raw.headers["x-request-id"], "minilm", Units(used), cost("minilm", input=used))


async def test_rerank(shop: Conch, books: Books, customer: Customer) -> None:
    answer = post(shop, customer, "/v1/rerank", {"model": "reranker", "query": "rice?", "documents": ["a", "b c"]})
    used = answer.json["usage"]["prompt_tokens"]
    id = answer.headers["x-request-id"]
    await books.paid(customer, id, "reranker", Units(used), cost("reranker", input=used))


@pytest.mark.parametrize("stream", [False, True])
async def test_images(books: Books, customer: Customer, sdk: AsyncOpenAI, stream: bool) -> None:
    made: Any = sdk.images.with_raw_response
    raw = await made.generate(model="diffusion", prompt="a boat", size="64x64", n=2, stream=stream)
    answer = raw.parse()
    pictures = [each async for each in answer] if stream else answer.data
    assert len(pictures) == 2
    await books.paid(customer, raw.headers["x-request-id"], "diffusion", Units(images=2), NANO * 8 // 100)


@pytest.mark.parametrize("model", ["voice", "speaker"])
async def test_speech(books: Books, customer: Customer, sdk: AsyncOpenAI, model: str) -> None:
    """Characters are those of Unicode, not bytes."""
    said = "Grüß dich: 你好."
    raw = await sdk.audio.speech.with_raw_response.create(model=model, voice="alloy", input=said, response_format="pcm")
    assert len(raw.content) > 1000
    due = cost(model, characters=len(said))
    await books.paid(customer, raw.headers["x-request-id"], model, Units(characters=len(said)), due)


@pytest.mark.parametrize("model", ["whisper", "whisper-decoupled"])
async def test_transcription(books: Books, customer: Customer, sdk: AsyncOpenAI, model: str) -> None:
    raw = await sdk.audio.transcriptions.with_raw_response.create(model=model, file=recording(), language="en")
    assert json.loads(raw.content)["usage"] == {"type": "duration", "seconds": 1.52}
    due = cost(model, seconds=1520)
    await books.paid(customer, raw.headers["x-request-id"], model, Units(milliseconds=1520), due)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["whisper", "whisper-decoupled"])
async def test_silence_is_heard_and_paid(
    books: Books, customer: Customer, sdk: AsyncOpenAI, model: str, stream: bool
) -> None:
    heard: Any = await sdk.audio.transcriptions.with_raw_response.create(
        model=model, file=recording(loud=False), language="en", stream=stream
    )
    if stream:
        assert [event.type async for event in heard.parse()] == ["transcript.text.done"]
    due = cost(model, seconds=1520)
    await books.paid(customer, heard.headers["x-request-id"], model, Units(milliseconds=1520), due)


async def test_a_model_without_a_price_is_free(shop: Conch, books: Books) -> None:
    """Nobody needs credits for it, and what ran is written down all the same."""
    poor = await books.customer("0")
    answer = post(shop, poor, CHAT, script("a", "b"))
    assert answer.status == 200
    usage = answer.json["usage"]
    await books.paid(poor, answer.headers["x-request-id"], "vllm", Units(usage["prompt_tokens"], 0, 2), 0, "0")


async def test_the_operator_sees_it(shop: Conch, books: Books, customer: Customer) -> None:
    assert post(shop, customer, CHAT, script("a", "b", model="coin", stream=True)).status == 402
    await books.store.run(accounts.grant(customer.workspace, 200_000 * NANO, by="test", now=1))
    assert post(shop, customer, CHAT, script("a", "b", model="coin", stream=True)).status == 200
    card = shop.command("credits", "show", customer.workspace)
    assert (card["credits_usd"], card["held_usd"], card["spent_usd"]) == ("200008.00", "0.00", "2.00")


# Too few credits, and limits ----------------------------------------------------------------------


async def test_402(shop: Conch, books: Books, triton: Triton) -> None:
    """Cents round the balance down and the requirement up; the SDK does not ask again; nothing reaches Triton."""
    poor, before, asked = await books.customer("1.999999999"), started(triton), list[object]()

    async def note(request: object) -> None:
        asked.append(request)

    http = DefaultAsyncHttpxClient(event_hooks={"request": [note]})
    async with poor.sdk(shop, http_client=http, max_retries=2) as sdk:
        for stream in (False, True):
            with pytest.raises(APIStatusError) as refusal:
                await sdk.chat.completions.create(model="coin", messages=MESSAGES, max_tokens=2, stream=stream)
            error: Any = refusal.value.body
            assert refusal.value.status_code == 402
            message = error.pop("message")
            assert "$2.00" in message
            assert "$1.999999999" in message
            assert "https://example.com/credits" in message
            assert error == {
                "type": "insufficient_credits",
                "param": None,
                "code": "insufficient_credits",
                "current_balance_cents": 199,
                "required_cents": 200,
                "topup_url": "https://example.com/credits",
            }
    assert len(asked) == 2
    await books.untouched(poor, "1.999999999")
    assert started(triton) == before


async def test_what_is_required_rounds_up(shop: Conch, books: Books) -> None:
    poor = await books.customer("0")
    body = {"model": "voice", "voice": "alloy", "input": "Hello."}
    error = post(shop, poor, "/v1/audio/speech", body).json["error"]
    assert (error["current_balance_cents"], error["required_cents"]) == (0, 1)


async def test_a_free_request_needs_no_balance_and_a_priced_one_exactly_its_hold(shop: Conch, books: Books) -> None:
    exact = await books.customer("2")
    body = script("a", "b", "c", model="coin").replace(b"100000", b"2")
    assert post(shop, exact, CHAT, body).status == 200
    assert post(shop, exact, CHAT, body.replace(b'"max_tokens": 2', b'"max_tokens": 1')).status == 402
    assert (await books.account(exact)).credits == 0


@pytest.mark.parametrize("whose", ["plan", "workspace"])
async def test_the_monthly_spend_limit(shop: Conch, books: Books, triton: Triton, whose: str) -> None:
    """One cent: a picture fits, no second one does. A workspace's own limit goes before its plan's."""
    plan, own = ("thrifty", None) if whose == "plan" else ("enterprise", NANO // 100)
    customer = await books.customer("10", plan, own)
    body = {"model": "sd", "prompt": "a boat"}
    assert post(shop, customer, "/v1/images/generations", body).status == 200
    before = done(triton, "sd")
    error = post(shop, customer, "/v1/images/generations", body).error(403)
    assert (error["type"], error["code"]) == ("permission_denied", "plan_limit_exceeded")
    assert "$0.01" in error["message"]
    assert done(triton, "sd") == before
    account = await books.account(customer)
    assert (account.credits, account.spent, account.held) == (10 * NANO - NANO // 100, NANO // 100, 0)
    shop.command("workspaces", "set", customer.workspace, "--spend-limit", "0.02")
    assert post(shop, customer, "/v1/images/generations", body).status == 200


# What fails costs nothing -------------------------------------------------------------------------

SPEECH = {"model": "speaker", "voice": "male", "response_format": "pcm"}
FAILING: dict[str, tuple[str, Body, int]] = {
    "chat": (CHAT, script("a", "b", model="priced", fail_after=0), 502),
    "chat after a word": (CHAT, script("a", "b", model="priced", fail_after=1), 502),
    "stream at once": (CHAT, script("a", "b", model="priced", stream=True, fail_after=0), 502),
    "stream after a word": (CHAT, script("a", "b", model="priced", stream=True, fail_after=1), 200),
    "one choice of two": (CHAT, script("a", "b", model="one-by-one", stream=True, fail_after=1, pace_ms=9), 200),
    "response": ("/v1/responses", {"model": "priced", "input": 'script: {"pieces": ["a"], "fail_after": 0}'}, 502),
    "response after a word": (
        "/v1/responses",
        {"model": "priced", "input": 'script: {"pieces": ["a", "b"], "fail_after": 1}', "stream": True},
        200,
    ),
    "one prompt of two": (
        "/v1/completions",
        {"model": "priced", "prompt": ["a", 'script: {"pieces": ["a"], "fail_after": 0}']},
        502,
    ),
    "picture": ("/v1/images/generations", {"model": "sd", "prompt": "fail: no paint"}, 502),
    "speech": ("/v1/audio/speech", {**SPEECH, "input": "silent"}, 502),
    "speech in events": ("/v1/audio/speech", {**SPEECH, "input": "break", "stream_format": "sse"}, 200),
    "not JSON": (CHAT, b'{"model": "priced"', 400),
    "not allowed": (CHAT, script("a", model="priced").replace(b"100000", b"100001"), 400),
}


@pytest.mark.parametrize("how", FAILING)
async def test_what_fails_costs_nothing(shop: Conch, books: Books, customer: Customer, how: str) -> None:
    """And when the client hears of it, all is free again."""
    path, body, status = FAILING[how]
    answer = post(shop, customer, path, body)
    assert answer.status == status, answer
    if status == 200:
        assert b"upstream_error" in answer.body or b"server_error" in answer.body
        assert b"[DONE]" not in answer.body
    await books.untouched(customer)


async def test_a_sound_that_breaks_off_costs_nothing(books: Books, customer: Customer, sdk: AsyncOpenAI) -> None:
    with pytest.raises(APIConnectionError):
        await sdk.audio.speech.create(model="speaker", voice="male", input="break", response_format="pcm")
    await books.untouched(customer)


# Clients that leave -------------------------------------------------------------------------------


async def left(books: Books, customer: Customer) -> tuple[Units, int]:
    """What a client that left pays, once it is written down and nothing is held any more."""
    async with asyncio.timeout(10):
        while not (rows := await books.usage(customer)):
            pass
    (row,) = rows
    account = await books.account(customer)
    assert not row.whole
    assert (account.credits, account.held) == (10 * NANO - row.cost, 0)
    return row.units, row.cost


@pytest.mark.parametrize("model", ["priced", "cached"])
async def test_who_leaves_a_stream_pays_for_what_ran(shop: Conch, books: Books, customer: Customer, model: str) -> None:
    with Wire(shop.url) as wire:
        send(wire, customer, CHAT, script(*"abcdefghij" * 100, model=model, stream=True, pace_ms=5))
        assert wire.answer_head()[0] == 200
        while b'"content":"c"' not in wire.chunk():
            pass
    units, paid = await left(books, customer)
    assert 3 <= units.output_tokens < 1000
    cached = {"cached_input": units.cached_tokens} if model == "cached" else {}
    assert paid == cost(model, input=units.input_tokens - units.cached_tokens, **cached, output=units.output_tokens) > 0


async def test_who_leaves_several_choices_pays_for_all_that_ran(shop: Conch, books: Books, customer: Customer) -> None:
    prompts = [{"pieces": [word] * 500, "pace_ms": 5} for word in "ab"]
    body = {"prompt": [f"script: {json.dumps(each)}" for each in prompts], "stream": True, "max_tokens": 500}
    with Wire(shop.url) as wire:
        send(wire, customer, "/v1/completions", {"model": "by-grpc", **body})
        assert wire.answer_head()[0] == 200
        told = b"".join(wire.chunk() for _ in range(5))
        assert b'"text":"a"' in told
        assert b'"text":"b"' in told
    units, paid = await left(books, customer)
    assert 5 <= units.output_tokens < 1000
    assert units.input_tokens > 1000
    assert paid == cost("by-grpc", input=units.input_tokens, output=units.output_tokens)


async def test_who_leaves_a_speech_pays_for_it(shop: Conch, books: Books, customer: Customer) -> None:
    with Wire(shop.url) as wire:
        send(wire, customer, "/v1/audio/speech", {**SPEECH, "input": "wait"})
        assert wire.answer_head()[0] == 200
        assert wire.chunk()
    assert await left(books, customer) == (Units(characters=4), cost("speaker", characters=4))


async def test_who_leaves_before_a_word_pays_nothing(
    shop: Conch, books: Books, customer: Customer, triton: Triton
) -> None:
    """What was held is back at once, while the model has yet to notice."""
    before = started(triton)
    with Wire(shop.url) as wire:
        send(wire, customer, CHAT, script("a", "b", model="priced", stream=True, wait_ms=3000))
        await_true(lambda: started(triton) > before)
        held = (await books.account(customer)).held
        assert held > cost("priced", output=100_000)
    async with asyncio.timeout(1):
        while (await books.account(customer)).held:
            pass
    await books.untouched(customer)


async def test_who_leaves_a_whole_answer_pays_for_it(
    shop: Conch, books: Books, customer: Customer, triton: Triton
) -> None:
    """Triton makes it to its end: so leaving is no way around credits."""
    before = started(triton)
    with Wire(shop.url) as wire:
        send(wire, customer, CHAT, script("a", "b", model="priced", wait_ms=300))
        await_true(lambda: started(triton) > before)
    async with asyncio.timeout(5):
        while not await books.usage(customer):
            pass
    (row,) = await books.usage(customer)
    assert row.cost == cost("priced", input=row.units.input_tokens, output=2)
    assert (await books.account(customer)).held == 0


async def test_what_is_told_until_the_deadline_is_paid(shop: Conch, books: Books, customer: Customer) -> None:
    answer = post(shop, customer, CHAT, script(*["x"] * 1000, model="hasty", stream=True, pace_ms=5))
    assert b'"deadline_exceeded"' in answer.body
    (row,) = await books.usage(customer)
    assert 10 < row.units.output_tokens < 1000
    assert (row.cost, row.whole) == (cost("hasty", output=row.units.output_tokens), False)


async def test_of_several_prompts_the_whole_ones_are_paid(shop: Conch, books: Books, customer: Customer) -> None:
    good, bad = ('script: {"pieces": ["a", "b"]}', 'script: {"pieces": ["a", "b"], "fail_after": 1, "pace_ms": 300}')
    body = {"model": "by-grpc", "prompt": [good, good, bad], "stream": True}
    answer = post(shop, customer, "/v1/completions", body)
    assert b'"upstream_error"' in answer.body
    (row,) = await books.usage(customer)
    assert (row.units.output_tokens, row.whole) == (4, False)
    assert (await books.account(customer)).held == 0


async def test_a_request_that_nobody_could_pay_is_a_402(shop: Conch, customer: Customer) -> None:
    """It costs more nano-dollars than the database has numbers for."""
    answer = post(shop, customer, "/v1/completions", {"model": "ruinous", "prompt": ["x"] * 128, "max_tokens": 100_000})
    assert answer.status == 402
    assert answer.json["error"]["required_cents"] > 2**63 / 10**7


async def test_a_file_that_lies_about_its_length_is_paid_by_its_sound(
    shop: Conch, books: Books, customer: Customer
) -> None:
    """Its times are those of a thousandth of a second; what is decoded is some nine tenths of one."""
    data = file_of("mp4", "aac", seconds=0.9)
    at = data.index(b"mdhd") + 4 + 12
    lying = data[:at] + (2_000_000_000).to_bytes(4, "big") + data[at + 4 :]
    async with customer.sdk(shop) as sdk:
        await sdk.audio.transcriptions.create(model="whisper", file=("x.m4a", lying))
    (row,) = await books.usage(customer)
    assert 500 < row.units.milliseconds < 1000
    broke = await books.customer("0")
    async with broke.sdk(shop) as sdk:
        with pytest.raises(APIStatusError) as refusal:
            await sdk.audio.transcriptions.create(model="whisper", file=("x.m4a", lying))
    assert refusal.value.status_code == 402
