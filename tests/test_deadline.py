"""X-Request-Timeout: the answer is a 504 then, wherever the request is, and the model is stopped where it can be."""

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from scripts.triton import Triton
from tests.gateway import ONE, Conch
from tests.observed import Model
from tests.raw import Answer, Wire, await_true, bearer, chat, script

PATH, RESPONSES = "/v1/chat/completions", "/v1/responses"
HEADER = "X-Request-Timeout"
LONG = ["x"] * 2000
SHOP = (
    ONE
    + """
max_inflight = 1
max_output = 100000
price = {{ output = "1000000" }}
[[models]]
id = "brief"
task = "chat"
upstream = "local"
model = "vllm"
preset = "vllm"
timeout = "1s"
chat.template = "{root}/tests/plain.jinja"
"""
)


@pytest.fixture(scope="module")
def shop(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conch]:
    """A model at a dollar a token, one request at a time, none to be stopped; and one with a second for each."""
    conch = Conch(tmp_path_factory.mktemp("shop"), triton.url, SHOP)
    conch.workspace("acme")
    conch.command("credits", "grant", "acme", "1000000")
    with conch.running():
        yield conch


def sent(conch: Conch, key: str, body: bytes, seconds: str, **headers: str) -> Wire:
    wire = Wire(conch.url)
    wire.request("POST", PATH, body, x_request_timeout=seconds, **headers, **bearer(key))
    return wire


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_before_the_first_word(conch: Conch, key: str, triton: Triton, stream: bool) -> None:
    with sent(conch, key, script("x"), "20") as wire:
        assert wire.answer().status == 200  # the first one over gRPC imports it
    model, began = Model(triton), time.monotonic()
    with sent(conch, key, script(*LONG, stream=stream, wait_ms=5000, pace_ms=5), "0.5") as wire:
        answer = wire.answer()
        assert 0.5 <= time.monotonic() - began < 4.5
        assert answer.error(504)["type"] == "timeout_error"
        assert answer.headers["x-should-retry"] == "false"
        await_true(lambda: model.since("cancelled") == 1)
        wire.request("POST", PATH, chat("hello"), **bearer(key))  # the connection goes on
        assert wire.answer().status == 200


def test_within_a_stream(conch: Conch, key: str, triton: Triton) -> None:
    model = Model(triton)
    with sent(conch, key, script(*LONG, stream=True, pace_ms=5), "0.3") as wire:
        answer = wire.answer()
    assert answer.status == 200
    last = answer.body.split(b"\n\n")[-2]
    assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "timeout_error"
    await_true(lambda: model.since("cancelled") == 1)


def test_in_the_queue(shop: Conch, triton: Triton) -> None:
    key, model = shop.key("acme"), Model(triton)
    with sent(shop, key, script(*LONG, stream=True, pace_ms=5), "60") as first:
        assert first.answer_head()[0] == 200
        with sent(shop, key, script("second", stream=True), "0.1") as second:
            second.answer().error(504)
    await_true(lambda: model.since("cancelled") == 1)
    assert model.since("started") == 1


def test_who_leaves_the_queue_is_not_asked_for(shop: Conch, triton: Triton) -> None:
    key, model = shop.key("acme"), Model(triton)
    with sent(shop, key, script(*LONG, stream=True, pace_ms=5), "60") as first:
        assert first.answer_head()[0] == 200
        with sent(shop, key, script("second", stream=True), "60"):
            pass
        with sent(shop, key, script("third"), "60") as third:
            first.close()
            assert third.answer().json["choices"][0]["message"]["content"] == "third"
    assert model.since("started") == 2


def test_it_only_shortens(shop: Conch) -> None:
    """The model's own limit, of one second, is the nearer one."""
    body = script(*LONG, model="brief", stream=True, pace_ms=5)
    with sent(shop, shop.key("acme"), body, "60") as wire:
        began = time.monotonic()
        assert b"The model did not answer in time." in wire.answer().body
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("seconds", ["0", "0.0", "-1", "1e3", "nan", "five", "1_0", "", "1,5", "9999999999"])
def test_what_is_no_time_is_refused(conch: Conch, key: str, seconds: str) -> None:
    with sent(conch, key, chat("hello"), seconds) as wire:
        assert wire.answer().error(400, HEADER)["code"] == "invalid_value"


def test_what_cannot_be_stopped_is_paid(shop: Conch, triton: Triton) -> None:
    """The answer comes in time, the model runs to its end, and its tokens are charged: as of a client that leaves."""
    shop.workspace("late")
    shop.command("credits", "grant", "late", "1000000")
    key, model = shop.key("late"), Model(triton)
    with sent(shop, key, script(*LONG[:100], pace_ms=5), "0.2") as wire:
        wire.answer().error(504)
        assert wire.ended()
        assert model.since("finished") == 0
    await_true(lambda: shop.command("credits", "show", "late")["held_usd"] == "0.00")
    [used] = shop.command("usage", "--workspace", "late", "--by", "workspace")
    assert used["output_tokens"] == 100


def test_a_stream_pays_for_what_it_made(shop: Conch) -> None:
    shop.workspace("early")
    shop.command("credits", "grant", "early", "1000000")
    with sent(shop, shop.key("early"), script(*LONG, stream=True, pace_ms=5), "0.8") as wire:
        wire.answer()
    [used] = shop.command("usage", "--workspace", "early", "--by", "workspace")
    assert 0 < used["output_tokens"] < 2000


def test_who_asks_again_finds_the_answer(conch: Conch, key: str, triton: Triton) -> None:
    """With an idempotency key a request runs to its end, whatever its own client waits for."""
    body, name = script(*LONG[:50], pace_ms=10), "late-but-whole"
    model = Model(triton)
    with sent(conch, key, body, "0.1", idempotency_key=name) as wire:
        wire.answer().error(504)
    await_true(lambda: model.since("finished") == 1)

    def again() -> int:
        with sent(conch, key, body, "20", idempotency_key=name) as wire:
            answer = wire.answer()
        return answer.status

    await_true(lambda: again() == 200)
    assert model.since("started") == 1


@pytest.mark.parametrize("path", [PATH, RESPONSES])
def test_a_stream_that_is_to_finish_ends_with_the_error(conch: Conch, key: str, triton: Triton, path: str) -> None:
    """Its client hears of it as of any stream; the model goes on, and who asks again gets all of it."""
    model, name = Model(triton), f"late {path}"
    body = script(*LONG[:100], stream=True, pace_ms=5)
    if path == RESPONSES:
        said = json.loads(body)
        body = json.dumps({"model": "vllm", "input": said["messages"], "stream": True}).encode()

    def ask(seconds: str) -> Answer:
        with Wire(conch.url) as wire:
            headers = {"x_request_timeout": seconds, "idempotency_key": name}
            wire.request("POST", path, body, **bearer(key), **headers)
            return wire.answer()

    def events(answer: Answer) -> list[dict[str, Any]]:
        frames = answer.body.split(b"data: ")[1:]
        return [json.loads(frame.split(b"\n")[0]) for frame in frames if not frame.startswith(b"[DONE]")]

    cut = ask("0.2")
    assert (cut.status, b"[DONE]" in cut.body) == (200, False)
    last = events(cut)[-1]
    error = last["error"] if path == PATH else last["response"]["error"]
    assert "X-Request-Timeout" in error["message"]
    await_true(lambda: model.since("finished") == 1)
    await_true(lambda: ask("20").status == 200)
    whole = ask("20")
    assert whole.headers["x-runinfra-idempotent-replay"] == "true"
    assert whole.body.endswith(b"data: [DONE]\n\n")
    assert b"X-Request-Timeout" not in whole.body
    told = events(whole)
    if path == RESPONSES:
        assert [each["sequence_number"] for each in told] == list(range(len(told)))
        assert told[-1]["response"]["status"] == "completed"
        assert told[-1]["response"]["output"][0]["content"][0]["text"] == "x" * 100
    else:
        assert "".join(each["choices"][0]["delta"].get("content") or "" for each in told) == "x" * 100
    assert model.since("started") == 1


@pytest.mark.parametrize("retries", [0, 2])
def test_the_official_sdk_does_not_try_again(conch: Conch, key: str, triton: Triton, retries: int) -> None:
    model = Model(triton)
    said = json.loads(script(*LONG, wait_ms=1000))["messages"]
    client = OpenAI(base_url=f"{conch.url}/v1", api_key=key, max_retries=retries)
    with client, pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(model="vllm", messages=said, max_tokens=2000, extra_headers={HEADER: "0.2"})
    assert raised.value.status_code == 504
    assert raised.value.type == "timeout_error"
    assert model.since("started") == 1


def test_the_sdks_own_timeout_ends_no_stream_that_flows(conch: Conch, key: str) -> None:
    """It is one of each read: `x-stainless-read-timeout` says nothing of the whole."""
    said = json.loads(script(*LONG[:100], pace_ms=10))["messages"]
    with OpenAI(base_url=f"{conch.url}/v1", api_key=key, timeout=0.5, max_retries=0) as client:
        stream = client.chat.completions.create(model="vllm", messages=said, max_tokens=200, stream=True)
        assert sum(bool(each.choices[0].delta.content) for each in stream) == 100
