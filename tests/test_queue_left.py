"""Who leaves while it waits for a model has left its queue, whatever its request is: nothing was sent for it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.triton import Triton
from tests.gateway import ONE, Conch
from tests.observed import Model
from tests.raw import Wire, await_true, bearer, quiet, script
from tests.scrape import TOKEN, Scrape
from tests.stores import new_database

PATH = "/v1/chat/completions"
LONG = ["x"] * 5000
SHOP = ONE + 'max_inflight = 1\nmax_output = 100000\nprice = {{ output = "1" }}\n'

EMBEDDING = (
    ONE
    + """
[[models]]
id = "vllm-embed"
task = "embedding"
upstream = "local"
model = "vllm_embed"
preset = "vllm-embed"
max_inflight = 1
price = {{ input = "1" }}
"""
)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shop(
    request: pytest.FixtureRequest, triton: Triton, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Conch, str]]:
    """A model with a price that takes one request at a time, and a key. A whole answer of it cannot be stopped."""
    url = new_database(request.param, request)
    conch = Conch(tmp_path_factory.mktemp("shop"), triton.url, SHOP.replace("sqlite:{store}", url))
    conch.workspace("acme")
    conch.command("credits", "grant", "acme", "100")
    key = conch.key("acme")
    with conch.running(CONCH_METRICS_TOKEN=TOKEN, CONCH_STORE__URL=url):
        yield conch, key
        quiet(conch, key)


def waiting(conch: Conch) -> float:
    return Scrape(conch)("conch_queue_length", model="vllm")


def sent(conch: Conch, key: str, body: bytes, **headers: str) -> Wire:
    wire = Wire(conch.url)
    wire.request("POST", PATH, body, **bearer(key), **headers)
    return wire


def held(conch: Conch) -> Any:
    return conch.command("credits", "show", "acme")["held_usd"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("idempotent", [False, True], ids=["", "with a key"])
@pytest.mark.parametrize("how", ["it leaves", "its time is over"])
def test_nothing_is_sent_paid_or_kept(
    shop: tuple[Conch, str], triton: Triton, stream: bool, idempotent: bool, how: str
) -> None:
    conch, key = shop
    model, body = Model(triton), script("mine", stream=stream)
    headers = {"idempotency_key": f"{stream}-{how}"} if idempotent else {}
    late = {"x_request_timeout": "0.3"} if how != "it leaves" else {}
    with sent(conch, key, script(*LONG, stream=True, pace_ms=5)) as first:
        assert first.answer_head()[0] == 200
        spent = conch.command("credits", "show", "acme")
        with sent(conch, key, body, **headers, **late) as second:
            await_true(lambda: waiting(conch) == 1)
            if late:
                second.answer().error(504)
                second.request("POST", PATH, script("x", model="no such model"), **bearer(key))
                assert second.answer().status == 404, "the connection goes on"
        await_true(lambda: waiting(conch) == 0)
        await_true(lambda: conch.command("credits", "show", "acme") == spent)
        assert model.since("started") == 1
        with sent(conch, key, body, **headers) as again:  # its idempotency key is free
            await_true(lambda: waiting(conch) == 1)
            first.close()
            answer = again.answer()
    assert answer.status == 200
    assert b"mine" in answer.body
    assert "x-runinfra-idempotent-replay" not in answer.headers
    await_true(lambda: held(conch) == "0.00")
    assert model.since("started") == 2


def test_what_has_been_sent_is_finished_and_paid(shop: tuple[Conch, str], triton: Triton) -> None:
    """As before: only what waits is dropped."""
    conch, key = shop
    model = Model(triton)
    with sent(conch, key, script(*"abc" * 30, pace_ms=5)):
        await_true(lambda: model.since("started") == 1)
    await_true(lambda: model.since("finished") == 1)
    await_true(lambda: held(conch) == "0.00")
    assert conch.command("usage", "--workspace", "acme", "--by", "workspace")[0]["output_tokens"] >= 90


@pytest.mark.parametrize("how", ["it leaves", "its time is over", "with a key"])
def test_parts_that_were_not_sent_are_not(triton: Triton, tmp_path: Path, how: str) -> None:
    """Each of 2,000 inputs is a request to this model: those under way end and are paid, the others never begin; but
    with an idempotency key all of them."""
    conch = Conch(tmp_path, triton.url, EMBEDDING)
    conch.workspace("acme")
    conch.command("credits", "grant", "acme", "100")
    key = conch.key("acme")
    body = json.dumps({"model": "vllm-embed", "input": ["one"] * 2000}).encode()
    late = {"x_request_timeout": "1"} if how == "its time is over" else {}
    with conch.running():
        with Wire(conch.url) as wire:
            wire.request("POST", "/v1/embeddings", body.replace(b'"one", ', b""), **bearer(key))
            assert wire.answer().status == 200  # all is imported
            model = Model(triton, "vllm_embed")
            claim = {"idempotency_key": "parts"} if how == "with a key" else {}
            wire.request("POST", "/v1/embeddings", body, **bearer(key), **late, **claim)
            await_true(lambda: model.since("started") >= 10)
            if late:
                wire.answer().error(504)
        await_true(lambda: held(conch) == "0.00", 40)
        started = model.since("started")
        assert started == model.since("finished")
        assert (started == 2000) == (how == "with a key")
        [used] = conch.command("usage", "--workspace", "acme", "--by", "workspace")
        assert used["input_tokens"] == 3 * (started + 1)  # as the model counts "one"
