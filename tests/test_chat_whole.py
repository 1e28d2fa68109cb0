"""Chat beyond words, by the official SDK: tools, schemas, several answers, log probabilities, pictures, reasoning."""

import base64
import json
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI
from pydantic import BaseModel

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The name of the city"}},
            "required": ["city"],
        },
    },
}
TIME: Any = {
    "type": "function",
    "function": {"name": "get_time", "description": "The time of day in a place", "parameters": {"type": "object"}},
}
ASK: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_a_tool_call_and_its_result(client: OpenAI) -> None:
    asked = client.chat.completions.create(model="assistant", messages=ASK, tools=[WEATHER, TIME])
    choice = asked.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.id.startswith("call_")
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    told: Any = [*ASK, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 24 degrees"}]
    answered = client.chat.completions.create(model="assistant", messages=told, tools=[WEATHER, TIME])
    assert answered.choices[0].finish_reason == "stop"
    assert "24 degrees" in (answered.choices[0].message.content or "")


async def test_two_calls_streamed(async_client: AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What is the weather in Paris and in Tokyo?"}]
    async with async_client.chat.completions.stream(model="assistant", messages=messages, tools=[WEATHER]) as stream:
        chunks = [event.chunk async for event in stream if event.type == "chunk"]
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Paris", "Tokyo"]
    assert final.choices[0].finish_reason == "tool_calls"
    deltas = [delta for chunk in chunks for delta in (chunk.choices and chunk.choices[0].delta.tool_calls) or []]
    for index in (0, 1):
        first, *rest = [delta for delta in deltas if delta.index == index]
        assert first.id is not None
        assert first.function is not None
        assert (first.type, first.function.name, first.function.arguments) == ("function", "get_weather", "")
        assert rest
        assert all(delta.id is None and delta.function and delta.function.name is None for delta in rest)
    assert not any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks)


def test_an_answer_is_told_again_as_a_client_kept_it(client: OpenAI) -> None:
    """With everything that it had, and with LiteLLM's notes on it."""
    asked = client.chat.completions.create(model="assistant", messages=ASK, tools=[WEATHER]).choices[0].message
    assert asked.tool_calls is not None
    kept: Any = {**asked.model_dump(), "provider_specific_fields": {"refusal": None}}
    result: Any = {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "21 degrees"}
    told = client.chat.completions.create(model="assistant", messages=[*ASK, kept, result], tools=[WEATHER])
    assert "21 degrees" in (told.choices[0].message.content or "")


def test_what_an_sdk_reads_in_an_answer_is_not_told_to_the_model(client: OpenAI) -> None:
    with client.chat.completions.stream(model="assistant", messages=ASK, tools=[WEATHER]) as stream:
        asked: Any = stream.get_final_completion().choices[0].message.model_dump()
    (call,) = asked["tool_calls"]
    assert (asked["parsed"], call["index"], call["function"]["parsed_arguments"]) == (None, 0, None)
    bare = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
    simply: Any = {"role": "assistant", "content": None, "tool_calls": [{"id": call["id"], "function": bare}]}
    asked["parsed"] = call["function"]["parsed_arguments"] = {"city": "Nowhere"}
    result: Any = {"role": "tool", "tool_call_id": call["id"], "content": "21 degrees"}
    kept, plain = (
        client.chat.completions.create(model="assistant", messages=[*ASK, told, result], tools=[WEATHER]).usage
        for told in (asked, simply)
    )
    assert kept is not None
    assert kept == plain


def test_one_call_where_only_one_is_wanted(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What is the weather in Paris and in Tokyo?"}]
    answer = client.chat.completions.create(
        model="assistant", messages=messages, tools=[WEATHER], parallel_tool_calls=False
    )
    assert len(answer.choices[0].message.tool_calls or []) == 1


@pytest.mark.parametrize("form", [{}, {"response_format": {"type": "json_object"}}])
@pytest.mark.parametrize(
    ("choice", "name"),
    [("required", "get_weather"), ({"type": "function", "function": {"name": "get_time"}}, "get_time")],
)
def test_a_call_is_enforced(client: OpenAI, choice: Any, name: str, form: Any) -> None:
    """With a form for the text as well, as some clients send it: a forced call leaves no text to have one."""
    options: Any = {"model": "assistant", "messages": ASK, "tools": [WEATHER, TIME], "tool_choice": choice, **form}
    with client.chat.completions.stream(**options) as stream:
        streamed = stream.get_final_completion()
    for completion in (client.chat.completions.create(**options), streamed):
        (call, *_) = completion.choices[0].message.tool_calls or []
        assert completion.choices[0].finish_reason == "tool_calls"
        assert completion.choices[0].message.content is None
        assert call.type == "function"
        assert call.function.name == name
        assert isinstance(json.loads(call.function.arguments), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "book"}}])
def test_a_call_is_enforced_by_a_schema_with_definitions(client: OpenAI, choice: Any) -> None:
    """As pydantic writes it where an argument is an object."""
    place = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    parameters = {"type": "object", "properties": {"to": {"$ref": "#/$defs/Place"}}, "required": ["to"]}
    book: Any = {"name": "book", "description": "Book a trip", "parameters": {**parameters, "$defs": {"Place": place}}}
    answer = client.chat.completions.create(
        model="assistant",
        messages=[{"role": "user", "content": "Book a trip. city: Paris"}],
        tools=[{"type": "function", "function": book}, WEATHER],
        tool_choice=choice,
    )
    (call, *_) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("book", {"to": {"city": "Paris"}})


def test_tools_that_must_not_be_called(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="assistant", messages=ASK, tools=[WEATHER], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content


class Person(BaseModel):
    """What the schema asks for."""

    name: str
    age: int
    hobbies: list[str]


def test_a_schema_is_kept(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Anna is 31 years old and likes sailing."}]
    parsed = client.chat.completions.parse(model="assistant", messages=messages, response_format=Person)
    person = parsed.choices[0].message.parsed
    assert person is not None
    assert person.age == 31
    with client.chat.completions.stream(model="assistant", messages=messages, response_format=Person) as stream:
        streamed = stream.get_final_completion().choices[0].message.parsed
    assert streamed == person


def test_a_json_object(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="assistant", messages=ASK, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


@pytest.mark.parametrize("model", ["assistant", "ensemble"])
def test_several_answers(client: OpenAI, model: str) -> None:
    """By one tensor where the profile has it, else by as many requests."""
    options: Any = {"model": model, "messages": ASK, "n": 3, "temperature": 1, "seed": 5, "max_tokens": 8}
    whole = client.chat.completions.create(**options)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert all(choice.message.content for choice in whole.choices)
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 8
    said = {0: "", 1: "", 2: ""}
    ended = []
    for chunk in client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            ended += [choice.index] if choice.finish_reason else []
    assert sorted(ended) == [0, 1, 2]
    assert list(said.values()) == [choice.message.content for choice in whole.choices]


def test_log_probabilities(client: OpenAI) -> None:
    options: Any = {"model": "assistant", "messages": ASK, "logprobs": True, "top_logprobs": 2, "max_tokens": 5}
    whole = client.chat.completions.create(**options).choices[0]
    assert whole.logprobs is not None
    told = whole.logprobs.content or []
    assert "".join(each.token for each in told) == whole.message.content
    assert all(each.logprob <= 0 and 0 < len(each.top_logprobs) <= 2 for each in told)
    assert all(bytes(each.bytes or []).decode() == each.token for each in told)
    streamed: list[Any] = []
    for chunk in client.chat.completions.create(**options, stream=True):
        if chunk.choices and chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content or []
    assert [each.token for each in streamed] == [each.token for each in told]


def test_a_picture(client: OpenAI) -> None:
    url = "data:image/png;base64," + base64.b64encode(PIXEL).decode()
    parts: Any = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    answer = client.chat.completions.create(model="assistant", messages=[{"role": "user", "content": parts}])
    assert "1 image" in (answer.choices[0].message.content or "")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "http://169.254.169.254/latest",
        "http://[::1]/a.png",
        "ftp://example.com/a.png",
        "data:text/plain;base64,aGk=",
        "data:image/png;base64,???",
        "data:image/png;base64,AAAA",
        "data:image/svg+xml;base64," + base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode(),
        "no url",
        "",
    ],
)
def test_a_picture_that_cannot_be_had(client: OpenAI, url: str) -> None:
    parts: Any = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(BadRequestError) as refusal:
        client.chat.completions.create(model="assistant", messages=[{"role": "user", "content": parts}])
    assert (refusal.value.code, refusal.value.param) == ("invalid_image", "messages[0].content[1].image_url")


@pytest.mark.parametrize(
    "options", [{"reasoning_effort": "high"}, {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}]
)
def test_reasoning_is_kept_apart(client: OpenAI, options: Any) -> None:
    whole = client.chat.completions.create(model="assistant", messages=ASK, **options).choices[0].message
    reasoning = (whole.model_extra or {})["reasoning_content"]
    assert reasoning
    assert whole.content
    assert "<think>" not in whole.content + reasoning
    said = thought = ""
    for chunk in client.chat.completions.create(model="assistant", messages=ASK, stream=True, **options):
        for choice in chunk.choices:
            said += choice.delta.content or ""
            thought += (choice.delta.model_extra or {}).get("reasoning_content") or ""
    assert (said, thought) == (whole.content, reasoning)


def test_a_template_variable_that_is_none(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="'thinking'") as refusal:
        client.chat.completions.create(
            model="assistant", messages=ASK, extra_body={"chat_template_kwargs": {"thinking": True}}
        )
    assert refusal.value.param == "chat_template_kwargs.thinking"


def test_an_answer_is_told_again_as_it_came(client: OpenAI) -> None:
    """As a dict, with every field that the SDK knows."""
    first = client.chat.completions.create(model="assistant", messages=ASK)
    told: Any = [*ASK, first.choices[0].message.model_dump(), {"role": "user", "content": "Thank you."}]
    assert client.chat.completions.create(model="assistant", messages=told).choices[0].message.content
    nothing: Any = {"audio": None, "prediction": None, "function_call": None, "web_search_options": None}
    assert client.chat.completions.create(
        model="assistant", messages=ASK, verbosity="medium", extra_body=nothing
    ).choices
    with pytest.raises(BadRequestError) as refusal:
        client.chat.completions.create(model="assistant", messages=ASK, verbosity="low")
    assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", "verbosity")


def test_a_call_that_was_cut_is_no_word(client: OpenAI) -> None:
    options: Any = {"model": "assistant", "messages": ASK, "tools": [WEATHER]}
    cuts: list[Any] = [
        {"max_tokens": 3},
        {"stop": ["a"]},
        {"max_tokens": 6},
        {"max_tokens": 3, "tool_choice": "required"},
    ]
    for cut in cuts:
        choice = client.chat.completions.create(**options, **cut).choices[0]
        assert not choice.message.content, cut
        assert choice.finish_reason == ("stop" if "stop" in cut else "length")
        chunks = client.chat.completions.create(**options, **cut, stream=True)
        assert not any(choice.delta.content for chunk in chunks for choice in chunk.choices), cut
    cut_call = client.chat.completions.create(**options, stop=["city"]).choices[0]
    assert cut_call.finish_reason == "stop"


@pytest.mark.parametrize(
    ("param", "options"),
    [
        ("top_p", {"top_p": 0}),
        ("repetition_penalty", {"extra_body": {"repetition_penalty": 1e18}}),
    ],
)
def test_what_the_model_cannot_do_is_the_clients_to_mend(client: OpenAI, param: str, options: Any) -> None:
    with pytest.raises(BadRequestError) as refusal:
        client.chat.completions.create(model="assistant", messages=ASK, **options)
    assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", param)
