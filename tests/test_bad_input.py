"""Everything that can be wrong with a body: each a clear 4xx in the one shape, and nothing of it a crash."""

import json
from collections.abc import Iterator
from threading import Thread
from typing import Any, get_type_hints

import msgspec
import pytest

from handlers.door.schemas.chat import ChatRequest
from tests.gateway import Conch
from tests.raw import Answer, Wire, bearer, chat, head

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "hello"}
JSON = "application/json"


pytestmark = pytest.mark.usefixtures("no_crash")


@pytest.fixture
def wire(conch: Conch) -> Iterator[Wire]:
    """A connection that must still serve when the test is done with it."""
    with Wire(conch.url) as connection:
        yield connection
        connection.request("GET", "/healthz")
        assert connection.answer().status == 200


def post(wire: Wire, key: str, body: bytes) -> Answer:
    wire.request("POST", PATH, body, content_type=JSON, **bearer(key))
    return wire.answer()


def fields(**changes: Any) -> bytes:
    return json.dumps({"model": "vllm", "messages": [USER], **changes}).encode()


def message(**changes: Any) -> bytes:
    return fields(messages=[{**USER, **changes}])


NOT_JSON = {
    "empty": b"",
    "blank": b" \r\n",
    "truncated": chat("hello")[:-3],
    "truncated in a string": chat("hello")[:40],
    "truncated after an unknown field": b'{"zzz": ',
    "garbage": b"hello",
    "form": b"model=vllm&messages=hello",
    "trailing": chat("hello") + b"}",
    "two values": chat("hello") + chat("hello"),
    "single quotes": b"{'model': 'vllm'}",
    "trailing comma": b'{"model": "vllm",}',
    "comment": b'{"model": "vllm" /* which else */}',
    "NaN": b'{"model": "vllm", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "Infinity": b'{"model": "vllm", "messages": [{"role": "user", "content": "x"}], "temperature": Infinity}',
    "-Infinity": b'{"model": "vllm", "messages": [{"role": "user", "content": "x"}], "top_p": -Infinity}',
    "NaN in an unknown field": b'{"zzz": NaN, "model": "vllm"}',
    "byte order mark": b"\xef\xbb\xbf" + chat("hello"),
    "UTF-16": chat("hello").decode().encode("utf-16"),
    "broken UTF-8": b'{"model": "vllm", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "cut UTF-8": b'{"model": "vllm", "messages": [{"role": "user", "content": "\xe4\xbd"}]}',
    "overlong UTF-8": b'{"model": "vllm", "messages": [{"role": "user", "content": "\xc0\xaf"}]}',
    "surrogate in UTF-8": b'{"model": "vllm", "messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
    "broken UTF-8 in an unknown field": b'{"zzz": "\xff"}',
    "broken UTF-8 in a name": b'{"\xff": 1}',
    "lone surrogate": b'{"model": "vllm", "messages": [{"role": "user", "content": "\\ud800 x"}]}',
    "lone low surrogate": b'{"model": "vllm", "messages": [{"role": "user", "content": "\\udc00"}]}',
    "surrogate as a name": b'{"\\ud83d": 1}',
    "a raw control character": b'{"model": "v\nllm"}',
    "deep and cut": b'{"chat_template_kwargs": {"a": ' + b"[" * 100_000,
    "deep": b'{"chat_template_kwargs": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "deep in an unknown field": b'{"zzz": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"chat_template_kwargs": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_no_json(wire: Wire, key: str, body: bytes) -> None:
    error = post(wire, key, body).error(400)
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_json"


@pytest.mark.parametrize("body", [b"null", b"[]", b"1", b'"text"', b"true", b"[" * 100_000])
def test_no_object(wire: Wire, key: str, body: bytes) -> None:
    assert post(wire, key, body).error(400)["code"] == "invalid_value"


VALUES: list[Any] = [True, 7.5, "zzz", [], {}, [1], {"a": 1}, [[[]]]]


def ill_typed() -> Iterator[Any]:
    hints = get_type_hints(ChatRequest, include_extras=True)
    for field in ChatRequest.__struct_fields__:
        wrong = [value for value in VALUES if not _fits(value, hints[field])]
        assert [[[]]] in wrong, f"a list of lists of lists fits {field}"
        yield from (pytest.param(field, value, id=f"{field}={value!r}") for value in wrong)


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize(("field", "value"), list(ill_typed()))
def test_ill_typed(wire: Wire, key: str, field: str, value: Any) -> None:
    answer = post(wire, key, fields(**{field: value}))
    param = answer.json["error"]["param"]
    assert param.split("[")[0].split(".")[0] == field
    codes = ("invalid_value", "missing_required_parameter", "unknown_parameter")
    assert answer.error(400, param)["code"] in codes


def without(name: str, **changes: Any) -> bytes:
    body = json.loads(fields(**changes))
    del body[name]
    return json.dumps(body).encode()


DEEP_SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "zzz": 1}}
CALLED = {"name": "f", "arguments": "{}"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}", "zzz": 1}}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "zzz": 1}}

# OpenAI's SDKs put `parsed` into an answer, `parsed_arguments` into a call's function, and `index` beside that.
SAID = {"role": "assistant", "content": None}
PARSED: dict[str, Any] = {
    "parsed_arguments": {**SAID, "parsed_arguments": {}},
    "index": {**SAID, "index": 0},
    "tool_calls[0].parsed": {**SAID, "tool_calls": [{**CALL, "function": CALLED, "parsed": {}}]},
    "tool_calls[0].function.index": {**SAID, "tool_calls": [{**CALL, "function": {**CALLED, "index": 0}}]},
    "parsed": {**USER, "parsed": {}},
}

# what, the body, `param`, `code`
WRONG: list[tuple[str, bytes, str | None, str]] = [
    *(
        (f"{place} where no SDK puts it", fields(messages=[USER, answer]), f"messages[1].{place}", "unknown_parameter")
        for place, answer in PARSED.items()
    ),
    ("no messages", without("messages"), "messages", "missing_required_parameter"),
    ("no model", without("model"), "model", "missing_required_parameter"),
    ("null messages", fields(messages=None), "messages", "invalid_value"),
    ("empty messages", fields(messages=[]), "messages", "invalid_value"),
    ("100,000 messages", fields(messages=[USER] * 100_000), "messages", "invalid_value"),
    ("unknown role", message(role="boss"), "messages[0].role", "invalid_value"),
    ("no role", fields(messages=[{"content": "x"}]), "messages[0].role", "missing_required_parameter"),
    ("role is a number", message(role=1), "messages[0].role", "invalid_value"),
    ("no content", fields(messages=[USER, {"role": "user"}]), "messages[1].content", "missing_required_parameter"),
    ("null content", message(content=None), "messages[0].content", "invalid_value"),
    ("content is a number", message(content=5), "messages[0].content", "invalid_value"),
    ("unknown part", message(content=[{"type": "zzz"}]), "messages[0].content[0].type", "invalid_value"),
    (
        "part without text",
        message(content=[{"type": "text"}]),
        "messages[0].content[0].text",
        "missing_required_parameter",
    ),
    ("negative max_tokens", fields(max_tokens=-1), "max_tokens", "invalid_value"),
    ("zero max_tokens", fields(max_tokens=0), "max_tokens", "invalid_value"),
    ("huge max_tokens", fields(max_tokens=10**30), "max_tokens", "invalid_value"),
    ("fractional max_tokens", fields(max_tokens=1.5), "max_tokens", "invalid_value"),
    ("max_tokens as text", fields(max_tokens="10"), "max_tokens", "invalid_value"),
    ("zero max_completion_tokens", fields(max_completion_tokens=0), "max_completion_tokens", "invalid_value"),
    ("both bounds", fields(max_tokens=1, max_completion_tokens=1), "max_tokens", "invalid_value"),
    ("temperature over 2", fields(temperature=2.01), "temperature", "invalid_value"),
    ("temperature below 0", fields(temperature=-0.01), "temperature", "invalid_value"),
    ("top_p over 1", fields(top_p=1.01), "top_p", "invalid_value"),
    ("penalty over 2", fields(presence_penalty=3), "presence_penalty", "invalid_value"),
    ("no repetition_penalty", fields(repetition_penalty=0), "repetition_penalty", "invalid_value"),
    ("n of 0", fields(n=0), "n", "invalid_value"),
    ("five stops", fields(stop=list("abcde")), "stop", "invalid_value"),
    ("empty stop", fields(stop=""), "stop", "invalid_value"),
    ("empty stop in a list", fields(stop=["a", ""]), "stop[1]", "invalid_value"),
    ("seed over 64 bits", fields(seed=2**63), "seed", "invalid_value"),
    ("a huge integer", fields(seed=1).replace(b"1}", b"9" * 5000 + b"}"), "seed", "invalid_value"),
    ("a huge float", fields(top_p=1).replace(b"1}", b"1e999}"), "top_p", "invalid_value"),
    ("a huge unknown integer", fields(zzz=1).replace(b"1}", b"9" * 5000 + b"}"), None, "invalid_value"),
    ("a bias that is no number", fields(logit_bias={"1": "x"}), "logit_bias[...]", "invalid_value"),
    ("metadata that is no text", fields(metadata={"a": 1}), "metadata[...]", "invalid_value"),
    ("stream_options without stream", fields(stream_options={}), "stream_options", "invalid_value"),
    (
        "template variables that are taken",
        fields(chat_template_kwargs={"messages": 1}),
        "chat_template_kwargs.messages",
        "unknown_parameter",
    ),
    ("unknown field", fields(zzz=1), "zzz", "unknown_parameter"),
    ("unknown field named oddly", fields(**{"a$`b - at `$": 1}), None, "unknown_parameter"),
    ("unknown empty field", fields(**{"": 1}), "", "unknown_parameter"),
    ("unknown field and a wrong type", fields(zzz=1, top_p="x"), "top_p", "invalid_value"),
    ("unknown in a message", message(zzz=1), "messages[0].zzz", "unknown_parameter"),
    (
        "unknown in a part",
        message(content=[{"type": "text", "text": "", "zzz": 1}]),
        "messages[0].content[0].zzz",
        "unknown_parameter",
    ),
    ("unknown in an image", message(content=[IMAGE]), "messages[0].content[0].image_url.zzz", "unknown_parameter"),
    (
        "unknown in a call",
        message(role="assistant", tool_calls=[CALL]),
        "messages[0].tool_calls[0].function.zzz",
        "unknown_parameter",
    ),
    (
        "unknown in a format",
        fields(response_format=DEEP_SCHEMA),
        "response_format.json_schema.zzz",
        "unknown_parameter",
    ),
    (
        "unknown in stream_options",
        fields(stream=True, stream_options={"zzz": 1}),
        "stream_options.zzz",
        "unknown_parameter",
    ),
    (
        "tools without a parser",
        fields(tools=[{"type": "function", "function": {"name": "f"}}]),
        "tools",
        "unsupported_parameter",
    ),
    ("a call without tools", fields(tool_choice="required"), "tool_choice", "invalid_value"),
    ("bias", fields(logit_bias={"1": 1}), "logit_bias", "unsupported_parameter"),
    ("candidates without probabilities", fields(top_logprobs=2), "top_logprobs", "invalid_value"),
]


@pytest.mark.parametrize(("body", "param", "code"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong(wire: Wire, key: str, body: bytes, param: str | None, code: str) -> None:
    answer = post(wire, key, body)
    if code == "unknown_parameter" and param is None:  # the name cannot be told apart from what surrounds it
        param = answer.json["error"]["param"]
    error = answer.error(400, param)
    assert error["code"] == code, error
    assert error["type"] == "invalid_request_error"


ACCEPTED = {
    "null bytes": chat("a\0b", user="\0"),
    "an escaped pair": b'{"model": "vllm", "messages": [{"role": "user", "content": "\\ud83d\\ude42"}]}',
    "duplicate keys": b'{"model": "zzz", "model": "vllm", "messages": [{"role": "user", "content": "x"}]}',
    "a prompt of 1 MB": chat("word " * 200_000),
    "whitespace": b"\n\t " + chat("hello") + b"\r\n ",
    "nulls": fields(max_tokens=None, stop=None, stream=None, tools=None, temperature=None),
    "edges": fields(max_tokens=2**31 - 1, temperature=2, top_p=0, seed=-(2**63), stop=["a"] * 4),
    "2048 messages": fields(messages=[USER] * 2048),
    "what asks for nothing": fields(n=1, logprobs=False, logit_bias={}, tools=[], response_format={"type": "text"}),
}


@pytest.mark.parametrize("body", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(wire: Wire, key: str, body: bytes) -> None:
    assert post(wire, key, body).status == 200


@pytest.mark.parametrize(
    "kind",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "application/jsonp",
        "json",
        "",
    ],
)
def test_other_media_types(wire: Wire, key: str, kind: str) -> None:
    wire.request("POST", PATH, chat("hello"), content_type=kind, **bearer(key))
    assert wire.answer().error(415)["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "kind", [JSON, "application/json; charset=utf-8", "Application/JSON", "application/json;charset=UTF-8"]
)
def test_json_media_types(wire: Wire, key: str, kind: str) -> None:
    wire.request("POST", PATH, chat("hello"), content_type=kind, **bearer(key))
    assert wire.answer().status == 200


def test_no_media_type(wire: Wire, key: str) -> None:
    wire.request("POST", PATH, chat("hello"), **bearer(key))
    assert wire.answer().status == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("base", ["/v1", "/api/v1", "/v1/pipe_support"])
def test_methods(wire: Wire, key: str, method: str, base: str) -> None:
    wire.request(method, f"{base}/chat/completions", **bearer(key))
    answer = wire.answer()
    assert answer.error(405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"


def test_post_on_get_routes(wire: Wire, key: str) -> None:
    for path in ("/v1/models", "/v1/models/assistant", "/healthz"):
        wire.request("POST", path, b"{}", **bearer(key))
        answer = wire.answer()
        answer.error(405)
        assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v2/models", "/v1/chat/completions/", "/v1/files", "//v1/models", "/v1/a/b/c/d"]
)
def test_unknown_routes(wire: Wire, key: str, path: str) -> None:
    for method in ("GET", "POST"):
        wire.request(method, path, **bearer(key))
        assert wire.answer().error(404)["code"] == "unknown_route"


def test_too_large_by_its_length(conch: Conch, key: str) -> None:
    """The answer can be read while the client is still sending, and then the connection serves on."""
    size = 20 << 20
    with Wire(conch.url) as wire:
        wire.send(head("POST", PATH, wire.host, size, content_type=JSON, **bearer(key)))
        wire.send(b" " * (1 << 20))
        assert wire.answer().error(413)["code"] == "body_too_large"
        wire.send(b" " * (size - (1 << 20)))
        wire.request("GET", "/healthz")
        assert wire.answer().status == 200


def test_too_large_in_chunks(conch: Conch, key: str) -> None:
    piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    with Wire(conch.url) as wire:
        wire.send(head("POST", PATH, wire.host, content_type=JSON, transfer_encoding="chunked", **bearer(key)))
        sender = Thread(target=lambda: wire.send(piece * 20 + b"0\r\n\r\n"))
        sender.start()
        assert wire.answer().error(413)["code"] == "body_too_large"
        sender.join()
        wire.request("GET", "/healthz")
        assert wire.answer().status == 200


def test_a_strangers_body_is_not_awaited(conch: Conch) -> None:
    with Wire(conch.url) as wire:
        wire.send(head("POST", PATH, wire.host, 1 << 20, content_type=JSON, authorization="Bearer nonsense"))
        assert wire.answer().error(401)["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("stream=null", "stream"),
        ("stream=false&stream=false", "stream"),
        ("starting_after=null", "starting_after"),
        ("include=a&include[]=b", "include[]"),
        ("include[]=b&include=a", "include"),
    ],
)
def test_a_query_that_would_be_dropped_is_refused(conch: Conch, key: str, query: str, param: str) -> None:
    with Wire(conch.url) as wire:
        wire.request("GET", f"/v1/responses/resp_none?{query}", **bearer(key))
        wire.answer().error(400, param)
