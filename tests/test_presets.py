"""The presets on the published tensors: what each contract model receives, and what becomes of what it says."""

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from openai import APIError, InternalServerError, OpenAI

from scripts.triton import Triton
from tests.gateway import Conch
from tests.raw import Answer, Wire, bearer, chat

MODELS = ("vllm", "ensemble", "bls", "llmapi")
PROMPT = "user: echo:\nassistant:"
COUNTS = {"vllm": True, "ensemble": True, "bls": True, "llmapi": False}

# Everything that each preset can carry. A tab is escaped in the echo, so that no stop word cuts it.
FULL: dict[str, Any] = {
    "max_tokens": 500,
    "temperature": 0.5,
    "top_p": 0.25,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "stop": ["\n\n", "\t"],
    "seed": 42,
}
EXTRAS: dict[str, dict[str, Any]] = {
    "vllm": {"top_k": 7, "min_p": 0.125, "repetition_penalty": 1.5},
    "ensemble": {"top_k": 7, "repetition_penalty": 1.5},
    "bls": {"top_k": 7, "repetition_penalty": 1.5},
    "llmapi": {"top_k": 7},
}
TRTLLM_FULL: dict[str, list[Any]] = {
    "text_input": [PROMPT],
    "max_tokens": [500],
    "temperature": [0.5],
    "top_p": [0.25],
    "top_k": [7],
    "repetition_penalty": [1.5],
    "presence_penalty": [0.5],
    "frequency_penalty": [-0.5],
    "stop_words": ["\n\n", "\t"],
    "seed": [42],
    "exclude_input_in_output": [True],
    "return_num_input_tokens": [True],
    "return_num_output_tokens": [True],
}
VLLM_ASKS = {
    "exclude_input_in_output": [True],
    "return_finish_reason": [True],
    "return_num_input_tokens": [True],
    "return_num_output_tokens": [True],
}
TRTLLM_ASKS = {
    "exclude_input_in_output": [True],
    "return_num_input_tokens": [True],
    "return_num_output_tokens": [True],
}
RECEIVED_FULL: dict[str, dict[str, list[Any]]] = {
    "vllm": {"text_input": [PROMPT], **VLLM_ASKS},
    "ensemble": TRTLLM_FULL,
    "bls": TRTLLM_FULL,
    "llmapi": {
        "text_input": [PROMPT],
        "sampling_param_max_tokens": [500],
        "sampling_param_temperature": [0.5],
        "sampling_param_top_p": [0.25],
        "sampling_param_top_k": [7],
        "sampling_param_presence_penalty": [0.5],
        "sampling_param_frequency_penalty": [-0.5],
        "sampling_param_stop": ["\n\n", "\t"],
        "sampling_param_seed": [42],
        "sampling_param_exclude_input_from_output": [True],
        "return_finish_reason": [True],
    },
}
RECEIVED_MINIMAL: dict[str, dict[str, list[Any]]] = {
    "vllm": {"text_input": [PROMPT], **VLLM_ASKS},
    "ensemble": {"text_input": [PROMPT], "max_tokens": [2048], **TRTLLM_ASKS},
    "bls": {"text_input": [PROMPT], "max_tokens": [1024], **TRTLLM_ASKS},
    "llmapi": {
        "text_input": [PROMPT],
        "sampling_param_max_tokens": [1024],
        "sampling_param_exclude_input_from_output": [True],
        "return_finish_reason": [True],
    },
}


def ask(client: OpenAI, model: str, content: str, stream: bool, **options: Any) -> tuple[str, str | None, Any]:
    """Text, finish reason and usage of an answer, whole or streamed."""
    messages: Any = [{"role": "user", "content": content}]
    if not stream:
        completion = client.chat.completions.create(model=model, messages=messages, **options)
        choice = completion.choices[0]
        return choice.message.content or "", choice.finish_reason, completion.usage
    text, finish, usage = "", None, None
    for chunk in client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}, **options
    ):
        for part in chunk.choices:
            text += part.delta.content or ""
            finish = part.finish_reason or finish
        usage = chunk.usage or usage
    return text, finish, usage


def say(*pieces: str, **how: Any) -> str:
    """A message that has a contract model say these pieces."""
    return "script: " + json.dumps({"pieces": pieces, **how})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("full", [False, True], ids=["minimal", "full"])
def test_the_tensors_of_a_request(client: OpenAI, model: str, full: bool, stream: bool) -> None:
    options = {**FULL, "extra_body": EXTRAS[model]} if full else {}
    received = json.loads(ask(client, model, "echo:", stream, **options)[0])
    tensors = {name: tensor["data"] for name, tensor in received["tensors"].items()}
    assert received["parameters"] == {}
    assert tensors.pop("streaming" if model == "llmapi" else "stream") == [stream]
    if model == "vllm":
        (sampling,) = tensors.pop("sampling_parameters")
        assert json.loads(sampling) == ({**FULL, **EXTRAS[model]} if full else {"max_tokens": 1024})
    assert tensors == (RECEIVED_FULL if full else RECEIVED_MINIMAL)[model]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("options", "text", "finish", "tokens"),
    [
        ({}, "one two three", "stop", 3),
        ({"max_tokens": 2}, "one two", "length", 2),
        ({"stop": ["zzz", "three"], "max_tokens": 3}, "one two ", "stop", 3),
        ({"stop": "threes"}, "one two three", "stop", 3),
    ],
    ids=["whole", "length", "stop at the last token", "almost a stop"],
)
def test_text_finish_and_usage(
    client: OpenAI, model: str, stream: bool, options: dict[str, Any], text: str, finish: str, tokens: int
) -> None:
    prompt = say("one", " two", " three")
    said, finished, usage = ask(client, model, prompt, stream, **options)
    assert (said, finished) == (text, finish)
    if not COUNTS[model]:
        assert usage is None, "this model does not count, and nothing is invented"
        return
    asked = len(f"user: {prompt}\nassistant:".split())
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (asked, tokens, asked + tokens)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["ensemble", "bls"])
def test_a_stop_word_that_the_engine_leaves_is_cut_even_across_pieces(client: OpenAI, model: str, stream: bool) -> None:
    prompt = say("one", " two", " three", " four", pace_ms=3)
    assert ask(client, model, prompt, stream, stop="wo t")[:2] == ("one t", "stop")


@pytest.mark.parametrize("model", ["bls", "llmapi"])
def test_a_character_cut_in_two_comes_whole(client: OpenAI, model: str) -> None:
    pieces = ["caf", "\udcc3", "\udca9", " \udcf0\udc9f", "\udc99\udc82", "!"]
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": say(*pieces, pace_ms=5)}], stream=True
    )
    deltas = [chunk.choices[0].delta.content for chunk in stream]
    assert [delta for delta in deltas if delta] == ["caf", "é", " ", "🙂", "!"]
    assert ask(client, model, say(*pieces), False)[0] == "café 🙂!"


def post(conch: Conch, key: str, body: bytes) -> Answer:
    """The answer to a chat request, as it came."""
    with Wire(conch.url) as wire:
        wire.request("POST", "/v1/chat/completions", body, content_type="application/json", **bearer(key))
        return wire.answer()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_response_is_a_502(conch: Conch, key: str, model: str, stream: bool) -> None:
    body = chat(say("a", fail_after=0, message="secret at 10.0.0.7"), model, stream=stream)
    error = post(conch, key, body).error(502)
    assert (error["type"], error["code"]) == ("deployment_error", "upstream_error")
    assert "secret" not in error["message"]


@pytest.mark.parametrize("model", MODELS)
def test_a_failure_of_a_whole_answer_is_a_502(conch: Conch, key: str, model: str) -> None:
    post(conch, key, chat(say("a", "b", fail_after=1), model)).error(502)


@pytest.mark.parametrize("model", MODELS)
def test_a_failure_in_mid_stream_is_an_error_frame(conch: Conch, client: OpenAI, key: str, model: str) -> None:
    body = chat(say("a", "b", fail_after=1, pace_ms=60, message="secret at 10.0.0.7"), model, stream=True)
    answer = post(conch, key, body)
    assert answer.status == 200
    assert b"secret" not in answer.body
    *frames, empty = answer.body.split(b"\n\n")
    role, text, failure = (json.loads(frame.removeprefix(b"data: ")) for frame in frames)
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text["choices"][0]["delta"] == {"content": "a"}
    assert failure["error"].keys() == {"message", "type", "param", "code"}
    assert failure["error"]["code"] == "upstream_error"
    assert empty == b"", "no [DONE]: it must not look like a finished answer"
    with pytest.raises(APIError, match="failed"):
        list(client.chat.completions.create(**json.loads(body)))


def control(triton: Triton, model: str, verb: str) -> None:
    """Load or unload a model of Triton's."""
    url = f"{triton.url}/v2/repository/models/{model}/{verb}"
    request = urllib.request.Request(url, b"{}", {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=20).close()


@pytest.fixture
def unloaded(triton: Triton) -> Iterator[str]:
    """The gateway's id of a model that Triton has just unloaded; it is loaded again in the end."""
    control(triton, "tensorrt_llm_bls", "unload")
    try:
        yield "bls"
    finally:
        control(triton, "tensorrt_llm_bls", "load")


def await_listing(client: OpenAI, model: str, listed: bool) -> None:
    """Return when GET /models shows the model, or no longer does."""
    deadline = time.monotonic() + 8
    while (model in [each.id for each in client.models.list()]) != listed:
        assert time.monotonic() < deadline, f"{model} is {'not ' if listed else ''}listed"
        time.sleep(0.05)


def test_a_model_that_comes_and_goes_is_noticed(client: OpenAI, triton: Triton, unloaded: str) -> None:
    def check_unavailable() -> None:
        with pytest.raises(InternalServerError) as refusal:
            ask(client, unloaded, "hi", False)
        assert (refusal.value.status_code, refusal.value.code) == (503, "model_unavailable")
        assert refusal.value.response.headers["retry-after"] == "30"

    check_unavailable()
    await_listing(client, unloaded, False)
    check_unavailable()
    control(triton, "tensorrt_llm_bls", "load")
    await_listing(client, unloaded, True)
    assert ask(client, unloaded, say("back"), True)[0] == "back"


OWN = """
[server]
port = 0

[store]
url = "sqlite:{store}"

[upstreams.local]
urls = ["{triton}"]

# A repository that takes a prompt and nothing else.
[[models]]
id = "bare"
task = "chat"
upstream = "local"
model = "vllm"
in = {{ text_input = "prompt", stream = "stream", exclude_input_in_output = {{ const = true }} }}
out = {{ text = "text_output" }}
chat.template = "{root}/tests/plain.jinja"

# A preset bent to an engine's own extras.
[[models]]
id = "bent"
task = "chat"
upstream = "local"
model = "ensemble"
preset = "trtllm"
in.seed = false
in.max_tokens = {{ const = 64 }}
in.min_tokens = "extra.min_tokens"
in.priority = {{ from = "extra.urgency", map = {{ high = 1, low = 9 }}, param = true }}
in.lora_name = {{ template = "lora-{{extra.lora}}", param = true }}
in.guided_decoding_guide_type = {{ from = "extra.guide", map = {{ schema = "json_schema" }} }}
chat.template = "{root}/tests/plain.jinja"

[[models]]
id = "needy"
task = "chat"
upstream = "local"
model = "ensemble"
preset = "trtllm"
in.max_tokens = false
chat.template = "{root}/tests/plain.jinja"

[[models]]
id = "untemplated"
task = "chat"
upstream = "local"
model = "vllm"
preset = "vllm"
chat.template = "{root}/tests/no_such.jinja"
"""


@pytest.fixture(scope="module")
def own(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Conch, str]]:
    """A gateway whose operator wrote profiles of his own, and a key."""
    gateway = Conch(tmp_path_factory.mktemp("own"), triton.url, OWN)
    gateway.workspace("acme")
    with gateway.running():
        yield gateway, gateway.key("acme")


@pytest.fixture(scope="module")
def bent(own: tuple[Conch, str]) -> Iterator[OpenAI]:
    """The official SDK on that gateway."""
    base = f"{own[0].url}/v1"
    with OpenAI(base_url=base, api_key=own[1], max_retries=0, _strict_response_validation=True) as sdk:
        yield sdk


def test_a_profile_with_extras_of_its_own(bent: OpenAI) -> None:
    extras = {"min_tokens": 3, "urgency": "high", "lora": "ü", "guide": "schema"}
    received = json.loads(ask(bent, "bent", "echo:", False, extra_body=extras)[0])
    tensors = {name: tensor["data"] for name, tensor in received["tensors"].items()}
    assert (tensors["min_tokens"], tensors["guided_decoding_guide_type"]) == ([3], ["json_schema"])
    assert tensors["max_tokens"] == [64]
    assert received["parameters"] == {"priority": 1, "lora_name": "lora-ü"}


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        ("bent", {"min_tokens": "3"}, "min_tokens"),
        ("bent", {"min_tokens": 2**31}, "min_tokens"),
        ("bent", {"urgency": "middling"}, "urgency"),
        ("bent", {"guide": {"type": "schema"}}, "guide"),
        ("bent", {"seed": 1}, "seed"),
        ("bent", {"max_tokens": 5}, "max_tokens"),
        ("bare", {"temperature": 0.5}, "temperature"),
        ("bare", {"stop": ["a"]}, "stop"),
        ("bare", {"max_tokens": 5}, "max_tokens"),
        ("bare", {"max_completion_tokens": 5}, "max_completion_tokens"),
    ],
)
def test_what_such_a_profile_cannot_carry_is_refused(
    own: tuple[Conch, str], model: str, fields: dict[str, Any], param: str
) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
    error = post(*own, json.dumps(body).encode()).error(400, param)
    assert error["code"] == "unsupported_parameter"


def test_a_model_that_takes_a_prompt_and_nothing_else(bent: OpenAI) -> None:
    for stream in (False, True):
        assert ask(bent, "bare", say("a", "b"), stream) == ("ab", "stop", None)


def test_what_does_not_fit_is_not_served_and_the_reason_is_told(own: tuple[Conch, str], bent: OpenAI) -> None:
    gateway, _ = own
    assert [model.id for model in bent.models.list()] == ["bare", "bent"]
    for model in ("needy", "untemplated"):
        with pytest.raises(InternalServerError) as refusal:
            ask(bent, model, "hi", False)
        assert refusal.value.status_code == 503
    log = "".join(gateway.log)
    assert "model needy is not verified: the model requires 'max_tokens'" in log
    assert "model untemplated is not verified: " in log
