"""Everything that can be wrong with a Responses request: each a clear 4xx in the one shape."""

import json
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests.gateway import Conch
from tests.raw import Wire, bearer
from tests.test_responses import PNG
from tests.test_responses_events import WEATHER

pytestmark = pytest.mark.usefixtures("no_crash")


def user(*parts: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": list(parts)}]}


SCHEMA = {"format": {"type": "json_schema", "name": "s", "schema": {}}}
LOGPROBS = ["message.output_text.logprobs"]

# what, `param`, `code`, the fields
REFUSED: list[tuple[str, str, str, dict[str, Any]]] = [
    ("no input", "input", "missing_required_parameter", {"input": ...}),
    ("null input", "input", "invalid_value", {"input": None}),
    ("empty input", "input", "invalid_value", {"input": ""}),
    ("no items", "input", "invalid_value", {"input": []}),
    ("no model", "model", "missing_required_parameter", {"model": ...}),
    ("unknown item", "input[0].type", "invalid_value", {"input": [{"type": "web_search_call"}]}),
    ("neither role nor type", "input[0].type", "missing_required_parameter", {"input": [{"content": "x"}]}),
    ("unknown role", "input[0].role", "invalid_value", {"input": [{"role": "tool", "content": "x"}]}),
    ("no content", "input[0].content", "missing_required_parameter", {"input": [{"role": "user"}]}),
    ("a file", "input[0].content[0].type", "invalid_value", user({"type": "input_file", "file_id": "f"})),
    ("chat's part", "input[0].content[0].type", "invalid_value", user({"type": "text", "text": "x"})),
    ("unknown in an item", "input[0].zzz", "unknown_parameter", {"input": [{"role": "user", "content": "", "zzz": 1}]}),
    (
        "an output without its call",
        "input[0]",
        "invalid_value",
        {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
    ),
    (
        "encrypted reasoning",
        "input[0].encrypted_content",
        "unsupported_parameter",
        {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]},
    ),
    (
        "an image of the system's",
        "input[0].content[0]",
        "unsupported_parameter",
        {"input": [{"role": "system", "content": [{"type": "input_image", "image_url": PNG}]}]},
    ),
    (
        "an image for a model without eyes",
        "input[1].content[1]",
        "unsupported_parameter",
        {
            "model": "ensemble",
            "instructions": "x",
            "input": [
                {"role": "user", "content": "x"},
                {
                    "role": "user",
                    "content": [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": PNG}],
                },
            ],
        },
    ),
    (
        "an image of this machine",
        "input[0].content[0].image_url",
        "invalid_image",
        {"model": "assistant", **user({"type": "input_image", "image_url": "https://127.0.0.1/a.png"})},
    ),
    ("a hosted tool", "tools[0].type", "unsupported_parameter", {"tools": [{"type": "web_search"}]}),
    (
        "another hosted tool",
        "tools[1].type",
        "unsupported_parameter",
        {"tools": [WEATHER, {"vector_store_ids": [], "type": "file_search"}]},
    ),
    ("a tool without a name", "tools[0].name", "missing_required_parameter", {"tools": [{"type": "function"}]}),
    ("tools for a model without", "tools", "unsupported_parameter", {"tools": [WEATHER]}),
    ("a choice without tools", "tool_choice", "invalid_value", {"tool_choice": "required"}),
    (
        "a choice of no tool",
        "tool_choice",
        "invalid_value",
        {"model": "assistant", "tools": [WEATHER], "tool_choice": {"type": "function", "name": "f"}},
    ),
    ("allowed tools", "tool_choice.type", "invalid_value", {"tool_choice": {"type": "allowed_tools", "tools": []}}),
    ("a schema without guides", "text.format", "unsupported_parameter", {"model": "llmapi", "text": SCHEMA}),
    (
        "chat's form, without guides",
        "response_format",
        "unsupported_parameter",
        {"model": "llmapi", "response_format": {"type": "json_object"}},
    ),
    ("two forms", "response_format", "invalid_value", {"text": SCHEMA, "response_format": {"type": "text"}}),
    ("too many tokens", "max_output_tokens", "invalid_value", {"model": "ensemble", "max_output_tokens": 2049}),
    ("no tokens", "max_output_tokens", "invalid_value", {"max_output_tokens": 0}),
    ("chat's bound", "max_tokens", "unknown_parameter", {"max_tokens": 5}),
    ("too hot", "temperature", "invalid_value", {"temperature": 2.1}),
    (
        "effort without a template for it",
        "reasoning.effort",
        "unsupported_parameter",
        {"reasoning": {"effort": "high"}},
    ),
    ("a summary", "reasoning.summary", "unsupported_parameter", {"reasoning": {"summary": "detailed"}}),
    ("verbosity", "text.verbosity", "unsupported_parameter", {"text": {"verbosity": "high"}}),
    ("truncation", "truncation", "unsupported_parameter", {"truncation": "auto"}),
    ("background", "background", "unsupported_parameter", {"background": True}),
    ("a conversation", "conversation", "unsupported_parameter", {"conversation": "conv_1"}),
    ("a prompt", "prompt", "unsupported_parameter", {"prompt": {"id": "pmpt_1"}}),
    ("max_tool_calls", "max_tool_calls", "unsupported_parameter", {"max_tool_calls": 1}),
    ("encrypted content", "include[0]", "unsupported_parameter", {"include": ["reasoning.encrypted_content"]}),
    ("log probabilities that are not told", "include", "unsupported_parameter", {"model": "bls", "include": LOGPROBS}),
    ("candidates without log probabilities", "top_logprobs", "invalid_value", {"top_logprobs": 2}),
    ("stream_options without stream", "stream_options", "invalid_value", {"stream_options": {}}),
    (
        "obfuscation",
        "stream_options.include_obfuscation",
        "invalid_value",
        {"stream_options": {"include_obfuscation": True}},
    ),
    ("much metadata", "metadata", "invalid_value", {"metadata": {str(n): "" for n in range(17)}}),
    ("an unknown field", "zzz", "unknown_parameter", {"zzz": 1}),
    ("min_p", "min_p", "unsupported_parameter", {"model": "ensemble", "min_p": 0.5}),
    ("too long", "input", "context_length_exceeded", {"model": "assistant", "input": "sea " * 33_000}),
    (
        "template variables that are taken",
        "chat_template_kwargs.messages",
        "unknown_parameter",
        {"chat_template_kwargs": {"messages": 1}},
    ),
]


@pytest.mark.parametrize(("param", "code", "fields"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(conch: Conch, key: str, param: str, code: str, fields: dict[str, Any]) -> None:
    body = {"model": "vllm", "input": "x", **fields}
    sent = json.dumps({name: value for name, value in body.items() if value is not ...}).encode()
    with Wire(conch.url) as wire:
        wire.request("POST", "/v1/responses", sent, **bearer(key))
        error = wire.answer().error(400, param)
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"x"', b'{"input": [1]}', b'{"input": {}}', b'{"tools": 5}'])
def test_no_request_at_all(conch: Conch, key: str, body: bytes) -> None:
    with Wire(conch.url) as wire:
        wire.request("POST", "/v1/responses", body, **bearer(key))
        answer = wire.answer()
    answer.error(400, answer.json["error"]["param"])


def test_an_unknown_previous_response(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="resp_0") as refusal:
        client.responses.create(model="vllm", input="x", previous_response_id="resp_0")
    assert (refusal.value.param, refusal.value.code) == ("previous_response_id", "previous_response_not_found")


@pytest.mark.parametrize(
    ("path", "status", "param"),
    [
        ("resp_0/input_items?limit=0", 400, "limit"),
        ("resp_0/input_items?limit=x", 400, "limit"),
        ("resp_0/input_items?order=up", 400, "order"),
        ("resp_0/input_items?zzz=1", 400, "zzz"),
        ("resp_0/input_items?include[]=zzz", 400, "include[0]"),
        ("resp_0/input_items", 404, "id"),
        ("resp_0?stream=true", 400, "stream"),
        ("resp_0?include[]=reasoning.encrypted_content", 400, "include[0]"),
        ("resp_0", 404, "id"),
    ],
)
def test_stored_responses_refused(conch: Conch, key: str, path: str, status: int, param: str) -> None:
    with Wire(conch.url) as wire:
        wire.request("GET", f"/v1/responses/{path}", **bearer(key))
        wire.answer().error(status, param)


def test_an_item_that_is_not_there(client: OpenAI) -> None:
    response = client.responses.create(model="vllm", input="x")
    with pytest.raises(BadRequestError) as refusal:
        client.responses.input_items.list(response.id, after="msg_0")
    assert refusal.value.param == "after"


def test_methods(conch: Conch, key: str) -> None:
    with Wire(conch.url) as wire:
        for path, allow in (("", "POST"), ("/resp_0", "DELETE, GET, HEAD"), ("/resp_0/input_items", "GET, HEAD")):
            wire.request("PUT", f"/v1/responses{path}", b"{}", **bearer(key))
            answer = wire.answer()
            answer.error(405)
            assert answer.headers["allow"] == allow
