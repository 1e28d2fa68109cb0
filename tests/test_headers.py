"""The headers that every answer carries: whole and streamed, good and refused, with a key and without."""

import re
import time

import pytest

from tests.gateway import Conch
from tests.raw import Answer, Wire, bearer, chat

LIMITS = {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "x-ratelimit-tier"}
TIMING = re.compile(r"gateway;dur=(\d+\.\d\d), upstream;dur=(\d+\.\d\d)")

# What is asked, the status of the answer, and whether the request was admitted.
ASKED: list[tuple[str, str, bytes, int, bool]] = [
    ("POST", "/v1/chat/completions", chat("hi"), 200, True),
    ("POST", "/api/v1/chat/completions", chat("hi", stream=True), 200, True),
    ("POST", "/v1/pipe_sales/chat/completions", chat("hi"), 200, True),
    ("POST", "/v1/pipe_sales/chat/completions", chat("hi", stream=True), 200, True),
    ("POST", "/v1/chat/completions", b"{", 400, True),
    ("POST", "/v1/chat/completions", chat("hi", "nothing"), 404, True),
    ("POST", "/v1/chat/completions", chat("hi", "absent"), 503, True),
    ("POST", "/v1/chat/completions", chat('script: {"pieces": ["a"], "fail_after": 0}'), 502, True),
    ("POST", "/v1/pipe_other/chat/completions", chat("hi"), 404, True),
    ("GET", "/v1/models", b"", 200, True),
    ("GET", "/v1/models/vllm", b"", 200, True),
    ("GET", "/v1/models/a/b/c", b"", 404, True),
    ("GET", "/v1/nothing", b"", 404, False),
    ("GET", "/", b"", 404, False),
    ("GET", "/v1/models/", b"", 404, True),
    ("DELETE", "/v1/models", b"", 405, False),
    ("GET", "/v1/chat/completions", b"", 405, False),
    ("POST", "/v1/models/vllm", b"", 405, False),
    ("GET", "/healthz", b"", 200, False),
    ("GET", "/readyz", b"", 200, False),
]


def ask(conch: Conch, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    """The answer to one request."""
    with Wire(conch.url) as wire:
        wire.request(method, path, body, content_type="application/json", **headers)
        return wire.answer(method)


def check_every(answer: Answer) -> None:
    """The headers that no answer lacks."""
    assert re.fullmatch(r"req_[0-9a-f]{24,}", answer.headers["x-request-id"])
    assert answer.headers["openai-processing-ms"].isdecimal()
    assert TIMING.fullmatch(answer.headers["server-timing"])
    assert "server" not in answer.headers
    assert "date" in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "admitted"), ASKED, ids=[f"{row[3]} {row[0]} {row[1]}" for row in ASKED]
)
def test_the_headers_of_every_answer(
    conch: Conch, key: str, method: str, path: str, body: bytes, status: int, admitted: bool
) -> None:
    answer = ask(conch, method, path, body, **bearer(key))
    assert answer.status == status
    check_every(answer)
    if status >= 400:
        answer.error(status, answer.json["error"]["param"])
    if admitted:
        assert answer.headers["x-ratelimit-limit"] == "50000"
        assert answer.headers["x-ratelimit-tier"] == "enterprise"
        assert 49_000 < int(answer.headers["x-ratelimit-remaining"]) < 50_000
        assert abs(int(answer.headers["x-ratelimit-reset"]) - time.time()) < 5
    else:
        assert not LIMITS & answer.headers.keys()
    streamed = b'"stream": true' in body
    wanted = "text/event-stream; charset=utf-8" if streamed else "application/json"
    assert answer.headers["content-type"] == wanted
    if streamed:
        assert answer.headers["cache-control"] == "no-cache, no-transform"
        assert answer.headers["x-accel-buffering"] == "no"
        assert "content-length" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/vllm", "/v1/pipe_sales/models"])
def test_an_answer_without_a_key(conch: Conch, path: str) -> None:
    answer = ask(conch, "GET", path)
    error = answer.error(401)
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    check_every(answer)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert not LIMITS & answer.headers.keys()


def test_the_methods_that_a_route_has(conch: Conch) -> None:
    assert ask(conch, "PUT", "/v1/chat/completions").headers["allow"] == "POST"
    assert ask(conch, "PUT", "/api/v1/models").headers["allow"] == "GET, HEAD"
    assert ask(conch, "PUT", "/v1/pipe_sales/models").headers["allow"] == "GET, HEAD"


def test_head_is_get_without_its_body(conch: Conch, key: str) -> None:
    got, headed = (ask(conch, method, "/v1/models", b"", **bearer(key)) for method in ("GET", "HEAD"))
    assert (headed.status, headed.body) == (200, b"")
    assert headed.headers.keys() == got.headers.keys()
    assert headed.headers["content-length"] == got.headers["content-length"]


def test_request_ids_are_unique(conch: Conch, key: str) -> None:
    paths = ["/v1/models", "/v1/models/vllm", "/nothing"] * 5
    ids = [ask(conch, "GET", path, b"", **bearer(key)).headers["x-request-id"] for path in paths]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("given", ["my-id-1", "x" * 512, "a b ~!"])
def test_the_clients_own_id_is_echoed(conch: Conch, key: str, given: str) -> None:
    for path in ("/v1/models", "/v1/nothing"):
        answer = ask(conch, "GET", path, b"", x_client_request_id=given, **bearer(key))
        assert answer.headers["x-client-request-id"] == given
        assert answer.headers["x-request-id"] != given
    body = chat("hi", stream=True)
    streamed = ask(conch, "POST", "/v1/chat/completions", body, x_client_request_id=given, **bearer(key))
    assert streamed.headers["x-client-request-id"] == given


@pytest.mark.parametrize("given", ["x" * 513, "\u00e9", "a\tb", ""])
def test_a_clients_id_that_is_none_is_not_echoed(conch: Conch, key: str, given: str) -> None:
    answer = ask(conch, "GET", "/v1/models", b"", x_client_request_id=given, **bearer(key))
    assert answer.status == 200
    assert not answer.headers.get("x-client-request-id")


@pytest.mark.parametrize("stream", [False, True])
def test_the_time_of_the_model_is_not_the_gateways(conch: Conch, key: str, stream: bool) -> None:
    body = chat('script: {"pieces": ["a"], "wait_ms": 200}', stream=stream)
    timing = TIMING.fullmatch(ask(conch, "POST", "/v1/chat/completions", body, **bearer(key)).headers["server-timing"])
    assert timing is not None
    assert float(timing[2]) >= 200
    assert float(timing[1]) < 100


def test_a_failure_of_the_model_is_on_the_models_time(conch: Conch, key: str) -> None:
    body = chat('script: {"pieces": ["a"], "wait_ms": 200, "fail_after": 0}')
    answer = ask(conch, "POST", "/v1/chat/completions", body, **bearer(key))
    assert answer.status == 502
    timing = TIMING.fullmatch(answer.headers["server-timing"])
    assert timing is not None
    assert float(timing[2]) >= 200
    assert int(answer.headers["openai-processing-ms"]) >= 200
