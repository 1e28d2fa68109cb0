"""The models of models/ and the contract models, on a real Triton: what their tensors promise."""

import base64
import http.client
import json
import math
import re
import socket
import struct
import time
import urllib.request
from typing import Any

import pytest

from scripts.triton import Triton, TritonError

Event = dict[str, Any]
WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city"],
    },
}
WANTED = ("finish_reason", "num_input_tokens", "num_output_tokens", "cumulative_logprob", "logprobs")


def _post(triton: Triton, path: str, body: Event) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", triton.ports[0], timeout=30)
    try:
        connection.request("POST", f"/v2/models/{path}", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def _stream(triton: Triton, model: str, body: Event) -> list[Event]:
    text = _post(triton, f"{model}/generate_stream", body)[1]
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def _chatml(question: str, tools: list[Event] | None = None) -> str:
    lines = "\n".join(json.dumps({"type": "function", "function": tool}) for tool in tools or [])
    system = f"<|im_start|>system\n<tools>\n{lines}\n</tools><|im_end|>\n" if tools else ""
    return f"{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def _body(prompt: str, **sampling: Any) -> Event:
    parameters = {"temperature": 0, "max_tokens": 400, **sampling}
    wants = {f"return_{name}": True for name in WANTED}
    return {"text_input": prompt, "stream": True, "sampling_parameters": json.dumps(parameters), **wants}


def _ask(triton: Triton, question: str, tools: list[Event] | None = None, **sampling: Any) -> str:
    events = _stream(triton, "assistant", _body(_chatml(question, tools), **sampling))
    assert not [event for event in events if "error" in event], events
    return "".join(event["text_output"] for event in events)


def _refusal(triton: Triton, body: Event) -> str:
    events = _stream(triton, "assistant", body)
    assert len(events) == 1
    return str(events[0]["error"])


def _count(triton: Triton, metric: str, outcome: str, model: str) -> int:
    with urllib.request.urlopen(triton.metrics_url, timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(rf'^{metric}{{model="{model}",outcome="{outcome}"}} (\d+)', text, re.MULTILINE)
    assert found, f"{metric} is not on the metrics port"
    return int(found[1])


def _await_count(triton: Triton, metric: str, outcome: str, model: str, least: int) -> int:
    """Poll the counter, which is all that Triton offers, until it has come to `least`."""
    deadline = time.monotonic() + 10
    while (count := _count(triton, metric, outcome, model)) < least and time.monotonic() < deadline:
        time.sleep(0.02)
    return count


def _abandon(triton: Triton, model: str, body: Event) -> None:
    """Begin a stream, read its first event and leave."""
    data = json.dumps(body).encode()
    head = f"POST /v2/models/{model}/generate_stream HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", triton.ports[0]), timeout=10) as connection:
        connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        received = b""
        while b"data: " not in received:
            received += connection.recv(65536)


def _embed(triton: Triton, texts: list[str]) -> tuple[list[list[float]], list[int]]:
    tensor = {"name": "text", "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}
    status, answer = _post(triton, "minilm/infer", {"inputs": [tensor]})
    assert status == 200, answer
    outputs = {output["name"]: output for output in json.loads(answer)["outputs"]}
    flat = outputs["embedding"]["data"]
    return [flat[at : at + 384] for at in range(0, len(flat), 384)], outputs["tokens"]["data"]


def _cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_minilm_gives_the_published_similarities(triton: Triton) -> None:
    # The first rows of the model card's own example, to four digits.
    vectors, tokens = _embed(triton, ["A man is eating food.", "A man is eating a piece of bread.", "日本 🙂", ""])
    assert _cosine(vectors[0], vectors[1]) == pytest.approx(0.7553, abs=2e-4)
    assert all(math.isclose(_cosine(vector, vector), 1.0, abs_tol=1e-5) for vector in vectors)
    assert tokens == [8, 11, 5, 2]


def test_minilm_does_not_let_a_batch_change_a_vector(triton: Triton) -> None:
    long = "word " * 600
    together, tokens = _embed(triton, ["short", long, "A somewhat longer sentence about nothing."])
    alone, _ = _embed(triton, ["short"])
    assert _cosine(together[0], alone[0]) == pytest.approx(1.0, abs=1e-5)
    assert tokens[1] == 256


def test_assistant_streams_its_tokens_exactly(triton: Triton) -> None:
    said = "Hé  llo\n\twörld, 你好 🙂🙂 e\u0301!"
    events = _stream(triton, "assistant", _body(_chatml(f"Repeat after me: {said}")))
    assert "".join(event["text_output"] for event in events) == said
    assert [event["finish_reason"] for event in events] == ["None"] * (len(events) - 1) + ["stop"]
    assert all(event["num_output_tokens"] == 1 for event in events)
    assert len({event["num_input_tokens"] for event in events}) == 1


def test_assistant_answers_at_once_and_repeats_the_prompt_unless_told_not_to(triton: Triton) -> None:
    prompt = _chatml("Count to 5")
    body = _body(prompt) | {"stream": False}
    whole = json.loads(_post(triton, "assistant/generate", body)[1])
    bare = json.loads(_post(triton, "assistant/generate", body | {"exclude_input_in_output": True})[1])
    assert whole["text_output"] == f"{prompt}1, 2, 3, 4, 5"
    assert bare["text_output"] == "1, 2, 3, 4, 5"
    assert bare["num_output_tokens"] == 9
    assert "exclude_input_in_output" in _refusal(triton, _body(prompt) | {"exclude_input_in_output": False})


def test_assistant_obeys_length_and_stop(triton: Triton) -> None:
    cut = _stream(triton, "assistant", _body(_chatml("Count to 50"), max_tokens=3))
    assert "".join(event["text_output"] for event in cut) == "1, 2"
    assert cut[-1]["finish_reason"] == "length"
    assert _ask(triton, "Count to 50", stop=["7,", "99"]) == "1, 2, 3, 4, 5, 6, "
    assert _ask(triton, "Count to 50", stop=["4, 5"], include_stop_str_in_output=True) == "1, 2, 3, 4, 5"
    # vLLM's default, when max_tokens is not given or null.
    assert len(_stream(triton, "assistant", _body(_chatml("Count to 50"), max_tokens=None))) == 16
    assert len(_stream(triton, "assistant", _body(_chatml("Count to 3"), max_tokens=40, ignore_eos=True))) == 40


def test_assistant_answers_from_the_documentation(triton: Triton) -> None:
    question = "How do I create an API key?"
    assert "keys create" in _ask(triton, question)
    assert "not a language model" in _ask(triton, "Who painted the ceiling of the Sistine Chapel?")
    drawn = [_ask(triton, question, temperature=2, seed=seed) for seed in range(12)]
    assert drawn == [_ask(triton, question, temperature=2, seed=seed) for seed in range(12)]
    assert len(set(drawn)) > 1
    assert {_ask(triton, question, temperature=2, top_k=1) for _ in range(3)} == {_ask(triton, question)}


def test_assistant_counts_several_answers_apart(triton: Triton) -> None:
    body = _body(_chatml("What is Conch?"), n=3, temperature=1, seed=5, logprobs=2, max_tokens=4)
    events = _stream(triton, "assistant", body)
    assert all(event["num_output_tokens"] == [1, 1, 1] for event in events)
    assert events[-1]["finish_reason"] == ["length"] * 3
    for index in range(3):
        logprobs = [json.loads(event["logprobs"][index]) for event in events]
        assert all(len(new) == 1 and 1 <= len(new[0]) <= 2 for new in logprobs)
        text = "".join(event["text_output"][index] for event in events)
        assert text == "".join(next(iter(new[0].values()))["decoded_token"] for new in logprobs)
        total = sum(next(iter(new[0].values()))["logprob"] for new in logprobs)
        assert events[-1]["cumulative_logprob"][index] == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temperture": 1}, "Unexpected keyword argument 'temperture'"),
        ({"temperature": -1}, "temperature must be non-negative"),
        ({"n": 2}, "n must be 1 when using greedy sampling"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"lora_name": "x"}, "LoRA feature is not enabled"),
        ({"structured_outputs": {"json": {}}}, "structured_outputs"),
        ({"structured_outputs": '{"regex": "a", "choice": ["b"]}'}, "exactly one"),
        ({"structured_outputs": '{"grammar": "root ::= x"}'}, "grammars"),
    ],
)
def test_assistant_refuses_what_vllm_refuses(triton: Triton, sampling: Event, message: str) -> None:
    assert message in _refusal(triton, _body(_chatml("Count to 3"), **sampling))


def test_assistant_takes_request_parameters_for_sampling_parameters(triton: Triton) -> None:
    events = _stream(triton, "assistant", {"text_input": _chatml("Count to 9"), "stream": True, "max_tokens": 5})
    assert "".join(event["text_output"] for event in events) == "1, 2, 3"


def _calls(text: str) -> list[tuple[str, Event]]:
    calls = [json.loads(call) for call in re.findall(r"<tool_call>\s*(.*?)\s*</tool_call>", text, re.DOTALL)]
    return [(call["name"], call["arguments"]) for call in calls]


def test_assistant_calls_tools(triton: Triton) -> None:
    text = _ask(triton, "What is the weather in Paris and in Tokyo, in celsius?", [WEATHER])
    expected = [("get_weather", {"city": city, "unit": "celsius"}) for city in ("Paris", "Tokyo")]
    assert _calls(text) == expected
    assert _calls(_ask(triton, "weather in New York?", [WEATHER])) == [("get_weather", {"city": "New York"})]
    assert _calls(_ask(triton, "What is a model repository?", [WEATHER])) == []


def test_assistant_tells_what_a_tool_returned(triton: Triton) -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    past = f"<|im_start|>user\nWeather in Paris?<|im_end|>\n<|im_start|>assistant\n{call}<|im_end|>\n"
    result = '<|im_start|>user\n<tool_response>\n{"sky": "clear"}\n</tool_response><|im_end|>\n'
    events = _stream(triton, "assistant", _body(f"{past}{result}<|im_start|>assistant\n"))
    assert "".join(event["text_output"] for event in events) == "get_weather says: sky clear."


def test_assistant_obeys_structured_outputs(triton: Triton) -> None:
    schema = {
        "type": "object",
        "properties": {
            "day": {"$ref": "#/$defs/day"},
            "guests": {"type": "array", "items": {"type": "string"}, "minItems": 3},
            "size": {"type": "integer", "minimum": 7, "multipleOf": 4},
            "code": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$"},
            "parent": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
        "required": ["day", "guests", "size", "code", "parent"],
        "$defs": {"day": {"enum": ["Monday", "Friday"]}},
    }

    def constrained(kind: str, value: Any) -> str:
        question = "Alice and Bob meet on Friday about XY-123."
        return _ask(triton, question, structured_outputs=json.dumps({kind: value}))

    built = json.loads(constrained("json", schema))
    assert list(built) == ["day", "guests", "size", "code", "parent"]
    assert (built["day"], built["size"], built["code"], built["parent"]) == ("Friday", 8, "XY-123", None)
    assert built["guests"][:2] == ["Alice", "Bob"]
    assert len(built["guests"]) >= 3
    assert json.loads(constrained("json", json.dumps(schema))) == built
    assert re.fullmatch(r"[a-f]{3,5}(?:x|y)?\d+", constrained("regex", r"[a-f]{3,5}(?:x|y)?\d+"))
    assert constrained("choice", ["Tuesday", "friday"]) == "friday"
    assert isinstance(json.loads(constrained("json_object", True)), dict)


ITEM: Event = {"type": "array", "minItems": 100_000, "items": {"type": "array", "minItems": 100_000}}
TREE: Event = {"properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}}, "required": ["a", "b"]}


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"json": {"type": "string", "minLength": 1_000_000_000}}, "asks for more than"),
        ({"json": {"type": "array", "minItems": 1_000_000_000}}, "asks for more than"),
        ({"json": ITEM}, "asks for more than"),
        ({"json": {"type": "array", "uniqueItems": True, "minItems": 2, "items": {"const": None}}}, "tell apart"),
        ({"json": {"$ref": "#"}}, "$ref # leads back to itself"),
        ({"json": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}, "leads back to itself"),
        ({"json": TREE}, "the JSON schema"),
        ({"json": {"anyOf": [TREE] * 50}}, "the JSON schema"),
        ({"json": {"$ref": "#/$defs/none"}}, "$ref #/$defs/none leads nowhere"),
        ({"json": {"properties": 5}}, "properties must not be 5"),
        ({"json": {"required": [5]}}, "required must name properties"),
        ({"json": {"type": "string", "minLength": "a"}}, 'minLength must not be "a"'),
        ({"json": {"type": "number", "multipleOf": 0}}, "multipleOf must be more than 0"),
        ({"json": {"type": "number", "minimum": 10**400}}, "minimum is out of range"),
        ({"json": {"type": "string", "pattern": "("}}, "the pattern '('"),
        ({"json": {"type": "string", "pattern": "a{1000000000}"}}, "asks for more than"),
        ({"json": {"type": "string", "pattern": "^(a+)+(?!)$", "minLength": 30}}, "too intricate"),
        ({"json": "{"}, "not a JSON schema"),
        ({"regex": "(((a{1000}){1000}){1000}){1000}"}, "asks for more than"),
        ({"regex": "["}, "the pattern"),
        ({"choice": [5]}, "choice must be"),
    ],
)
def test_assistant_refuses_at_once_what_it_cannot_say(triton: Triton, constraint: Event, message: str) -> None:
    began = time.monotonic()
    said = _refusal(triton, _body(_chatml("a" * 60 + "!"), structured_outputs=json.dumps(constraint)))
    assert "structured_outputs: " in said
    assert message in said
    assert time.monotonic() - began < 5


def test_no_pattern_holds_the_assistant_up(triton: Triton) -> None:
    began = time.monotonic()
    said = _ask(triton, "a" * 60 + "!", structured_outputs=json.dumps({"regex": "(a+)+b"}))
    assert re.fullmatch("a+b", said)
    assert time.monotonic() - began < 5


def test_assistant_thinks_when_asked_to(triton: Triton) -> None:
    assert re.fullmatch(r"<think>\n.+\n</think>\n\n1, 2", _ask(triton, "Count to 2 /think"), re.DOTALL)
    opened = _stream(triton, "assistant", _body(_chatml("Count to 2") + "<think>\n"))
    text = "".join(event["text_output"] for event in opened)
    assert "<think>" not in text
    assert text.endswith("</think>\n\n1, 2")


def test_assistant_says_what_images_it_got(triton: Triton) -> None:
    png = base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 640, 480)).decode()
    body = _body(_chatml("<image>\nCount to 2"))
    events = _stream(triton, "assistant", body | {"image": [png, png]})
    text = "".join(event["text_output"] for event in events)
    assert text == "I see 2 images: PNG 640×480, PNG 640×480. 1, 2"
    assert "cannot identify image" in _refusal(triton, body | {"image": ["bm90IGFuIGltYWdl"]})


def test_assistant_refuses_a_prompt_beyond_its_context(triton: Triton) -> None:
    assert "longer than the maximum model length" in _refusal(triton, _body("x " * 33_000))


def test_an_abandoned_stream_is_cancelled(triton: Triton) -> None:
    metric, model = "conch_assistant_requests_total", "assistant"
    before = _count(triton, metric, "cancelled", model)
    for _ in range(20):
        _abandon(triton, model, _body(_chatml("Count to 5000"), max_tokens=20_000))
    assert _await_count(triton, metric, "cancelled", model, before + 20) == before + 20


def _received(text: str) -> Event:
    return dict(json.loads(text[text.index('{"tensors"') :]))


def test_contract_models_echo_their_tensors(triton: Triton) -> None:
    sent: Event = {"text_input": "echo:", "max_tokens": 3, "stop_words": ["a", "ü"], "top_p": 0.5, "seed": 2**63}
    for model in ("ensemble", "tensorrt_llm_bls"):
        status, answer = _post(triton, f"{model}/generate", sent)
        assert status == 200, answer
        tensors = _received(json.loads(answer)["text_output"])["tensors"]
        assert {name: tensor["data"] for name, tensor in tensors.items()} == {
            name: value if isinstance(value, list) else [value] for name, value in sent.items()
        }
        assert tensors["stop_words"]["shape"] == [1, 2]
    _, answer = _post(triton, "tensorrt_llm/generate", {"text_input": "echo:", "sampling_param_stop": ["a"], "x": 1})
    received = _received(json.loads(answer)["text_output"])
    assert received["tensors"]["sampling_param_stop"] == {"shape": [1], "data": ["a"]}
    assert received["parameters"] == {"x": 1}


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        ("ensemble", {"max_tokens": 50, "stop_words": ["好"]}, ["Hello", ",", " wörld", ":", " 你", "好"]),
        ("tensorrt_llm_bls", {"max_tokens": 3}, ["Hello", "Hello,", "Hello, wörld"]),
        ("tensorrt_llm_bls", {"max_tokens": 9, "stop_words": ["o,"]}, ["Hello", "Hello,"]),
        (
            "tensorrt_llm",
            {"sampling_param_max_tokens": 3, "sampling_param_exclude_input_from_output": True},
            ["Hello", "Hello,", "Hello, wörld"],
        ),
        ("tensorrt_llm", {"sampling_param_max_tokens": 2}, ["hiHello", "hiHello,"]),
        ("vllm", {"sampling_parameters": '{"max_tokens": 3, "stop": "ö"}'}, ["Hello", ",", " w"]),
    ],
)
def test_contract_models_stream_as_their_repositories_do(
    triton: Triton, model: str, settings: Event, expected: list[str]
) -> None:
    stream = "streaming" if model == "tensorrt_llm" else "stream"
    events = _stream(triton, model, {"text_input": "hi", stream: True, **settings})
    assert [event["text_output"] for event in events] == expected


def test_contract_models_fail_as_scripted(triton: Triton) -> None:
    def scripted(**script: Any) -> list[Event]:
        prompt = f"script: {json.dumps({'pieces': ['a', 'b'], **script})}"
        return _stream(triton, "vllm", {"text_input": prompt, "stream": True, "sampling_parameters": "{}"})

    assert scripted(fail_after=0, message="too bad") == [{"error": "too bad"}]
    assert [event.get("text_output", event.get("error")) for event in scripted(fail_after=1)] == [
        "a",
        "the script fails here",
    ]
    metric = "conch_contract_requests_total"
    before = _count(triton, metric, "cancelled", "vllm")
    slow = {"pieces": ["a"] * 1000, "pace_ms": 5}
    prompt = {"text_input": f"script: {json.dumps(slow)}", "stream": True}
    _abandon(triton, "vllm", prompt | {"sampling_parameters": '{"max_tokens": 1000}'})
    assert _await_count(triton, metric, "cancelled", "vllm", before + 1) == before + 1


def test_a_triton_that_cannot_start_says_why(tmp_path_factory: pytest.TempPathFactory) -> None:
    repository = tmp_path_factory.mktemp("models")
    model = repository / "broken" / "1"
    model.mkdir(parents=True)
    (model / "model.py").write_text("raise ValueError('broken on purpose')\n")
    (repository / "broken" / "config.pbtxt").write_text('backend: "python"\n')
    triton = Triton(repository, log=repository.parent / "broken.log")
    with pytest.raises(TritonError, match="broken on purpose"):
        triton.start()
    assert triton.process is None
