"""What /metrics tells of requests that wait for a place at a model, of those that found no room, and of no requests."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from scripts.triton import Triton
from tests.gateway import CONFIG, Conch
from tests.raw import Wire, await_true, bearer, script
from tests.scrape import TOKEN, Scrape, ask, since

CHAT = "/v1/chat/completions"
WAITS = "conch_queue_duration_seconds"
NARROW = """
[[models]]
id = "narrow"
task = "chat"
upstream = "local"
model = "vllm"
preset = "vllm"
chat.template = "{root}/tests/plain.jinja"
max_inflight = 1
max_queue = 2

[[models]]
id = "elsewhere"
task = "chat"
upstream = "halved"
model = "vllm"
preset = "vllm"
transport = "grpc"
chat.template = "{root}/tests/plain.jinja"

[upstreams.halved]
urls = ["{triton}", "{triton}/"]
grpc = ["127.0.0.1:9", "{grpc}"]
"""


@pytest.fixture(scope="module")
def narrow(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Conch, str]]:
    """A gateway with a model that takes one request at a time and lets two wait, and a key."""
    conch = Conch(tmp_path_factory.mktemp("narrow"), triton.url, CONFIG + NARROW, grpc=triton.grpc_url)
    conch.workspace("acme")
    key = conch.key("acme")
    with conch.running(CONCH_METRICS_TOKEN=TOKEN, CONCH_SERVER__MAX_CONNECTIONS="40"):
        yield conch, key


def say(wire: Wire, key: str, body: bytes) -> Wire:
    wire.request("POST", CHAT, body, **bearer(key))
    return wire


def test_a_queue_is_seen_while_it_stands_and_in_what_it_cost(narrow: tuple[Conch, str]) -> None:
    conch, key = narrow
    before = Scrape(conch)
    assert list(before.found("conch_queue_length")) == [({"model": "narrow"}, 0)], "there before anybody waits"
    assert len(list(before.found(f"{WAITS}_count", model="narrow"))) == 1
    with ExitStack() as stack:
        running, patient, hasty, fourth = (stack.enter_context(Wire(conch.url)) for _ in range(4))
        say(running, key, script(*"x" * 5000, model="narrow", stream=True, pace_ms=5))
        assert running.answer_head()[0] == 200
        say(patient, key, script("mine", model="narrow"))
        say(hasty, key, script("never", model="narrow"))
        await_true(lambda: Scrape(conch)("conch_queue_length", model="narrow") == 2)
        say(fourth, key, script("no room", model="narrow"))
        assert fourth.answer().error(503)["code"] == "model_unavailable"
        hasty.close()
        await_true(lambda: Scrape(conch)("conch_queue_length", model="narrow") == 1)
        running.close()
        assert patient.answer().json["choices"][0]["message"]["content"] == "mine"
    after = Scrape(conch)
    assert after("conch_queue_length") == 0
    assert since(before, after, f"{WAITS}_count", model="narrow") == 2, "the first found room, the fourth no queue"
    assert 0.01 < since(before, after, f"{WAITS}_sum", model="narrow") < 60
    assert since(before, after, "conch_queue_full_total", model="narrow") == 1


def test_what_went_to_another_server_is_counted(narrow: tuple[Conch, str]) -> None:
    """The first one's HTTP side works, so that its checks pass; its gRPC side refuses every connection."""
    conch, key = narrow
    retried = "conch_upstream_retries_total"
    before = Scrape(conch)
    assert list(before.found(retried, model="elsewhere")) == [({"model": "elsewhere"}, 0)], "there from the start"
    with Wire(conch.url) as wire:
        for _ in range(4):
            assert say(wire, key, script("a", model="elsewhere")).answer().status == 200
    after = Scrape(conch)
    assert 1 <= since(before, after, retried, model="elsewhere") <= 4
    assert since(before, after, retried) == since(before, after, retried, model="elsewhere")
    assert since(before, after, "conch_upstream_errors_total") == 0, "nobody has seen it"


HEAD = b"GET /healthz HTTP/1.1\r\nhost: x\r\n"
REFUSED: list[tuple[str, bytes, int, str]] = [
    ("no HTTP", b"\x16\x03\x01\x02\x00\r\n\r\n", 400, "invalid_http"),
    ("no host", b"GET /healthz HTTP/1.1\r\n\r\n", 400, "invalid_http"),
    ("an unfinished head", HEAD, 408, "request_timeout"),
    ("a long URL", b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414, "url_too_long"),
    ("a large head", HEAD + b"x: " + b"a" * 70_000 + b"\r\n\r\n", 431, "headers_too_large"),
    ("a coding", HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n", 501, "transfer_encoding_not_supported"),
]


@pytest.mark.parametrize(("data", "status", "code"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED])
def test_what_is_refused_before_it_is_a_request(narrow: tuple[Conch, str], data: bytes, status: int, code: str) -> None:
    conch, _ = narrow
    before = Scrape(conch)
    with Wire(conch.url) as wire:
        wire.send(data)
        assert wire.answer().error(status)["code"] == code
    after = Scrape(conch)
    labels = {"endpoint": "other", "method": "other", "status": str(status), "code": code}
    assert since(before, after, "conch_requests_total", **labels) == 1
    assert since(before, after, "conch_requests_total") == 2, "it, and the scrape before"
    assert after("conch_requests_in_flight") == 1, "the scrape"


def test_one_connection_too_many(narrow: tuple[Conch, str]) -> None:
    conch, _ = narrow
    before = Scrape(conch)
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(Wire(conch.url))
        refused = [stack.enter_context(Wire(conch.url)).answer() for _ in range(3)]
    for answer in refused:
        assert answer.error(503)["code"] == "overloaded"
    count = len(refused)
    while ask(conch, **bearer(TOKEN)).status == 503:  # until those that have left are seen to have
        count += 1
        assert count < 1000
    labels = {"endpoint": "other", "method": "other", "status": "503", "code": "overloaded"}
    assert since(before, Scrape(conch), "conch_requests_total", **labels) == count


def test_a_body_that_breaks_off_is_counted_with_its_request(narrow: tuple[Conch, str]) -> None:
    """Once, at its endpoint, where it ended as one whose client has gone."""
    conch, key = narrow
    before = Scrape(conch)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n"
    with Wire(conch.url) as wire:
        wire.send(head.encode() + b"zz\r\n")
        assert wire.answer().error(400)["code"] == "invalid_http"
    await_true(lambda: since(before, Scrape(conch), "conch_requests_total", endpoint=CHAT, status="499") == 1)
    assert since(before, Scrape(conch), "conch_requests_total", code="invalid_http") == 0
