"""Completions by the official SDK over the real Triton: text in, text on, without a template."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI

from scripts.triton import Triton
from tests.gateway import CONFIG, Conch
from tests.raw import Wire, bearer
from tests.test_chat import GREETING
from tests.test_responses_events import script

pytestmark = pytest.mark.usefixtures("no_crash")


@pytest.fixture(scope="module")
def loose(client: OpenAI) -> Iterator[OpenAI]:
    """An SDK that takes a finish_reason of null, which OpenAI's events have and its own types forbid."""
    with OpenAI(base_url=client.base_url, api_key=client.api_key, max_retries=0) as sdk:
        yield sdk


def received(client: OpenAI, **fields: Any) -> Any:
    """The tensors and parameters that the model received."""
    return json.loads(client.completions.create(model="vllm", prompt="echo:", **fields).choices[0].text)["tensors"]


def test_unary(client: OpenAI) -> None:
    completion = client.completions.create(model="vllm", prompt="x")
    assert completion.id.startswith("cmpl-")
    assert (completion.object, completion.model) == ("text_completion", "vllm")
    (choice,) = completion.choices
    assert (choice.text, choice.index, choice.finish_reason, choice.logprobs) == (GREETING, 0, "stop", None)
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (1, 8)


async def test_unary_async(async_client: AsyncOpenAI) -> None:
    completion = await async_client.completions.create(model="gpt-4o-mini", prompt="Repeat after me: hi", max_tokens=9)
    assert completion.choices[0].text == "hi"


def test_no_template_and_16_tokens(client: OpenAI) -> None:
    tensors = received(client)
    assert tensors["text_input"]["data"] == ["echo:"]
    assert json.loads(tensors["sampling_parameters"]["data"][0]) == {"max_tokens": 16}
    told = json.loads(received(client, max_tokens=5, temperature=0, seed=3, stop="z")["sampling_parameters"]["data"][0])
    assert told == {"max_tokens": 5, "temperature": 0, "seed": 3, "stop": ["z"]}


def test_length_and_stop(client: OpenAI) -> None:
    said = script("one ", "two ", "three")
    cut = client.completions.create(model="vllm", prompt=said, max_tokens=2).choices[0]
    assert (cut.text, cut.finish_reason) == ("one two ", "length")
    stopped = client.completions.create(model="vllm", prompt=said, stop=["two"]).choices[0]
    assert (stopped.text, stopped.finish_reason) == ("one ", "stop")


@pytest.mark.parametrize("model", ["vllm", "ensemble"])
def test_several_prompts(client: OpenAI, model: str) -> None:
    prompts = [script(word, pace_ms=pace) for word, pace in (("a", 30), ("b", 0), ("c", 10))]
    completion = client.completions.create(model=model, prompt=prompts, echo=True)
    assert [choice.text for choice in completion.choices] == [p + w for p, w in zip(prompts, "abc", strict=True)]
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert completion.usage is not None
    counted = [client.completions.create(model=model, prompt=prompt).usage for prompt in prompts]
    assert completion.usage.prompt_tokens == sum(usage.prompt_tokens for usage in counted if usage)
    assert completion.usage.completion_tokens == 3


def test_several_prompts_several_times(client: OpenAI, loose: OpenAI) -> None:
    fields: Any = {"model": "assistant", "prompt": ["Repeat after me: a", "Repeat after me: b"], "n": 2, "best_of": 2}
    completion = client.completions.create(**fields)
    assert [(choice.index, choice.text) for choice in completion.choices] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]
    texts = dict.fromkeys(range(4), "")
    for chunk in loose.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == ["a", "a", "b", "b"]


@pytest.mark.parametrize("echo", [False, True])
def test_stream(loose: OpenAI, echo: bool) -> None:
    prompt = script("The ", "sea", ".", pace_ms=5)
    options: Any = {"stream_options": {"include_usage": True}}
    chunks = list(loose.completions.create(model="vllm", prompt=prompt, echo=echo, stream=True, **options))
    assert len({(chunk.id, chunk.created, chunk.object) for chunk in chunks}) == 1
    last = chunks.pop()
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 3
    assert all(chunk.usage is None for chunk in chunks)
    assert "".join(chunk.choices[0].text for chunk in chunks) == (prompt if echo else "") + "The sea."
    reasons: list[Any] = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]


def test_the_frames(conch: Conch, key: str) -> None:
    body = json.dumps({"model": "vllm", "prompt": script("a", "b"), "stream": True}).encode()
    with Wire(conch.url) as wire:
        wire.request("POST", "/v1/completions", body, **bearer(key))
        frames = wire.answer().body.split(b"\n\n")
    assert frames[-2:] == [b"data: [DONE]", b""]
    assert all("usage" not in json.loads(frame.removeprefix(b"data: ")) for frame in frames[:-2])


def test_all_fail_at_once(conch: Conch, key: str) -> None:
    for stream in (False, True):
        body = {"model": "vllm", "prompt": [script("a", "b", fail_after=1)] * 20, "stream": stream}
        with Wire(conch.url) as wire:
            wire.request("POST", "/v1/completions", json.dumps(body).encode(), **bearer(key))
            assert b"upstream_error" in wire.answer().body


def test_a_failure_on_the_way(conch: Conch, key: str) -> None:
    prompts = [script("a", "b", pace_ms=200), script("c", "d", pace_ms=20, fail_after=1)]
    body = json.dumps({"model": "vllm", "prompt": prompts, "stream": True}).encode()
    with Wire(conch.url) as wire:
        wire.request("POST", "/v1/completions", body, **bearer(key))
        *_, last, end = wire.answer().body.split(b"\n\n")
    assert end == b""
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_error"


@pytest.mark.parametrize("candidates", [0, 2])
def test_log_probabilities(client: OpenAI, loose: OpenAI, candidates: int) -> None:
    fields: Any = {"model": "assistant", "prompt": "Repeat after me: The sea is calm.", "logprobs": candidates}
    choice = client.completions.create(**fields).choices[0]
    told = choice.logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert "".join(told.tokens) == choice.text == "The sea is calm."
    assert told.text_offset == [len("".join(told.tokens[:place])) for place in range(len(told.tokens))]
    assert len(told.token_logprobs) == len(told.tokens)
    if candidates:
        assert told.top_logprobs is not None
        assert all(token in top for token, top in zip(told.tokens, told.top_logprobs, strict=True))
    else:
        assert told.top_logprobs is None
    chunks = [chunk.choices[0].logprobs for chunk in loose.completions.create(**fields, stream=True)]
    assert [token for each in chunks if each for token in each.tokens or ()] == told.tokens
    assert [offset for each in chunks if each for offset in each.text_offset or ()] == told.text_offset


# what, `param`, `code`, the fields
REFUSED: list[tuple[str, str, str, dict[str, Any]]] = [
    ("no prompt", "prompt", "missing_required_parameter", {"prompt": ...}),
    ("null prompt", "prompt", "invalid_value", {"prompt": None}),
    ("empty prompt", "prompt", "invalid_value", {"prompt": ""}),
    ("no prompts", "prompt", "invalid_value", {"prompt": []}),
    ("an empty one among them", "prompt[1]", "invalid_value", {"prompt": ["x", ""]}),
    ("token ids", "prompt", "unsupported_parameter", {"prompt": [1, 2]}),
    ("lists of token ids", "prompt", "unsupported_parameter", {"prompt": [[1], [2]]}),
    ("3,000 prompts", "prompt", "invalid_value", {"prompt": ["x"] * 3000}),
    ("no model", "model", "missing_required_parameter", {"model": ...}),
    ("too many choices", "n", "invalid_value", {"model": "assistant", "prompt": ["x"] * 65, "n": 2}),
    ("no tokens", "max_tokens", "invalid_value", {"max_tokens": 0}),
    ("too many tokens", "max_tokens", "invalid_value", {"model": "ensemble", "max_tokens": 2049}),
    ("best_of", "best_of", "unsupported_parameter", {"model": "assistant", "n": 1, "best_of": 2}),
    ("a suffix", "suffix", "unsupported_parameter", {"suffix": "x"}),
    ("log probabilities of a model without", "logprobs", "unsupported_parameter", {"model": "bls", "logprobs": 1}),
    ("echoed log probabilities", "echo", "unsupported_parameter", {"model": "assistant", "echo": True, "logprobs": 1}),
    ("many log probabilities", "logprobs", "invalid_value", {"logprobs": 6}),
    ("a bias", "logit_bias", "unsupported_parameter", {"logit_bias": {"5": 1}}),
    ("stream_options without stream", "stream_options", "invalid_value", {"stream_options": {}}),
    ("messages", "messages", "unknown_parameter", {"messages": []}),
    ("too hot", "temperature", "invalid_value", {"temperature": 3}),
    ("too long", "prompt", "context_length_exceeded", {"model": "assistant", "prompt": "sea " * 33_000}),
]


@pytest.mark.parametrize(("param", "code", "fields"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(conch: Conch, key: str, param: str, code: str, fields: dict[str, Any]) -> None:
    body = {"model": "vllm", "prompt": "x", **fields}
    sent = json.dumps({name: value for name, value in body.items() if value is not ...}).encode()
    with Wire(conch.url) as wire:
        wire.request("POST", "/v1/completions", sent, **bearer(key))
        assert wire.answer().error(400, param)["code"] == code


def test_what_asks_for_nothing_is_accepted(client: OpenAI) -> None:
    fields: Any = {"suffix": "", "logit_bias": {}, "n": 1, "best_of": 1, "echo": False, "user": "u", "temperature": 1}
    for model in ("vllm", "ensemble", "bls", "llmapi"):
        assert client.completions.create(model=model, prompt="x", **fields).choices[0].text == GREETING


def test_what_a_profile_binds(conch: Conch, triton: Triton, tmp_path: Path) -> None:
    """A suffix, and a field of the profile's own, here and in Responses."""
    keys = 'suffix = "suffix", lora = "extra.lora"'
    bound = CONFIG.replace('id = "vllm"', f'id = "vllm"\nin.sampling_parameters.json = {{{{ {keys} }}}}', 1)
    own = Conch(tmp_path, triton.url, bound)
    own.workspace("acme")
    with own.running(), OpenAI(base_url=f"{own.url}/v1", api_key=own.key("acme"), max_retries=0) as client:
        tensors = received(client, suffix="end", extra_body={"lora": "sea"})
        sampling = json.loads(tensors["sampling_parameters"]["data"][0])
        assert sampling == {"max_tokens": 16, "suffix": "end", "lora": "sea"}
        said = client.responses.create(model="vllm", input="echo:", extra_body={"lora": "sea"}).output_text
        assert '"lora":"sea"' in json.loads(said)["tensors"]["sampling_parameters"]["data"][0].replace(" ", "")
        with pytest.raises(BadRequestError, match="'zzz'"):
            client.responses.create(model="vllm", input="echo:", extra_body={"lora": "sea", "zzz": 1})
