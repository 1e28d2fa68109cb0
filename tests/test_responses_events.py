"""Responses, streamed: the order of the events, their numbers, and how a stream ends."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway import Conch
from tests.raw import Wire, bearer

Told = tuple[str, dict[str, Any]]
KEYS = """
    id object created_at completed_at status incomplete_details model previous_response_id instructions output error
    tools tool_choice truncation parallel_tool_calls text top_p presence_penalty frequency_penalty top_logprobs
    temperature reasoning usage max_output_tokens max_tool_calls store background service_tier metadata
    safety_identifier prompt_cache_key
""".split()  # noqa: SIM905
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def script(*pieces: str, **how: Any) -> str:
    """An input that has a contract model say these pieces."""
    return "script: " + json.dumps({"pieces": pieces, **how})


def frames(conch: Conch, key: str, **fields: Any) -> list[bytes]:
    """The frames of a stream, once every write has been found to hold whole ones."""
    body = json.dumps({"model": "vllm", "stream": True, **fields}).encode()
    with Wire(conch.url) as wire:
        wire.request("POST", "/v1/responses", body, **bearer(key))
        status, headers = wire.answer_head()
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        writes = list(iter(wire.chunk, b""))
    assert all(write.endswith(b"\n\n") for write in writes)
    return b"".join(writes).split(b"\n\n")[:-1]


def told(frame: bytes) -> Told:
    """A frame's event, once its name has been found to be its body's type."""
    event, data = frame.split(b"\n")
    body = json.loads(data.removeprefix(b"data: "))
    assert event == b"event: " + body["type"].encode()
    return body["type"].removeprefix("response."), body


def events(conch: Conch, key: str, *, done: bool = True, **fields: Any) -> list[Told]:
    """The events of a stream, numbered from 0 without gaps; [DONE] follows them where they end well."""
    sent = frames(conch, key, **fields)
    assert (sent[-1] == b"data: [DONE]") is done
    heard = [told(frame) for frame in (sent[:-1] if done else sent)]
    assert [body["sequence_number"] for _, body in heard] == list(range(len(heard)))
    return heard


def runs(names: list[str]) -> list[str]:
    """Names, those that repeat told once."""
    return [name for place, name in enumerate(names) if place == 0 or names[place - 1] != name]


OPENING = ["created", "in_progress"]
MESSAGE = [
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "output_item.done",
]
CALL = [
    "output_item.added",
    "function_call_arguments.delta",
    "function_call_arguments.done",
    "output_item.done",
]
REASONING = [
    "output_item.added",
    "content_part.added",
    "reasoning_text.delta",
    "reasoning_text.done",
    "content_part.done",
    "output_item.done",
]


def test_words(conch: Conch, key: str) -> None:
    heard = events(conch, key, input=script("The ", "sea", "."))
    assert runs([name for name, _ in heard]) == [*OPENING, *MESSAGE, "completed"]
    bodies = [body for _, body in heard]
    for begun in bodies[:2]:
        assert list(begun["response"]) == ["object", *(name for name in KEYS if name != "object")]
        assert (begun["response"]["status"], begun["response"]["output"]) == ("in_progress", [])
    added, part, *deltas, text_done, part_done, item_done, completed = bodies[2:]
    id = added["item"]["id"]
    assert added["item"] == {
        "type": "message", "id": id, "role": "assistant", "status": "in_progress", "content": [],
    }  # fmt: skip
    assert {body["item_id"] for body in (part, *deltas, text_done, part_done)} == {id}
    assert part["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert [delta["delta"] for delta in deltas] == ["The ", "sea", "."]
    assert text_done["text"] == part_done["part"]["text"] == "The sea."
    assert item_done["item"] == {**added["item"], "status": "completed", "content": [part_done["part"]]}
    response = completed["response"]
    assert sorted(response) == sorted(KEYS)
    assert len(KEYS) == 31
    assert response["output"] == [item_done["item"]]
    assert (response["id"], response["status"]) == (bodies[0]["response"]["id"], "completed")
    assert response["usage"]["output_tokens"] == 3
    assert all(body["output_index"] == 0 for body in bodies[2:-1])


def test_no_words(conch: Conch, key: str) -> None:
    heard = events(conch, key, input=script(""))
    assert [name for name, _ in heard] == [*OPENING, *(name for name in MESSAGE if "delta" not in name), "completed"]
    assert heard[-1][1]["response"]["output"][0]["content"][0]["text"] == ""


def test_cut_short(conch: Conch, key: str) -> None:
    heard = events(conch, key, input=script("a", "b", "c"), max_output_tokens=2)
    assert runs([name for name, _ in heard]) == [*OPENING, *MESSAGE, "incomplete"]
    response = heard[-1][1]["response"]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (response["completed_at"], response["output"][0]["status"]) == (None, "incomplete")
    assert response["output"][0]["content"][0]["text"] == "ab"


def test_calls(conch: Conch, key: str) -> None:
    ask = "What is the weather in Paris and in Tokyo?"
    heard = events(conch, key, model="assistant", input=ask, tools=[WEATHER])
    assert runs([name for name, _ in heard]) == [*OPENING, *CALL, *CALL, "completed"]
    calls = heard[-1][1]["response"]["output"]
    assert [json.loads(call["arguments"]) for call in calls] == [{"city": "Paris"}, {"city": "Tokyo"}]
    for index, call in enumerate(calls):
        own = [body for _, body in heard if body.get("output_index") == index]
        added, *deltas, done, item_done = own
        assert (added["item"]["name"], added["item"]["arguments"]) == ("get_weather", "")
        assert added["item"]["call_id"] == call["call_id"]
        assert "".join(delta["delta"] for delta in deltas) == done["arguments"] == call["arguments"]
        assert {body["item_id"] for body in (*deltas, done)} == {call["id"]}
        assert item_done["item"] == call
        assert call["status"] == "completed"


def test_reasoning(conch: Conch, key: str) -> None:
    heard = events(conch, key, model="assistant", input="What is Conch? /think")
    assert runs([name for name, _ in heard]) == [*OPENING, *REASONING, *MESSAGE, "completed"]
    thought, message = heard[-1][1]["response"]["output"]
    said = "".join(body["delta"] for name, body in heard if name == "reasoning_text.delta")
    assert thought["content"] == [{"type": "reasoning_text", "text": said}]
    assert "The question is" in said
    assert "<think>" not in message["content"][0]["text"]


@pytest.mark.parametrize("pieces", [["a"], ["a", "b", "c"]])
def test_a_failure_on_the_way(conch: Conch, key: str, pieces: list[str]) -> None:
    heard = events(
        conch, key, done=False, input=script(*pieces, "never", pace_ms=20, fail_after=len(pieces)), metadata={"a": "b"}
    )
    assert runs([name for name, _ in heard]) == [*OPENING, *MESSAGE, "failed"]
    response = heard[-1][1]["response"]
    assert sorted(response) == sorted(KEYS)
    assert response["error"] == {"code": "server_error", "message": "The model failed on this request."}
    assert (response["status"], response["output"][0]["status"]) == ("failed", "incomplete")
    assert response["output"][0]["content"][0]["text"] == "".join(pieces)
    assert response["store"] is False
    with Wire(conch.url) as wire:
        wire.request("GET", f"/v1/responses/{response['id']}", **bearer(key))
        wire.answer().error(404, "id")


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_word_has_a_status(conch: Conch, key: str, stream: bool) -> None:
    body = json.dumps({"model": "vllm", "stream": stream, "input": script("x", fail_after=0)}).encode()
    with Wire(conch.url) as wire:
        wire.request("POST", "/v1/responses", body, **bearer(key))
        assert wire.answer().error(502)["code"] == "upstream_error"


def test_the_end_is_told_when_it_is_stored(conch: Conch, key: str) -> None:
    """The last events come in one write with [DONE], and by then another connection finds the response."""
    body = json.dumps({"model": "vllm", "stream": True, "input": script("a", "b", pace_ms=30)}).encode()
    with Wire(conch.url) as wire, Wire(conch.url) as other:
        wire.request("POST", "/v1/responses", body, **bearer(key))
        wire.answer_head()
        for write in iter(wire.chunk, b""):
            if b"response.completed" in write:
                break
        assert write.endswith(b"data: [DONE]\n\n")
        response = told(write.split(b"\n\n")[-3])[1]["response"]
        other.request("GET", f"/v1/responses/{response['id']}", **bearer(key))
        assert other.answer().json == response


def test_a_client_that_leaves_stores_nothing(conch: Conch, key: str) -> None:
    said = script(*"abcdefgh", pace_ms=20)
    body = json.dumps({"model": "vllm", "stream": True, "input": said}).encode()
    with Wire(conch.url) as wire:
        wire.request("POST", "/v1/responses", body, **bearer(key))
        wire.answer_head()
        id = told(wire.chunk().split(b"\n\n")[0])[1]["response"]["id"]
    events(conch, key, input=said)  # as long as the other would have taken
    with Wire(conch.url) as wire:
        wire.request("GET", f"/v1/responses/{id}", **bearer(key))
        wire.answer().error(404, "id")


def test_a_call_round_trip_in_events(conch: Conch, key: str) -> None:
    ask = "What is the weather in Paris?"
    first = events(conch, key, model="assistant", input=ask, tools=[WEATHER])[-1][1]["response"]
    (call,) = first["output"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": '{"celsius": 21}'}
    for fields in (
        {"input": [output], "previous_response_id": first["id"]},
        {"input": [{"role": "user", "content": ask}, call, output]},
    ):
        second = events(conch, key, model="assistant", tools=[WEATHER], **fields)[-1][1]["response"]
        assert "21" in second["output"][0]["content"][0]["text"]


def every(heard: list[Told], name: str) -> Iterator[dict[str, Any]]:
    """The bodies of the events of a name."""
    return (body for each, body in heard if each == name)


def test_log_probabilities(conch: Conch, key: str) -> None:
    heard = events(
        conch,
        key,
        model="assistant",
        input="Repeat after me: The sea is calm.",
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    tokens = [each for body in every(heard, "output_text.delta") for each in body["logprobs"]]
    assert "".join(token["token"] for token in tokens) == "The sea is calm."
    (done,) = every(heard, "output_text.done")
    assert done["logprobs"] == tokens
    assert heard[-1][1]["response"]["output"][0]["content"][0]["logprobs"] == tokens
    assert all(token["logprob"] <= 0 and token["top_logprobs"] for token in tokens)
