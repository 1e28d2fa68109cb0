"""Whole answers whose client leaves: what Triton sees of it by each way to ask for them, and that all ways agree."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.triton import Triton
from tests.gateway import Conch
from tests.observed import Model
from tests.raw import Wire, await_true, bearer, chat, script

PATH = "/v1/chat/completions"
WAYS = ("grpc", "stream", "none")
MODELS = {
    "vllm": 'preset = "vllm"',
    "ensemble": 'preset = "trtllm"\nmax_output = 2048',
    "tensorrt_llm_bls": (
        'preset = "trtllm"\nmax_output = 2048\n'
        'out.text = {{ tensor = "text_output", mode = "cumulative", trim_stop = true }}'
    ),
    "tensorrt_llm": 'preset = "trtllm-llmapi"',
}


def config() -> str:
    """Every contract model by every way."""
    text = '[server]\nport = 0\n[store]\nurl = "sqlite:{store}"\n'
    text += '[upstreams.local]\nurls = ["{triton}"]\ngrpc = ["{grpc}"]\n'
    for model, profile in MODELS.items():
        for way in WAYS:
            text += (
                f'[[models]]\nid = "{model}-{way}"\ntask = "chat"\nupstream = "local"\nmodel = "{model}"\n{profile}\n'
            )
            text += f'cancel = "{way}"\nchat.template = "{{root}}/tests/plain.jinja"\n'
    return text


@pytest.fixture(scope="module")
def ways(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conch]:
    gateway = Conch(tmp_path_factory.mktemp("ways"), triton.url, config(), grpc=triton.grpc_url)
    gateway.workspace("acme")
    with gateway.running():
        yield gateway


@pytest.fixture(scope="module")
def key(ways: Conch) -> str:
    return ways.key("acme")


def answer(conch: Conch, key: str, body: bytes) -> dict[str, Any]:
    with Wire(conch.url) as wire:
        wire.request("POST", PATH, body, **bearer(key))
        found = wire.answer()
    assert found.status == 200, found
    told: dict[str, Any] = found.json
    return {"choices": told["choices"], "usage": told["usage"]}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 33, "temperature": 0.5, "top_p": 0.9, "stop": ["zz", "end"]},
        {"max_tokens": 3},
    ],
    ids=["plain", "sampled", "short"],
)
def test_every_way_says_the_same(ways: Conch, key: str, model: str, fields: dict[str, Any]) -> None:
    for content in ("hello", 'script: {"pieces": ["wör", "ld ", "你好", " 🙂", " end"]}'):
        told = [answer(ways, key, chat(content, f"{model}-{way}", **fields)) for way in WAYS]
        assert told[0] == told[1] == told[2]
        assert told[0]["choices"][0]["message"]["content"]


@pytest.mark.parametrize("how", [{"pace_ms": 5}, {"wait_ms": 1500, "pace_ms": 5}], ids=["within", "before the first"])
@pytest.mark.parametrize(("way", "outcome"), [("grpc", "cancelled"), ("stream", "cancelled"), ("none", "finished")])
def test_what_triton_sees_of_a_client_that_leaves(
    ways: Conch, key: str, triton: Triton, way: str, outcome: str, how: dict[str, Any]
) -> None:
    model = Model(triton)
    with Wire(ways.url) as wire:
        wire.request("POST", PATH, script(*"ab" * 150, model=f"vllm-{way}", **how), **bearer(key))
        await_true(lambda: model.since("started") == 1)
        time.sleep(0.1)  # some words are said
        assert model.since("cancelled") + model.since("finished") == 0
    await_true(lambda: model.since("cancelled") + model.since("finished") == 1)
    assert model.since(outcome) == 1


def test_short_answers_take_the_short_way(ways: Conch, key: str, triton: Triton) -> None:
    """They run to their end, which is near."""
    model = Model(triton)
    body = script(*"ab" * 100, model="vllm-grpc", pace_ms=20).replace(b"100000", b"32")
    with Wire(ways.url) as wire:
        wire.request("POST", PATH, body, **bearer(key))
        await_true(lambda: model.since("started") == 1)
    await_true(lambda: model.since("finished") == 1)


def test_where_grpc_cannot_be_reached_http_serves(triton: Triton, tmp_path: Path) -> None:
    """Unless the configuration insists on it."""
    text = config().replace('cancel = "none"\n', "")
    conch = Conch(tmp_path, triton.url, text, grpc="127.0.0.1:9")
    conch.workspace("acme")
    key = conch.key("acme")
    with conch.running():
        assert answer(conch, key, chat("hello", "vllm-none"))["choices"][0]["message"]["content"]
        with Wire(conch.url) as wire:
            wire.request("POST", PATH, chat("hello", "vllm-grpc"), **bearer(key))
            wire.answer().error(503)


PRICED = """
max_output = 100000
price = {{ output = "1000000" }}
"""


@pytest.fixture(scope="module")
def shop(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conch]:
    """One dollar a token."""
    text = config().replace('model = "vllm"\n', f'model = "vllm"{PRICED}')
    conch = Conch(tmp_path_factory.mktemp("shop"), triton.url, text, grpc=triton.grpc_url)
    with conch.running():
        yield conch


@pytest.mark.parametrize(("way", "least", "most"), [("none", 200, 200), ("stream", 1, 199), ("grpc", 0, 0)])
def test_what_ran_is_paid_as_far_as_it_is_known(shop: Conch, triton: Triton, way: str, least: int, most: int) -> None:
    """A stream tells what was made; what cannot be stopped is paid whole; gRPC tells nothing before the end."""
    shop.workspace(way)
    shop.command("credits", "grant", way, "1000000")
    key, model = shop.key(way), Model(triton)
    with Wire(shop.url) as wire:
        wire.request("POST", PATH, script(*"ab" * 100, model=f"vllm-{way}", pace_ms=5), **bearer(key))
        await_true(lambda: model.since("started") == 1)
        time.sleep(0.2)
    await_true(lambda: model.since("cancelled") + model.since("finished") == 1)
    await_true(lambda: shop.command("credits", "show", way)["held_usd"] == "0.00")
    used = shop.command("usage", "--workspace", way, "--by", "workspace")
    assert least <= sum(line["output_tokens"] for line in used) <= most
