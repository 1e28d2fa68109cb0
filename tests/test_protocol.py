"""HTTP itself, by hand: heads, bodies and connections as no good client would send them, and as some good ones do."""

import time

import pytest

from tests.gateway import Conch
from tests.raw import Wire, await_true, bearer, chat, head, script

PATH = "/v1/chat/completions"
TIMEOUT = 2.0  # of heads and of bodies, in the tests' configuration
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


pytestmark = pytest.mark.usefixtures("no_crash")


def serves(wire: Wire) -> bool:
    wire.send(HEALTH)
    return wire.answer().status == 200


def refused(wire: Wire, status: int, code: str) -> None:
    """The next answer is an error, the last on its connection."""
    answer = wire.answer()
    assert answer.error(status)["code"] == code
    assert answer.headers["connection"] == "close"
    assert wire.ended()


# Heads --------------------------------------------------------------------------------------------


def test_head_of_100_kb(wire: Wire) -> None:
    """431, which the client can read though it goes on sending."""
    wire.send(HEALTH[:-2] + b"x-large: " + b"a" * 100_000)
    refused(wire, 431, "headers_too_large")


def test_head_of_100_kb_that_is_whole(wire: Wire) -> None:
    wire.send(HEALTH[:-2] + b"x-large: " + b"a" * 100_000 + b"\r\n\r\n")
    refused(wire, 431, "headers_too_large")


def test_many_headers(wire: Wire) -> None:
    wire.send(HEALTH[:-2] + b"".join(b"x-%d: %d\r\n" % (n, n) for n in range(8000)) + b"\r\n")
    refused(wire, 431, "headers_too_large")


def test_long_path(wire: Wire) -> None:
    wire.send(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    refused(wire, 414, "url_too_long")


def test_head_of_60_kb(wire: Wire) -> None:
    wire.send(HEALTH[:-2] + b"x-large: " + b"a" * 60_000 + b"\r\n\r\n")
    assert wire.answer().status == 200
    assert serves(wire)


def test_small_head_before_a_large_body(wire: Wire, key: str) -> None:
    """A body in the same read does not count."""
    wire.request("POST", PATH, chat("word " * 30_000), **bearer(key))
    assert wire.answer().status == 200


def test_unfinished_head(wire: Wire) -> None:
    started = time.monotonic()
    wire.send(HEALTH[:-5])
    refused(wire, 408, "request_timeout")
    assert TIMEOUT * 0.9 < time.monotonic() - started < TIMEOUT + 2


def test_head_that_drips(wire: Wire) -> None:
    """A byte now and then wins no time."""
    started = time.monotonic()
    wire.socket.settimeout(0.1)
    for byte in HEALTH[:-1] * 100:
        wire.send(bytes([byte]))
        try:
            if wire.socket.recv(12) == b"HTTP/1.1 408":
                break
        except TimeoutError:
            continue
    assert TIMEOUT * 0.9 < time.monotonic() - started < TIMEOUT + 2


def test_silence_from_the_start(wire: Wire) -> None:
    assert wire.ended()


def test_blank_lines_win_no_time(wire: Wire) -> None:
    assert serves(wire)
    wire.send(b"\r\n")
    refused(wire, 408, "request_timeout")


def test_an_idle_connection_outlives_the_time_of_a_head(wire: Wire) -> None:
    assert serves(wire)
    wire.socket.settimeout(TIMEOUT + 0.5)
    with pytest.raises(TimeoutError):
        wire.socket.recv(1)
    wire.socket.settimeout(10)
    wire.send(HEALTH)
    assert wire.socket.recv(12) == b"HTTP/1.1 200"


GARBAGE = {
    "bytes": b"\x00\x01\x02\x03\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "much of it": b"garbage" * 30_000,
    "no method": b"/healthz HTTP/1.1\r\n\r\n",
    "a method of its own": b"FETCH /healthz HTTP/1.1\r\n\r\n",
    "another protocol": b"GET /healthz FTP/1.1\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    "an address without a path": b"GET http://example.org HTTP/1.1\r\nhost: x\r\n\r\n",
    "a path that is not ASCII": b"GET /v1/models/\xc3\xa9 HTTP/1.1\r\nhost: x\r\n\r\n",
    "a null byte in a header": HEALTH[:-2] + b"x: a\x00b\r\n\r\n",
    "a header without a name": HEALTH[:-2] + b": x\r\n\r\n",
    "a space before the colon": HEALTH[:-2] + b"x : y\r\n\r\n",
    "a negative length": HEALTH[:-2] + b"content-length: -1\r\n\r\n",
    "a length with a sign": HEALTH[:-2] + b"content-length: +1\r\n\r\n",
    "a length over 64 bits": HEALTH[:-2] + b"content-length: 99999999999999999999\r\n\r\n",
    "two lengths": HEALTH[:-2] + b"content-length: 1\r\ncontent-length: 2\r\n\r\n",
    "a length and chunks": HEALTH[:-2] + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage(wire: Wire, data: bytes) -> None:
    wire.send(data)
    refused(wire, 400, "invalid_http")


@pytest.mark.parametrize("data", [GARBAGE["bytes"], GARBAGE["CONNECT"], GARBAGE["two lengths"]])
def test_garbage_on_a_kept_connection(wire: Wire, data: bytes) -> None:
    assert serves(wire)
    wire.send(data)
    refused(wire, 400, "invalid_http")


def test_a_refused_client_that_stays(wire: Wire) -> None:
    """One answer only, though the time of a head passes meanwhile; in the end the connection is closed for good."""
    wire.send(GARBAGE["bytes"])
    refused(wire, 400, "invalid_http")
    await_true(lambda: not _takes(wire))


def _takes(wire: Wire) -> bool:
    try:
        wire.send(b"more")
    except OSError:
        return False
    return True


def test_gone_within_the_head(conch: Conch) -> None:
    for size in (0, 1, 10, len(HEALTH) - 1):
        with Wire(conch.url) as wire:
            wire.send(HEALTH[:size])
    with Wire(conch.url) as wire:
        assert serves(wire)


# Bodies -------------------------------------------------------------------------------------------


def test_chunked_body_that_stops(wire: Wire, key: str) -> None:
    started = time.monotonic()
    wire.send(head("POST", PATH, wire.host, transfer_encoding="chunked", **bearer(key)))
    wire.send(b'a\r\n{"model": \r\n')
    assert wire.answer().error(408)["code"] == "request_timeout"
    assert TIMEOUT * 0.9 < time.monotonic() - started < TIMEOUT + 2


def test_body_that_stops_before_its_length(wire: Wire, key: str) -> None:
    wire.send(head("POST", PATH, wire.host, 1000, **bearer(key)) + b"{")
    assert wire.answer().error(408)["code"] == "request_timeout"


def test_body_in_single_bytes(wire: Wire, key: str) -> None:
    wire.send(head("POST", PATH, wire.host, transfer_encoding="chunked", **bearer(key)))
    for byte in chat("hello"):
        wire.send(b"1\r\n%c\r\n" % byte)
    wire.send(b"0\r\n\r\n")
    assert wire.answer().status == 200
    assert serves(wire)


@pytest.mark.parametrize("chunk", [b"zzz\r\n", b"-1\r\n", b"1\r\nabc\r\n", b"ffffffffffffffffff\r\n"])
def test_garbage_for_a_chunk(wire: Wire, key: str, chunk: bytes) -> None:
    wire.send(head("POST", PATH, wire.host, transfer_encoding="chunked", **bearer(key)) + b"1\r\n{\r\n" + chunk)
    refused(wire, 400, "invalid_http")


def test_garbage_in_the_body_of_an_answered_request(wire: Wire) -> None:
    """No second answer to one request."""
    wire.send(head("POST", PATH, wire.host, transfer_encoding="chunked"))
    wire.answer().error(401)
    wire.send(b"zzz\r\n")
    assert wire.ended()


def test_body_on_a_get(wire: Wire) -> None:
    wire.request("GET", "/healthz", b"hello")
    assert wire.answer().status == 200
    assert serves(wire)


def test_expect_continue(wire: Wire, key: str) -> None:
    body = chat("hello")
    wire.send(head("POST", PATH, wire.host, len(body), expect="100-continue", **bearer(key)))
    assert wire.answer_head() == (100, {})
    wire.send(body)
    assert wire.answer().status == 200
    assert serves(wire)


def test_expect_continue_refused(wire: Wire, key: str) -> None:
    """Too large: said before a byte of it is sent."""
    wire.send(head("POST", PATH, wire.host, 20 << 20, expect="100-continue", **bearer(key)))
    status, _ = wire.answer_head()
    assert status == 413


# Requests one after the other ---------------------------------------------------------------------


def test_pipelined(wire: Wire, key: str) -> None:
    """Answered in their order, a stream in the middle of them."""
    body = script("a", "b", "c", stream=True, pace_ms=5)
    stream = head("POST", PATH, wire.host, len(body), **bearer(key)) + body
    wire.send(HEALTH + stream + HEALTH + stream + HEALTH)
    for _ in range(2):
        assert wire.answer().json == {"status": "ok"}
        answer = wire.answer()
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert answer.body.count(b'"content":"') == 4
    assert wire.answer().status == 200
    assert serves(wire)


def test_many_pipelined(wire: Wire) -> None:
    wire.send(HEALTH * 2000)
    assert [wire.answer().status for _ in range(2000)] == [200] * 2000


def test_errors_pipelined(wire: Wire, key: str) -> None:
    bad = head("POST", PATH, wire.host, 1, **bearer(key)) + b"{"
    stranger = head("POST", PATH, wire.host, 3) + b"{}\n"
    wire.send(bad + stranger + HEALTH + bad)
    assert [wire.answer().status for _ in range(4)] == [400, 401, 200, 400]
    assert serves(wire)


def test_garbage_behind_a_request(wire: Wire) -> None:
    """What was asked well is answered; then the connection is closed."""
    wire.send(HEALTH + b"garbage\r\n\r\n")
    assert wire.answer().json == {"status": "ok"}
    assert wire.ended()


def test_garbage_behind_a_stream(wire: Wire, key: str) -> None:
    wire.request("POST", PATH, script(*"abcdef", stream=True, pace_ms=20), **bearer(key))
    status, _ = wire.answer_head()
    assert status == 200
    first = wire.chunk()
    wire.send(b"garbage\r\n\r\n")
    assert (first + b"".join(iter(wire.chunk, b""))).endswith(b"data: [DONE]\n\n")
    assert wire.ended()


def test_reuse_after_errors(wire: Wire, key: str) -> None:
    for body, status in ((b"{", 400), (chat("x", "zzz"), 404), (script("x", fail_after=0), 502), (chat("x"), 200)):
        wire.request("POST", PATH, body, **bearer(key))
        assert wire.answer().status == status


def test_reuse_after_a_body_that_was_not_read(wire: Wire) -> None:
    wire.request("POST", PATH, b" " * 300_000, authorization="Bearer nonsense")
    wire.answer().error(401)
    assert serves(wire)


def test_close_is_obeyed(wire: Wire) -> None:
    wire.request("GET", "/healthz", connection="close")
    assert wire.answer().headers["connection"] == "close"
    assert wire.ended()


# Forms of a request -------------------------------------------------------------------------------


def test_http_1_0(wire: Wire) -> None:
    wire.send(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert wire.answer().json == {"status": "ok"}
    assert wire.ended()


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/v1/models/assistant"])
def test_head_requests(wire: Wire, key: str, path: str) -> None:
    wire.request("HEAD", path, **bearer(key))
    answer = wire.answer("HEAD")
    assert answer.status == 200
    assert int(answer.headers["content-length"]) > 0
    assert serves(wire)


def test_head_on_a_stream(wire: Wire, key: str) -> None:
    wire.request("HEAD", PATH, script("x", stream=True), **bearer(key))
    assert wire.answer("HEAD").status == 405
    assert serves(wire)


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_upgrade_is_not_taken(wire: Wire, key: str, protocol: str) -> None:
    """Java's client offers HTTP/2 on its first request, and its body follows in another segment."""
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": protocol, "http2_settings": "AAEAAEAAAAIAAAAB"}
    body = chat("hello")
    for pieces in ([body], [body[:10], body[10:]]):
        wire.send(head("POST", PATH, wire.host, len(body), **offer, **bearer(key)))
        for piece in pieces:
            wire.send(piece)
        assert wire.answer().status == 200
    wire.send(head("POST", PATH, wire.host, len(body), **offer, **bearer(key)) + body + HEALTH)
    assert [wire.answer().status for _ in range(2)] == [200, 200]
    wire.send(head("GET", "/healthz", wire.host, **offer) * 500)
    assert [wire.answer().status for _ in range(500)] == [200] * 500
    assert serves(wire)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/healthz?x=%zz&=&", 200),
        ("/healthz#x", 200),
        ("/%68ealthz", 200),
        ("/v1/%6dodels", 200),
        ("/v1/models/acme/assistant", 200),
        ("/v1/models/acme%2Fassistant", 200),
        ("/v1/models/%E4%BD%A0", 404),
        ("/v1/models/%ff%ed%a0%80%00%0a%zz", 404),
        ("/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("/v1/../v1/models", 404),
        ("*", 404),
    ],
)
def test_targets(wire: Wire, key: str, target: str, status: int) -> None:
    wire.request("GET", target, **bearer(key))
    answer = wire.answer()
    assert answer.status == status
    if status == 404:
        answer.error(404, answer.json["error"]["param"])
    assert serves(wire)


@pytest.mark.parametrize("host", ["[", "\xff", "", "a b", "x:99999999", "x/../"])
def test_odd_hosts(wire: Wire, host: str) -> None:
    wire.send(b"GET /nowhere HTTP/1.1\r\nhost: " + host.encode("latin-1") + b"\r\n\r\n")
    wire.answer().error(404)
    assert serves(wire)


@pytest.mark.parametrize(
    "value",
    ["Bearer", "Bearer ", "Basic eA==", "Bearer rp_live_" + "0" * 63, "Bearer rp_live_" + "G" * 64, "x" * 9000],
)
def test_odd_keys(wire: Wire, value: str) -> None:
    wire.request("GET", "/v1/models", authorization=value)
    answer = wire.answer()
    assert answer.error(401)["code"] == "invalid_api_key"
    assert "x-ratelimit-limit" not in answer.headers


def test_client_request_id(wire: Wire) -> None:
    for sent, echoed in (("abc 123", True), ("x" * 512, True), ("x" * 513, False), ("a\tb", False), ("\xe9", False)):
        wire.send(HEALTH[:-2] + b"x-client-request-id: " + sent.encode("latin-1") + b"\r\n\r\n")
        assert wire.answer().headers.get("x-client-request-id") == (sent if echoed else None)


def test_headers_of_every_answer(wire: Wire, key: str) -> None:
    ids = set()
    for method, path, body in (
        ("GET", "/healthz", b""),
        ("GET", "/nowhere", b""),
        ("PUT", PATH, b""),
        ("POST", PATH, b"{"),
        ("POST", PATH, chat("x")),
        ("POST", PATH, script("x", stream=True)),
    ):
        wire.request(method, path, body, **bearer(key))
        headers = wire.answer().headers
        ids.add(headers["x-request-id"])
        assert int(headers["openai-processing-ms"]) >= 0
        assert headers["server-timing"].startswith("gateway;dur=")
        assert "server" not in headers
    assert len(ids) == 6
