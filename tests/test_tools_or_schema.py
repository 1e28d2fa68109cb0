"""Tools that may be called beside a form for the answer: guided decoding holds the model to either of them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel

from scripts.triton import Triton
from tests.gateway import CONFIG, Conch

WEATHER: Any = {
    "name": "get_weather",
    "description": "The current weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/City"}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"City": {"type": "string", "description": "The name of the city"}},
    },
    "strict": True,
}
TIME: Any = {"name": "get_time", "description": "The time of day in a place", "parameters": {"type": "object"}}
CHAT_TOOLS: Any = [{"type": "function", "function": each} for each in (TIME, WEATHER)]
TOOLS: Any = [{"type": "function", **each} for each in (TIME, WEATHER)]
QUESTION = "What is the weather in Paris?"
ASK: Any = [{"role": "user", "content": QUESTION}]
AGENT = """
[[models]]
id = "agent"
task = "chat"
upstream = "local"
model = "vllm"
preset = "vllm"
chat = {{ template = "{root}/tests/plain.jinja", tools = "hermes", reasoning = "think" }}

[[models]]
id = "unguided"
task = "chat"
upstream = "local"
model = "tensorrt_llm"
preset = "trtllm-llmapi"
chat = {{ template = "{root}/tests/plain.jinja", tools = "hermes" }}
"""


class Place(BaseModel):
    city: str
    degrees: int


class Weather(BaseModel):
    """As pydantic writes it: with definitions of its own."""

    place: Place


FORM: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": Weather.model_json_schema()}}
TEXT: Any = {"format": {"type": "json_schema", "name": "weather", "schema": Weather.model_json_schema()}}


@pytest.fixture(scope="module")
def agent(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A client of a gateway whose contract model may call tools."""
    conch = Conch(tmp_path_factory.mktemp("agent"), triton.url, CONFIG + AGENT, grpc=triton.grpc_url)
    conch.workspace("acme")
    key = conch.key("acme")
    with conch.running(), OpenAI(base_url=f"{conch.url}/v1", api_key=key, max_retries=0) as client:
        yield client


# The assistant ------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}])
def test_a_call_then_an_answer_that_keeps_to_the_schema(client: OpenAI, choice: Any) -> None:
    options: Any = {"model": "assistant", "tools": CHAT_TOOLS, "response_format": FORM, **choice}
    asked = client.chat.completions.create(messages=ASK, **options).choices[0]
    assert (asked.finish_reason, asked.message.content) == ("tool_calls", None)
    (call,) = asked.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees and sunny"}
    answer = client.chat.completions.create(messages=[*ASK, asked.message, result], **options).choices[0]
    assert (answer.finish_reason, answer.message.tool_calls) == ("stop", None)
    assert Weather.model_validate_json(answer.message.content or "") == Weather(place=Place(city="Paris", degrees=21))


def test_a_call_then_an_answer_streamed(client: OpenAI) -> None:
    options: Any = {"model": "assistant", "tools": CHAT_TOOLS, "response_format": FORM}
    with client.chat.completions.stream(messages=ASK, **options) as stream:
        asked = stream.get_final_completion().choices[0]
    assert (asked.finish_reason, asked.message.content) == ("tool_calls", None)
    (call,) = asked.message.tool_calls or []
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees and sunny"}
    made: Any = {"id": call.id, "type": "function", "function": call.function.model_dump(include={"name", "arguments"})}
    told: Any = [*ASK, {"role": "assistant", "tool_calls": [made]}]
    chunks = list(client.chat.completions.create(messages=[*told, result], stream=True, **options))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 3, "as it is made"
    assert Weather.model_validate_json("".join(pieces)) == Weather(place=Place(city="Paris", degrees=21))
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_any_object_is_a_form_too(client: OpenAI) -> None:
    options: Any = {"model": "assistant", "tools": CHAT_TOOLS, "response_format": {"type": "json_object"}}
    asked = client.chat.completions.create(messages=ASK, **options).choices[0].message
    assert len(asked.tool_calls or []) == 1
    hello: Any = [{"role": "user", "content": "Hello!"}]
    answer = client.chat.completions.create(messages=hello, **options).choices[0].message
    assert isinstance(json.loads(answer.content or ""), dict)
    assert answer.tool_calls is None


@pytest.mark.parametrize("stream", [False, True])
def test_responses(client: OpenAI, stream: bool) -> None:
    def respond(**options: Any) -> Any:
        asked: Any = {"model": "assistant", "tools": TOOLS, "text": TEXT, **options}
        if not stream:
            return client.responses.create(**asked)
        with client.responses.create(stream=True, **asked) as events:
            (final,) = [event.response for event in events if event.type == "response.completed"]
        return final

    first = respond(input=QUESTION)
    (call,) = first.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees and sunny"}
    second = respond(input=[output], previous_response_id=first.id)
    assert [item.type for item in second.output] == ["message"]
    assert Weather.model_validate_json(second.output_text) == Weather(place=Place(city="Paris", degrees=21))
    assert second.model_dump()["text"]["format"]["name"] == "weather"


# What reaches the engine, and what comes of what it says ------------------------------------------


def say(*pieces: str, **how: Any) -> Any:
    return [{"role": "user", "content": "script: " + json.dumps({"pieces": pieces, **how})}]


def test_the_schema_and_the_hint(agent: OpenAI) -> None:
    """Every reference leads to what it led to, and the model is told how to choose."""
    tools = [*CHAT_TOOLS, {"type": "function", "function": {"name": "answer"}}]
    messages: Any = [{"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}, *ASK]
    messages[1] = {"role": "user", "content": "echo:"}
    options: Any = {"model": "agent", "tools": tools, "response_format": FORM, "parallel_tool_calls": False}
    said = agent.chat.completions.create(messages=messages, **options).choices[0].message.content or ""
    tensors = json.loads(said)["tensors"]
    prompt = tensors["text_input"]["data"][0]
    assert prompt.startswith("developer: Be kind.\nWrite one JSON object and nothing around it: {")
    sampling = json.loads(tensors["sampling_parameters"]["data"][0])
    schema = json.loads(json.loads(sampling["structured_outputs"])["json"])
    calls, answer = (option["properties"] for option in schema["anyOf"])
    assert calls["calls"]["maxItems"] == 1
    assert [each["properties"]["name"]["const"] for each in calls["calls"]["items"]["anyOf"]] == [
        *("get_time", "get_weather", "answer")
    ]
    assert answer == {"answer": {"$ref": "#/$defs/answer_"}}
    assert schema["$defs"]["get_weather"]["properties"]["city"] == {"$ref": "#/$defs/get_weather/$defs/City"}
    assert schema["$defs"]["answer_"]["properties"]["place"] == {"$ref": "#/$defs/answer_/$defs/Place"}
    assert schema["$defs"]["answer"] == {"type": "object"}


def test_instructions_are_kept_and_made_where_there_are_none(agent: OpenAI) -> None:
    options: Any = {"model": "agent", "tools": CHAT_TOOLS, "response_format": FORM}
    for told in ([], [{"role": "system", "content": "Be kind."}]):
        messages: Any = [*told, {"role": "user", "content": "echo:"}]
        said = agent.chat.completions.create(messages=messages, **options).choices[0].message.content or ""
        prompt = json.loads(said)["tensors"]["text_input"]["data"][0]
        assert prompt.startswith("system: Be kind.\n\nWrite one JSON" if told else "system: Write one JSON")


ANSWER = '{"place": {"city": "Köln \\"}\\"", "degrees": 2.10e1}}'
SAID: list[tuple[str, str, str | None, list[tuple[str, str]], str]] = [
    ("an answer", f'{{"answer": {ANSWER}}}', ANSWER, [], "stop"),
    ("spaces", f' {{ "answer" :\n{ANSWER}\n}} \n', ANSWER, [], "stop"),
    ("a call", '{"calls": [{"name": "f", "parameters": {"n":1}}]}', None, [("f", '{"n":1}')], "tool_calls"),
    (
        "two calls",
        '{"calls": [{"name": "f", "parameters": {}}, {"name": "g", "parameters": {"a": "}]"}}]}',
        None,
        [("f", "{}"), ("g", '{"a": "}]"}')],
        "tool_calls",
    ),
    ("what no guide allows", "Hello!", "Hello!", [], "stop"),
]


@pytest.mark.parametrize("thought", ["", "<think>\nHm {.\n</think>\n\n"], ids=["at once", "after thinking"])
@pytest.mark.parametrize(("text", "content", "calls", "reason"), [each[1:] for each in SAID], ids=[e[0] for e in SAID])
def test_an_answer_byte_for_byte(
    agent: OpenAI, text: str, content: str | None, calls: list[tuple[str, str]], reason: str, thought: str
) -> None:
    """Whatever the pieces are that it comes in."""
    options: Any = {"model": "agent", "tools": CHAT_TOOLS, "response_format": FORM, "max_tokens": 9999}
    whole = thought + text
    for size in (1, 7, len(whole)):
        messages = say(*(whole[at : at + size] for at in range(0, len(whole), size)))
        choice = agent.chat.completions.create(messages=messages, **options).choices[0]
        found = [(each.function.name, each.function.arguments) for each in choice.message.tool_calls or []]
        assert (choice.message.content, found, choice.finish_reason) == (content, calls, reason)
        streamed, ended = "", ""
        for chunk in agent.chat.completions.create(messages=messages, stream=True, **options):
            streamed += chunk.choices[0].delta.content or ""
            ended = chunk.choices[0].finish_reason or ended
        assert (streamed, ended) == (content or "", reason)


def test_what_is_cut_is_what_there_is(agent: OpenAI) -> None:
    options: Any = {"model": "agent", "tools": CHAT_TOOLS, "response_format": FORM}
    for pieces, limit, content, reason in (
        (('{"answer": {"place', '": {}}}'), 1, '{"place', "length"),
        (('{"answ', 'er": {}}'), 1, "", "length"),
        (('{"calls": [{"na', 'me": "f"'), 1, "", "length"),
        (('{"answer": 4', "2}"), 1, "4", "length"),
        (('{"answer": 42', "}"), 9, "42", "stop"),
    ):
        choice = agent.chat.completions.create(messages=say(*pieces), max_tokens=limit, **options).choices[0]
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (content, None, reason)


def test_without_guided_decoding_it_is_refused(agent: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="unguided") as refusal:
        agent.chat.completions.create(model="unguided", messages=ASK, tools=CHAT_TOOLS, response_format=FORM)
    assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", "response_format")
    with pytest.raises(BadRequestError, match="unguided") as refusal:
        agent.responses.create(model="unguided", input=QUESTION, tools=TOOLS, text=TEXT)
    assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", "text.format")
