"""Responses by the official SDK, sync and async, over the real Triton; what is stored; what is refused."""

import base64
import json
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage

from handlers.door.schemas.responses import (
    FunctionCall,
    FunctionCallOutput,
    InputImage,
    InputText,
    Message,
    OutputText,
    Reasoning,
    ReasoningText,
    Refusal,
    SummaryText,
)
from handlers.responses_items import Conversation
from scripts.triton import Triton
from tests.gateway import CONFIG, Conch
from tests.raw import Wire, bearer
from tests.test_responses_events import KEYS, WEATHER, script

SAID = "The sea is calm today."
ASK = f"Repeat after me: {SAID}"
TOOL: Any = WEATHER


pytestmark = pytest.mark.usefixtures("no_crash")


def prompt_of(client: OpenAI, **fields: Any) -> str:
    """The prompt that the model received."""
    said = client.responses.create(model="vllm", **fields).output_text
    prompt: str = json.loads(said)["tensors"]["text_input"]["data"][0]
    return prompt


def test_unary(client: OpenAI) -> None:
    response = client.responses.create(model="assistant", input=ASK, metadata={"a": "b"}, temperature=0)
    assert response.output_text == SAID
    assert (response.status, response.model, response.metadata) == ("completed", "assistant", {"a": "b"})
    (message,) = response.output
    assert isinstance(message, ResponseOutputMessage)
    assert (message.status, message.role) == ("completed", "assistant")
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.usage.output_tokens > 5
    assert response.completed_at is not None
    assert 0 <= response.completed_at - response.created_at < 60


async def test_unary_async(async_client: AsyncOpenAI) -> None:
    response = await async_client.responses.create(model="gpt-4o-mini", input=ASK)
    assert (response.output_text, response.model) == (SAID, "assistant")


def test_the_31_keys(conch: Conch, key: str) -> None:
    with Wire(conch.url) as wire:
        wire.request("POST", "/v1/responses", b'{"model": "vllm", "input": "x"}', **bearer(key))
        response = wire.answer().json
    assert sorted(response) == sorted(KEYS)
    assert (response["tool_choice"], response["truncation"], response["service_tier"]) == (
        "auto",
        "disabled",
        "default",
    )
    assert (response["store"], response["background"], response["parallel_tool_calls"]) == (True, False, True)
    assert (response["temperature"], response["top_p"], response["text"]) == (1, 1, {"format": {"type": "text"}})


def test_stream(client: OpenAI) -> None:
    with client.responses.create(model="assistant", input=ASK, stream=True) as stream:
        events = list(stream)
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == SAID
    assert events[-1].response.output_text == SAID


async def test_stream_helper_async(async_client: AsyncOpenAI) -> None:
    async with async_client.responses.stream(model="assistant", input=f"{ASK} /think") as stream:
        snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        response = await stream.get_final_response()
    assert snapshots[-1].startswith(SAID)
    assert [item.type for item in response.output] == ["reasoning", "message"]


class Person(pydantic.BaseModel):
    name: str
    age: int


def test_parse(client: OpenAI) -> None:
    ask = "name: Ada, age: 36"
    response = client.responses.parse(model="assistant", input=ask, text_format=Person)
    assert isinstance(response.output_parsed, Person)
    form = response.text.format if response.text is not None else None
    assert form is not None
    assert form.type == "json_schema"
    with client.responses.stream(model="assistant", input=ask, text_format=Person) as stream:
        final = stream.get_final_response()
    assert final.output_parsed == response.output_parsed
    stored = client.responses.retrieve(response.id)
    assert stored.text == response.text


def test_json_by_either_field(client: OpenAI) -> None:
    formats: list[dict[str, Any]] = [
        {"text": {"format": {"type": "json_object"}}},
        {"extra_body": {"response_format": {"type": "json_object"}}},
        {"extra_body": {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}}},
    ]
    for fields in formats:
        json.loads(client.responses.create(model="assistant", input="What is Conch?", **fields).output_text)


def test_a_tool_round_trip(client: OpenAI) -> None:
    ask: Any = {"role": "user", "content": "What is the weather in Paris?"}
    first = client.responses.create(model="assistant", input=[ask], tools=[TOOL])
    (call,) = first.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": '{"celsius": 21}'}
    chained = client.responses.create(model="assistant", input=[output], tools=[TOOL], previous_response_id=first.id)
    assert "21" in chained.output_text
    for calls in ([call], [call.model_dump()], [call.model_dump(exclude_unset=True)]):
        items: Any = [ask, *calls, output]
        whole = client.responses.create(model="assistant", input=items, tools=[TOOL], store=False)
        assert whole.output_text == chained.output_text


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_call_is_made_when_demanded(client: OpenAI, choice: Any) -> None:
    response = client.responses.create(model="assistant", input="hello, Paris", tools=[TOOL], tool_choice=choice)
    (call,) = response.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert call.name == "get_weather"
    assert response.model_dump()["tool_choice"] == choice


def test_no_call_when_forbidden(client: OpenAI) -> None:
    ask = "What is the weather in Paris?"
    response = client.responses.create(model="assistant", input=ask, tools=[TOOL], tool_choice="none")
    assert [item.type for item in response.output] == ["message"]


def test_a_chain_of_responses(client: OpenAI) -> None:
    first = client.responses.create(model="vllm", input="one", instructions="Be brief.")
    second = client.responses.create(
        model="vllm", input=[{"role": "user", "content": "two"}], previous_response_id=first.id
    )
    prompt = prompt_of(
        client, input="echo:", previous_response_id=second.id, instructions="Be kind.", max_output_tokens=999
    )
    assert prompt == (
        f"system: Be kind.\nuser: one\nassistant: {first.output_text}\nuser: two\n"
        f"assistant: {second.output_text}\nuser: echo:\nassistant:"
    )
    client.responses.delete(first.id)
    with pytest.raises(NotFoundError, match=first.id) as refusal:
        client.responses.create(model="vllm", input="x", previous_response_id=second.id)
    assert (refusal.value.param, refusal.value.code) == ("previous_response_id", "previous_response_not_found")


def test_items_reach_the_template_as_messages(client: OpenAI) -> None:
    items: Any = [
        {"role": "developer", "content": "A"},
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "B"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "C", "annotations": []}]},
        {"role": "user", "content": [{"type": "input_text", "text": "D"}, {"type": "input_text", "text": "echo:"}]},
    ]
    assert prompt_of(client, input=items) == "developer: A\nsystem: B\nassistant: C\nuser: D\necho:\nassistant:"


def test_stored_responses(client: OpenAI) -> None:
    items: Any = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "three"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "four"}]},
    ]
    response = client.responses.create(model="vllm", input=items)
    assert client.responses.retrieve(response.id) == response
    listed = list(client.responses.input_items.list(response.id, order="asc"))
    types = ["message", "message", "function_call", "function_call_output", "reasoning", "message"]
    assert [item.type for item in listed] == types
    assert len({item.id for item in listed}) == 6
    assert list(client.responses.input_items.list(response.id)) == listed[::-1]
    assert list(client.responses.input_items.list(response.id, limit=2)) == listed[::-1]
    page = client.responses.input_items.list(response.id, limit=2, order="asc", after=listed[1].id)
    assert (page.data, page.has_more) == (listed[2:4], True)
    client.responses.delete(response.id)
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(NotFoundError) as refusal:
            gone(response.id)
        assert (refusal.value.param, refusal.value.code) == ("id", "response_not_found")


def test_references_are_the_items_that_they_name(client: OpenAI, conch: Conch) -> None:
    """Vercel's SDK sends them for whatever it was told before."""
    first = client.responses.create(model="vllm", input="one")
    asked = client.responses.create(model="assistant", input="What is the weather in Paris?", tools=[TOOL])
    (said,), (call,) = first.output, asked.output
    assert isinstance(call, ResponseFunctionToolCall)
    items: Any = [
        {"role": "user", "content": "one"},
        {"type": "item_reference", "id": said.id},
        {"type": "item_reference", "id": call.id},
        {"type": "function_call_output", "call_id": call.call_id, "output": "21"},
        {"role": "user", "content": "echo:"},
    ]
    prompt = prompt_of(client, input=items)
    assert prompt.startswith(f"user: one\nassistant: {first.output_text}\n")
    assert prompt.endswith("tool: 21\nuser: echo:\nassistant:")
    response = client.responses.create(model="vllm", input=items)
    assert [item.id for item in client.responses.input_items.list(response.id, order="asc")][1:3] == [said.id, call.id]
    forgotten = client.responses.create(model="vllm", input="x", store=False).output[0]
    stranger = client.with_options(api_key=conch.key("other"))
    for who, place, ids in (
        (client, 0, ["msg_1"]),
        (client, 0, [forgotten.id]),
        (client, 1, [said.id, said.id]),
        (stranger, 0, [said.id]),
    ):
        references: Any = [{"type": "item_reference", "id": id} for id in ids]
        with pytest.raises(NotFoundError, match=f"no item '{ids[place]}'") as refusal:
            who.responses.create(model="vllm", input=references)
        assert (refusal.value.param, refusal.value.code) == (f"input[{place}]", "item_not_found")


def test_what_is_not_to_be_stored_is_not(client: OpenAI) -> None:
    response = client.responses.create(model="vllm", input="x", store=False)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(response.id)
    with pytest.raises(NotFoundError):
        client.responses.create(model="vllm", input="x", previous_response_id=response.id)


def test_a_response_belongs_to_its_workspace_and_pipeline(client: OpenAI, conch: Conch) -> None:
    def of(workspace: str, *arguments: str) -> OpenAI:
        return client.with_options(api_key=conch.key(workspace, *arguments))

    response = client.responses.create(model="vllm", input="x")
    sales, support = of("acme", "--pipeline", "pipe_sales"), of("acme", "--pipeline", "pipe_support")
    piped = sales.responses.create(model="default", input="x")
    assert of("acme").responses.retrieve(response.id) == response
    assert client.responses.retrieve(piped.id) == sales.responses.retrieve(piped.id) == piped
    for stranger, id in (
        (of("other"), response.id),
        (of("other"), piped.id),
        (support, piped.id),
        (sales, response.id),
    ):
        for touch in (stranger.responses.retrieve, stranger.responses.delete, stranger.responses.input_items.list):
            with pytest.raises(NotFoundError):
                touch(id)
    assert client.responses.retrieve(response.id) == response


def test_a_large_response_is_stored_too(client: OpenAI) -> None:
    words = "wörd " * 200_000
    response = client.responses.create(model="vllm", input=words)
    (item,) = client.responses.input_items.list(response.id)
    assert item.model_dump()["content"][0]["text"] == words


def test_a_conversation_that_is_too_long(conch: Conch, triton: Triton, tmp_path: Path) -> None:
    small = Conch(tmp_path, triton.url, CONFIG.replace("port = 0", 'port = 0\nmax_body = "3KiB"'))
    small.workspace("acme")
    with small.running(), OpenAI(base_url=f"{small.url}/v1", api_key=small.key("acme"), max_retries=0) as client:
        first = client.responses.create(model="vllm", input="a" * 1000)
        second = client.responses.create(model="vllm", input="b" * 1000, previous_response_id=first.id)
        with pytest.raises(BadRequestError, match="longer than 3072") as refusal:
            client.responses.create(model="vllm", input="c", previous_response_id=second.id)
        assert refusal.value.param == "previous_response_id"
        references: Any = [{"type": "item_reference", "id": each.output[0].id} for each in (first, second)]
        answers = [client.responses.create(model="vllm", input="d") for _ in range(4)]
        references += [{"type": "item_reference", "id": each.output[0].id} for each in answers]
        with pytest.raises(BadRequestError, match="referred to are longer than 3072") as refusal:
            client.responses.create(model="vllm", input=references)
    assert refusal.value.param == "input"


def test_items_to_messages() -> None:
    conversation = Conversation()
    conversation.instruct("Be brief.")
    conversation.add(
        [
            Message("user", [InputText("a"), InputImage("https://example.org/a.png")]),
            Reasoning(content=[ReasoningText("hm")]),
            Message("assistant", [OutputText("b"), Refusal("c")]),
            FunctionCall("1", "f", "{}"),
            FunctionCall("2", "g", "{}"),
            FunctionCallOutput("1", "d"),
            FunctionCallOutput("2", [InputText("e")]),
            Reasoning([SummaryText("so")]),
            FunctionCall("3", "h", "{}"),
            Message("user", "f"),
        ]
    )
    assert [msgspec.to_builtins(message) for message in conversation.messages] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "auto"}},
            ],
        },
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}],
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "1", "function": {"name": "f", "arguments": "{}"}, "type": "function"},
                {"id": "2", "function": {"name": "g", "arguments": "{}"}, "type": "function"},
            ],
        },
        {"role": "tool", "content": "d", "tool_call_id": "1"},
        {"role": "tool", "content": [{"type": "text", "text": "e"}], "tool_call_id": "2"},
        {
            "role": "assistant",
            "reasoning_content": "so",
            "tool_calls": [{"id": "3", "function": {"name": "h", "arguments": "{}"}, "type": "function"}],
        },
        {"role": "user", "content": "f"},
    ]


def test_retention(conch: Conch, triton: Triton, tmp_path: Path) -> None:
    short = Conch(tmp_path, triton.url, CONFIG.replace("[store]", '[responses]\nretention = "50ms"\n\n[store]'))
    short.workspace("acme")
    with short.running(), OpenAI(base_url=f"{short.url}/v1", api_key=short.key("acme"), max_retries=0) as client:
        old = client.responses.create(model="vllm", input="old")
        client.responses.create(model="vllm", input=script("a", wait_ms=60))
        with pytest.raises(NotFoundError):
            client.responses.retrieve(old.id)
    with sqlite3.connect(short.store) as database:
        assert database.execute("SELECT COUNT(*) FROM responses").fetchone() == (1,)


PNG = (
    "data:image/png;base64,"
    + base64.b64encode(
        bytes.fromhex(
            "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
            "1f15c4890000000d49444154789c626001000000ffff03000006000557bfabd40000000049454e44ae426082"
        )
    ).decode()
)


def test_an_image(client: OpenAI) -> None:
    content: Any = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": PNG}]
    response = client.responses.create(model="assistant", input=[{"role": "user", "content": content}])
    assert "1 image" in response.output_text.lower() or "png" in response.output_text.lower()
    (item,) = client.responses.input_items.list(response.id, include=["message.input_image.image_url"])
    assert item.model_dump()["content"][1]["image_url"] == PNG


def test_advice_and_defaults_are_accepted(client: OpenAI) -> None:
    response = client.responses.create(
        model="bls",
        input=[{"role": "user", "content": "x", "type": "message"}],
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        service_tier="auto",
        truncation="disabled",
        background=False,
        conversation=None,
        prompt=None,
        include=[],
        tools=[],
        tool_choice="auto",
        text={"format": {"type": "text"}, "verbosity": "medium"},
        reasoning={"effort": None, "summary": "auto"},
        temperature=1,
        top_p=1,
        stream=False,
        parallel_tool_calls=True,
    )
    assert (response.safety_identifier, response.prompt_cache_key) == ("s", "k")
