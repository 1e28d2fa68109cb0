"""Chat by the official SDK, sync and async, over the real Triton: what a user of the API sees."""

import base64
import json
import urllib.request
from typing import Any

import pytest
from openai import (
    APIStatusError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    OpenAI,
    RateLimitError,
)
from openai.types.chat import ChatCompletionChunk

from scripts.triton import Triton
from tests.gateway import ROOT, Conch
from tests.raw import ERROR_KEYS, Wire, bearer, chat
from upstream.template import ChatTemplate

SAID = "The sea is calm today."
ASK: list[Any] = [{"role": "user", "content": f"Repeat after me: {SAID}"}]
QUESTION: list[Any] = [{"role": "user", "content": "What is Conch?"}]
ECHO: list[Any] = [{"role": "user", "content": "echo:"}]
GREETING = "Hello, wörld: 你好 🙂."


def generate(triton: Triton, messages: list[Any], **sampling: Any) -> dict[str, Any]:
    """What Triton itself answers to the conversation: the assistant's tensors."""
    prompt = ChatTemplate.load(ROOT / "models" / "assistant" / "tokenizer_config.json").render(messages)
    wants = ("exclude_input_in_output", "return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
    tensors = {"text_input": prompt, "sampling_parameters": json.dumps(sampling), **dict.fromkeys(wants, True)}
    request = urllib.request.Request(
        f"{triton.url}/v2/models/assistant/generate",
        json.dumps(tensors).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer


def prompt_of(client: OpenAI, messages: list[Any], **options: Any) -> str:
    """The prompt that the model received."""
    completion = client.chat.completions.create(model="vllm", messages=messages, **options)
    received = json.loads(completion.choices[0].message.content or "")
    prompt: str = received["tensors"]["text_input"]["data"][0]
    return prompt


def test_models_list_and_retrieve(client: OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert list(models)[:5] == ["assistant", "vllm", "ensemble", "bls", "llmapi"]
    assert not {"absent", "private"} & set(models)
    assert client.models.retrieve("assistant") == models["assistant"]
    assert client.models.retrieve("acme/assistant") == models["assistant"]
    assert models["assistant"].owned_by == "conch"
    with pytest.raises(NotFoundError):
        client.models.retrieve("acme/nothing")


async def test_models_list_and_retrieve_async(async_client: AsyncOpenAI) -> None:
    ids = [model.id async for model in async_client.models.list()]
    assert ids[:5] == ["assistant", "vllm", "ensemble", "bls", "llmapi"]
    assert (await async_client.models.retrieve("gpt-4o-mini")).id == "assistant"


def test_unary(client: OpenAI) -> None:
    completion = client.chat.completions.create(model="assistant", messages=ASK)
    assert completion.id.startswith("chatcmpl-")
    assert completion.model == "assistant"
    (choice,) = completion.choices
    assert (choice.index, choice.message.role, choice.message.content) == (0, "assistant", SAID)
    assert choice.finish_reason == "stop"


async def test_unary_async(async_client: AsyncOpenAI) -> None:
    completion = await async_client.chat.completions.create(model="assistant", messages=ASK)
    assert completion.choices[0].message.content == SAID


def check_chunks(chunks: list[ChatCompletionChunk], *, include_usage: bool) -> str:
    """The text of a stream, once its order has been found to be that of the contract."""
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].model == "assistant"
    if include_usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks)
    first, *middle, final = (chunk.choices[0] for chunk in chunks)
    assert (first.delta.role, first.delta.content, first.finish_reason) == ("assistant", "", None)
    assert [choice.delta.model_dump(exclude_unset=True).keys() for choice in middle] == [{"content"}] * len(middle)
    assert [choice.finish_reason for choice in middle] == [None] * len(middle)
    assert (final.delta.model_dump(exclude_unset=True), final.finish_reason) == ({}, "stop")
    assert len(middle) > 3
    return "".join(choice.delta.content or "" for choice in middle)


def test_stream(client: OpenAI) -> None:
    with client.chat.completions.create(model="assistant", messages=ASK, stream=True) as stream:
        chunks = list(stream)
    assert check_chunks(chunks, include_usage=False) == SAID


async def test_stream_with_usage_async(async_client: AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(
        model="assistant", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    assert check_chunks([chunk async for chunk in stream], include_usage=True) == SAID


@pytest.mark.parametrize("include_usage", [True, False])
def test_the_bytes_of_a_stream(conch: Conch, key: str, include_usage: bool) -> None:
    options = {"stream_options": {"include_usage": include_usage}}
    with Wire(conch.url) as wire:
        body = chat("hi", "vllm", stream=True, **options)
        wire.request("POST", "/v1/chat/completions", body, content_type="application/json", **bearer(key))
        status, headers = wire.answer_head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        writes = list(iter(wire.chunk, b""))
    for write in writes:
        assert write.startswith(b"data: "), "a write holds whole frames"
        assert write.endswith(b"\n\n"), "a write holds whole frames"
    frames = b"".join(writes).split(b"\n\n")
    assert frames.pop() == b""
    assert frames.pop() == b"data: [DONE]"
    chunks = [json.loads(frame.removeprefix(b"data: ")) for frame in frames]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    if include_usage:
        assert chunks[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
        assert chunks.pop()["choices"] == []
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert all("usage" not in chunk for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"]["content"] for choice in choices[1:-1]) == GREETING
    assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "stop")


def test_usage_is_tritons_own_count(client: OpenAI, triton: Triton) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is Conch?"},
    ]
    own = generate(triton, messages, temperature=0, max_tokens=1024)
    counted = (own["num_input_tokens"], own["num_output_tokens"])
    assert min(counted) > 5
    options: dict[str, Any] = {"model": "assistant", "messages": messages, "temperature": 0}
    completion = client.chat.completions.create(**options)
    assert completion.choices[0].message.content == own["text_output"]
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == counted
    assert completion.usage.total_tokens == sum(counted)
    *_, last = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    assert last.usage == completion.usage


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_ends_with_length(client: OpenAI, field: str) -> None:
    bound: Any = {field: 3}
    completion = client.chat.completions.create(model="assistant", messages=ASK, **bound)
    assert completion.choices[0].finish_reason == "length"
    assert completion.choices[0].message.content == "The sea is"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 3
    *_, last = client.chat.completions.create(model="assistant", messages=ASK, stream=True, **bound)
    assert last.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stop", ["calm", ["today", "calm"]])
def test_stop(client: OpenAI, stop: Any) -> None:
    completion = client.chat.completions.create(model="assistant", messages=ASK, stop=stop)
    assert completion.choices[0].message.content == "The sea is "
    assert completion.choices[0].finish_reason == "stop"


def test_seed_and_temperature(client: OpenAI) -> None:
    def answer(**options: Any) -> str | None:
        completion = client.chat.completions.create(model="assistant", messages=QUESTION, max_tokens=20, **options)
        text: str | None = completion.choices[0].message.content
        return text

    assert answer(seed=5, temperature=1.5) == answer(seed=5, temperature=1.5)
    assert len({answer(seed=seed, temperature=1.5) for seed in range(8)}) > 1
    assert len({answer(seed=seed, temperature=0) for seed in range(3)}) == 1


def test_a_conversation_reaches_the_template_as_it_is(client: OpenAI) -> None:
    messages = [
        {"role": "developer", "content": "Be käthe."},
        {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "你好 🙂"}]},
        {"role": "assistant", "content": "<b>&amp;\u2028"},
        {"role": "user", "content": "echo:", "name": "Zoë"},
    ]
    assert prompt_of(client, messages) == (
        "developer: Be käthe.\nsystem: Be\nbrief.\nuser: 你好 🙂\nassistant: <b>&amp;\u2028\nuser: echo:\nassistant:"
    )


def test_the_template_takes_arguments(client: OpenAI) -> None:
    opened = {"chat_template_kwargs": {"add_generation_prompt": False}}
    assert prompt_of(client, ECHO, extra_body=opened) == "user: echo:\n"


def test_unicode_survives_the_way_there_and_back(client: OpenAI) -> None:
    text = 'ß 你好 🙂 \u0301 \u202e \\ " \t é'
    messages: list[Any] = [{"role": "user", "content": "script: " + json.dumps({"pieces": list(text)})}]
    completion = client.chat.completions.create(model="vllm", messages=messages, max_tokens=100)
    assert completion.choices[0].message.content == text
    stream = client.chat.completions.create(model="vllm", messages=messages, max_tokens=100, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text


def check_error(error: APIStatusError, status: int, type: str, code: str, param: str | None = None) -> None:
    """The error is in the one shape, with these values."""
    assert isinstance(error.body, dict)
    assert error.body.keys() == ERROR_KEYS
    assert (error.status_code, error.type, error.code, error.param) == (status, type, code, param)


@pytest.mark.parametrize("wrong", ["rp_live_" + "0" * 64, "rp_live_" + "A" * 64, "sk-123", "rp_live_"])
def test_a_wrong_key(client: OpenAI, wrong: str) -> None:
    with pytest.raises(AuthenticationError) as refusal:
        client.with_options(api_key=wrong).models.list()
    check_error(refusal.value, 401, "authentication_error", "invalid_api_key")
    assert refusal.value.response.headers["www-authenticate"] == "Bearer"


async def test_a_wrong_key_async(async_client: AsyncOpenAI) -> None:
    with pytest.raises(AuthenticationError):
        await async_client.with_options(api_key="rp_live_" + "0" * 64).chat.completions.create(
            model="assistant", messages=ASK
        )


@pytest.mark.parametrize("model", ["gpt-5", "private", "default", "ASSISTANT", ""])
def test_an_unknown_model(client: OpenAI, model: str) -> None:
    with pytest.raises(NotFoundError, match="GET /v1/models") as refusal:
        client.chat.completions.create(model=model, messages=ASK)
    check_error(refusal.value, 404, "model_not_found", "model_not_found", "model")


async def test_an_unknown_model_async(async_client: AsyncOpenAI) -> None:
    with pytest.raises(NotFoundError):
        await async_client.chat.completions.create(model="gpt-5", messages=ASK, stream=True)


def test_a_rate_limited_key(client: OpenAI, conch: Conch) -> None:
    limited = client.with_options(api_key=conch.key("acme", "--limit", "2"))
    for left in ("1", "0"):
        answer = limited.chat.completions.with_raw_response.create(model="vllm", messages=ASK)
        assert answer.headers["x-ratelimit-remaining"] == left
    with pytest.raises(RateLimitError) as refusal:
        limited.chat.completions.create(model="vllm", messages=ASK)
    check_error(refusal.value, 429, "rate_limit_error", "rate_limit_exceeded")
    headers = refusal.value.response.headers
    assert 25 <= int(headers["retry-after"]) <= 30
    assert (headers["x-ratelimit-limit"], headers["x-ratelimit-remaining"]) == ("2", "0")
    with pytest.raises(RateLimitError):
        limited.models.list()


PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
TOOLS = [{"type": "function", "function": {"name": "f"}}]
UNSUPPORTED: list[tuple[str, str, dict[str, Any]]] = [
    ("vllm", "logit_bias", {"logit_bias": {"5": 1}}),
    ("ensemble", "logprobs", {"logprobs": True}),
    ("ensemble", "logprobs", {"logprobs": True, "top_logprobs": 2}),
    ("vllm", "tools", {"tools": TOOLS}),
    ("llmapi", "tools", {"tools": TOOLS, "tool_choice": "required"}),
    ("llmapi", "response_format", {"response_format": {"type": "json_object"}}),
    ("llmapi", "response_format", {"response_format": {"type": "json_schema", "json_schema": {"name": "s"}}}),
    ("vllm", "modalities", {"modalities": ["audio"]}),
    ("vllm", "reasoning_effort", {"reasoning_effort": "high"}),
    ("ensemble", "min_p", {"extra_body": {"min_p": 0.1}}),
    ("llmapi", "repetition_penalty", {"extra_body": {"repetition_penalty": 1.5}}),
    (
        "ensemble",
        "messages[0].content[0]",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]},
    ),
    (
        "vllm",
        "messages[1].content[1]",
        {
            "messages": [
                {"role": "system", "content": "x"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "x"},
                        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
                    ],
                },
            ]
        },
    ),
]


@pytest.mark.parametrize(("model", "param", "options"), UNSUPPORTED, ids=[f"{row[0]} {row[1]}" for row in UNSUPPORTED])
def test_what_would_change_the_answer_is_refused(
    client: OpenAI, model: str, param: str, options: dict[str, Any]
) -> None:
    with pytest.raises(BadRequestError, match=model) as refusal:
        client.chat.completions.create(**{"model": model, "messages": ASK, **options})
    check_error(refusal.value, 400, "invalid_request_error", "unsupported_parameter", param)


def test_an_unknown_field_is_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="'tempurature'") as refusal:
        client.chat.completions.create(model="vllm", messages=ASK, extra_body={"tempurature": 1, "seed": 1})
    check_error(refusal.value, 400, "invalid_request_error", "unknown_parameter", "tempurature")


@pytest.mark.parametrize(
    ("param", "options"),
    [
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("max_tokens", {"max_tokens": 5, "max_completion_tokens": 5}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("tool_choice", {"tool_choice": "required"}),
        ("seed", {"model": "ensemble", "seed": -1}),
        ("max_tokens", {"model": "ensemble", "max_tokens": 2049}),
        ("max_completion_tokens", {"model": "ensemble", "max_completion_tokens": 2049}),
    ],
)
def test_what_the_model_or_another_field_forbids_is_refused(
    client: OpenAI, param: str, options: dict[str, Any]
) -> None:
    with pytest.raises(BadRequestError) as refusal:
        client.chat.completions.create(**{"model": "vllm", "messages": ASK, **options})
    assert (refusal.value.type, refusal.value.param) == ("invalid_request_error", param)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long(client: OpenAI, stream: bool) -> None:
    with pytest.raises(BadRequestError, match="shorten it") as refusal:
        client.chat.completions.create(
            model="assistant", messages=[{"role": "user", "content": "sea " * 33_000}], stream=stream
        )
    check_error(refusal.value, 400, "invalid_request_error", "context_length_exceeded", "messages")


def test_advice_and_defaults_are_accepted(client: OpenAI) -> None:
    options: dict[str, Any] = {
        "user": "u",
        "safety_identifier": "u",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "prompt_cache_key": "k",
        "n": 1,
        "logit_bias": {},
        "logprobs": False,
        "top_logprobs": 0,
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "temperature": 1,
        "top_p": 1,
        "stop": [],
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "seed": None,
        "max_tokens": None,
        "extra_body": {"prompt_cache_retention": "24h", "min_p": 0, "repetition_penalty": 1, "top_k": -1},
    }
    for model in ("vllm", "ensemble", "bls", "llmapi"):
        completion = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}], **options)
        assert completion.choices[0].message.content == GREETING


def test_concurrent_requests_do_not_mix(conch: Conch, key: str) -> None:
    """Many answers over one upstream at once, each of them its own."""
    wires = [Wire(conch.url) for _ in range(20)]
    for number, wire in enumerate(wires):
        body = chat(f"Repeat after me: number {number} of the many", "assistant")
        wire.request("POST", "/v1/chat/completions", body, content_type="application/json", **bearer(key))
    answers = [wire.answer().json for wire in wires]
    for wire in wires:
        wire.close()
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == [
        f"number {number} of the many" for number in range(20)
    ]
    assert len({answer["id"] for answer in answers}) == 20
