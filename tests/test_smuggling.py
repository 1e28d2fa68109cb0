"""Requests that two readers could take for different ones: each is refused, and nothing of it is forwarded."""

import contextlib
import json
import urllib.request

import pytest

from scripts.triton import Triton
from tests.raw import Wire, chat

PATH = b"/v1/chat/completions"
BODY = chat("hello", max_tokens=1)
CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)
CHUNKS = CHUNK + b"0\r\n\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"

# After "POST … HTTP/1.1", host, content-type and a good key: the rest of the head, and the body.
FRAMING: dict[str, tuple[int, bytes, bytes]] = {
    "the same length twice": (400, LENGTH * 2, BODY),
    "two lengths": (400, LENGTH + b"content-length: 0\r\n", BODY),
    "a list of lengths": (400, b"content-length: %d, %d\r\n" % (len(BODY), len(BODY)), BODY),
    "an empty length": (400, b"content-length: \r\n", BODY),
    "a length with a sign": (400, b"content-length: +%d\r\n" % len(BODY), BODY),
    "a negative length": (400, b"content-length: -1\r\n", BODY),
    "a length in hex": (400, b"content-length: 0x%x\r\n" % len(BODY), BODY),
    "a length with an underscore": (400, b"content-length: 1_0\r\n", BODY),
    "a length over 64 bits": (400, b"content-length: 18446744073709551617\r\n", BODY),
    "length, then chunks": (400, LENGTH + CHUNKED, CHUNKS),
    "chunks, then a length": (400, CHUNKED + LENGTH, CHUNKS),
    "chunked twice, in two fields": (400, CHUNKED * 2, CHUNKS),
    "chunked twice, in one": (400, b"transfer-encoding: chunked, chunked\r\n", CHUNKS),
    "chunked, then identity": (400, b"transfer-encoding: chunked, identity\r\n", CHUNKS),
    "identity, then chunked": (501, b"transfer-encoding: identity, chunked\r\n", CHUNKS),
    "gzip, then chunked": (501, b"transfer-encoding: gzip, chunked\r\n", CHUNKS),
    "a comma before chunked": (501, b"transfer-encoding: ,chunked\r\n", CHUNKS),
    "xchunked": (501, b"transfer-encoding: xchunked\r\n", CHUNKS),
    "chunked in quotes": (501, b'transfer-encoding: "chunked"\r\n', CHUNKS),
    "chunked with a parameter": (501, b"transfer-encoding: chunked;q=1\r\n", CHUNKS),
    "identity": (501, b"transfer-encoding: identity\r\n", BODY),
    "identity and a length": (400, b"transfer-encoding: identity\r\n" + LENGTH, BODY),
    "an empty coding and a length": (400, b"transfer-encoding: \r\n" + LENGTH, BODY),
    "a vertical tab before chunked": (400, b"transfer-encoding: \x0bchunked\r\n", CHUNKS),
    "chunked on a line of its own": (400, b"transfer-encoding:\r\n chunked\r\n" + LENGTH, CHUNKS),
    "a folded header": (400, b"x-a: b\r\n c\r\n" + LENGTH, BODY),
    "a folded header, with a tab": (400, b"x-a: b\r\n\tc\r\n" + LENGTH, BODY),
    "a folded length": (400, b"content-length:\r\n %d\r\n" % len(BODY), BODY),
    "a space before the colon": (400, b"content-length : %d\r\n" % len(BODY), BODY),
    "a tab before the colon": (400, b"content-length\t: %d\r\n" % len(BODY), BODY),
    "a bare LF between headers": (400, b"x-a: b\n" + LENGTH, BODY),
    "a bare LF at the end of the head": (400, LENGTH[:-2] + b"\n\n", BODY),
    "a bare CR in a value": (400, b"x-a: b\rc\r\n" + LENGTH, BODY),
    "a null byte in a value": (400, b"x-a: b\0c\r\n" + LENGTH, BODY),
    "a null byte in a name": (400, b"x-a\0: b\r\n" + LENGTH, BODY),
    "a control character in a value": (400, b"x-a: b\x01c\r\n" + LENGTH, BODY),
    "a delete in a value": (400, b"x-a: b\x7fc\r\n" + LENGTH, BODY),
    "a parenthesis in a name": (400, b"x(a: b\r\n" + LENGTH, BODY),
    "a space in a name": (400, b"x a: b\r\n" + LENGTH, BODY),
    "a name that is not ASCII": (400, b"x\xe9: b\r\n" + LENGTH, BODY),
    "no name": (400, b": b\r\n" + LENGTH, BODY),
    "no colon": (400, b"x-a\r\n" + LENGTH, BODY),
    "two hosts": (400, b"host: y\r\n" + LENGTH, BODY),
    "two keys": (400, b"authorization: Bearer rp_live_x\r\n" + LENGTH, BODY),
    "two content types": (400, b"content-type: text/plain\r\n" + LENGTH, BODY),
    "two idempotency keys": (400, b"idempotency-key: a\r\nidempotency-key: b\r\n" + LENGTH, BODY),
    "a head of 70 KB": (431, b"x-a: " + b"b" * 70_000 + b"\r\n" + LENGTH, BODY),
    "a chunk size that is none": (400, CHUNKED, b"zz\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "no chunk size": (400, CHUNKED, b"\r\n" + CHUNKS),
    "a chunk size with 0x": (400, CHUNKED, b"0x" + CHUNKS),
    "a chunk size with a sign": (400, CHUNKED, b"+" + CHUNKS),
    "a negative chunk size": (400, CHUNKED, b"-" + CHUNKS),
    "a chunk size after a space": (400, CHUNKED, b" " + CHUNKS),
    "a chunk size before a space": (400, CHUNKED, CHUNKS.replace(b"\r\n", b" \r\n", 1)),
    "a chunk size over 64 bits": (400, CHUNKED, b"1" + b"0" * 15 + CHUNKS),
    "a bare LF after a chunk size": (400, CHUNKED, CHUNKS.replace(b"\r\n", b"\n", 1)),
    "a bare CR after a chunk size": (400, CHUNKED, CHUNKS.replace(b"\r\n", b"\r", 1)),
    "a bare LF after a chunk": (400, CHUNKED, CHUNK[:-2] + b"\n0\r\n\r\n"),
    "nothing after a chunk": (400, CHUNKED, CHUNK[:-2] + b"0\r\n\r\n"),
    "more than its size in a chunk": (400, CHUNKED, CHUNK[:-2] + b"more\r\n0\r\n\r\n"),
    "a bare LF in a chunk's extension": (400, CHUNKED, CHUNKS.replace(b"\r\n", b";a\nb\r\n", 1)),
    "a null byte in a chunk's extension": (400, CHUNKED, CHUNKS.replace(b"\r\n", b";a\0b\r\n", 1)),
    "a length in the trailers": (400, CHUNKED, CHUNK + b"0\r\ncontent-length: 5\r\n\r\n"),
    "trailers of 200 KB": (400, CHUNKED, CHUNK + b"0\r\n" + b"x-a: b\r\n" * 25_000 + b"\r\n"),
}

# A whole request line and its head, in which %b stands for content-type, a good key and a length.
LINES: dict[str, tuple[int, bytes]] = {
    "HTTP/0.9": (400, b"POST %p\r\n\r\n"),
    "HTTP/0.9, said": (400, b"POST %p HTTP/0.9\r\nhost: %h\r\n%b\r\n"),
    "HTTP/1.2": (400, b"POST %p HTTP/1.2\r\nhost: %h\r\n%b\r\n"),
    "HTTP/1.10": (400, b"POST %p HTTP/1.10\r\nhost: %h\r\n%b\r\n"),
    "HTTP/2.0": (400, b"POST %p HTTP/2.0\r\nhost: %h\r\n%b\r\n"),
    "the preface of HTTP/2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a space behind the version": (400, b"POST %p HTTP/1.1 \r\nhost: %h\r\n%b\r\n"),
    "a space in the target": (400, b"POST %p x HTTP/1.1\r\nhost: %h\r\n%b\r\n"),
    "a space before the method": (400, b" POST %p HTTP/1.1\r\nhost: %h\r\n%b\r\n"),
    "a method in lower case": (400, b"post %p HTTP/1.1\r\nhost: %h\r\n%b\r\n"),
    "a tab behind the method": (400, b"POST\t%p HTTP/1.1\r\nhost: %h\r\n%b\r\n"),
    "a bare LF behind the version": (400, b"POST %p HTTP/1.1\nhost: %h\r\n%b\r\n"),
    "a space before the first header": (400, b"POST %p HTTP/1.1\r\n host: %h\r\n%b\r\n"),
    "no host": (400, b"POST %p HTTP/1.1\r\n%b\r\n"),
    "chunks on HTTP/1.0": (400, b"POST %p HTTP/1.0\r\nhost: %h\r\n%btransfer-encoding: chunked\r\n\r\n"),
    "a null byte in the target": (400, b"POST %p\0 HTTP/1.1\r\nhost: %h\r\n%b\r\n"),
    "a target that is not ASCII": (400, b"POST %p\xe9 HTTP/1.1\r\nhost: %h\r\n%b\r\n"),
    "an address and a port": (400, b"CONNECT %h HTTP/1.1\r\nhost: %h\r\n%b\r\n"),
    "an address and a port to POST to": (400, b"POST %h HTTP/1.1\r\nhost: %h\r\n%b\r\n"),
    "another host in the target": (400, b"POST http://example.org%p HTTP/1.1\r\nhost: %h\r\n%b\r\n"),
    "a name and a host in the target": (400, b"POST http://a@%h%p HTTP/1.1\r\nhost: %h\r\n%b\r\n"),
    "another scheme in the target": (400, b"POST ftp://%h%p HTTP/1.1\r\nhost: %h\r\n%b\r\n"),
    "a target of 9 KB": (414, b"POST %p?" + b"a" * 9_000 + b" HTTP/1.1\r\nhost: %h\r\n%b\r\n"),
    "a target of 70 KB": (414, b"POST %p?" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: %h\r\n%b\r\n"),
}


pytestmark = pytest.mark.usefixtures("no_crash")


def asked(triton: Triton) -> int:
    """How many requests the model has had so far."""
    with urllib.request.urlopen(f"{triton.url}/v2/models/vllm/stats") as answer:
        (stats,) = json.load(answer)["model_stats"]
    counts = stats["inference_stats"]
    return int(counts["success"]["count"]) + int(counts["fail"]["count"])


def given(key: str) -> bytes:
    """The headers that let a request in."""
    return b"content-type: application/json\r\n" + f"authorization: Bearer {key}\r\n".encode()


def start(wire: Wire, key: str) -> bytes:
    return b"POST %b HTTP/1.1\r\nhost: %b\r\n" % (PATH, wire.host.encode()) + given(key)


def refused(wire: Wire, status: int) -> None:
    """One answer, in the one shape, the last on its connection."""
    answer = wire.answer()
    answer.error(status)
    assert answer.headers["connection"] == "close"
    assert wire.ended()


def test_the_good_one_runs(wire: Wire, triton: Triton, key: str) -> None:
    """What the tables are variations of; so they could fail."""
    before = asked(triton)
    for framed in (LENGTH + b"\r\n" + BODY, CHUNKED + b"\r\n" + CHUNKS):
        wire.send(start(wire, key) + framed)
        assert wire.answer().status == 200
    assert asked(triton) == before + 2


@pytest.mark.parametrize(("status", "head", "body"), FRAMING.values(), ids=FRAMING)
def test_framing(wire: Wire, triton: Triton, key: str, status: int, head: bytes, body: bytes) -> None:
    before = asked(triton)
    wire.send(start(wire, key) + head + b"\r\n" + body)
    refused(wire, status)
    assert asked(triton) == before


@pytest.mark.parametrize(("status", "line"), LINES.values(), ids=LINES)
def test_request_lines(wire: Wire, triton: Triton, key: str, status: int, line: bytes) -> None:
    before = asked(triton)
    headers = given(key) + (b"" if b"chunked" in line else LENGTH)
    for name, value in ((b"%p", PATH), (b"%h", wire.host.encode()), (b"%b", headers)):
        line = line.replace(name, value)
    wire.send(line + (CHUNKS if b"chunked" in line else BODY))
    refused(wire, status)
    assert asked(triton) == before


@pytest.mark.parametrize("head", [LENGTH * 2, LENGTH + CHUNKED, b"transfer-encoding: xchunked\r\n"])
def test_behind_a_good_request(wire: Wire, triton: Triton, key: str, head: bytes) -> None:
    """On a connection that is kept, and in one write with the request before: that one alone is answered."""
    before = asked(triton)
    wire.send(HEALTH)
    assert wire.answer().status == 200
    wire.send(HEALTH + start(wire, key) + head + b"\r\n" + CHUNKS)
    assert wire.answer().status == 200
    assert wire.ended()
    assert asked(triton) == before


@pytest.mark.parametrize("head", [LENGTH * 2, LENGTH + CHUNKED, b"transfer-encoding: chunked, identity\r\n"])
def test_a_request_within_a_refused_one(wire: Wire, triton: Triton, key: str, head: bytes) -> None:
    """What one reader would take for the body, and another for the next request."""
    before = asked(triton)
    wire.send(start(wire, key) + head + b"\r\n0\r\n\r\n" + start(wire, key) + LENGTH + b"\r\n" + BODY)
    refused(wire, 400)
    assert asked(triton) == before


@pytest.mark.parametrize("garbage", [b"GARBAGE\r\n\r\n", b"\0\0", b"X" * 70_000])
def test_garbage_behind_a_body(wire: Wire, triton: Triton, key: str, garbage: bytes) -> None:
    """The request is answered, and nothing after it."""
    before = asked(triton)
    wire.send(start(wire, key) + LENGTH + b"\r\n" + BODY + garbage)
    assert wire.answer().status == 200
    assert wire.ended()
    assert asked(triton) == before + 1


def test_a_request_behind_the_last(wire: Wire, triton: Triton, key: str) -> None:
    before = asked(triton)
    good = start(wire, key) + LENGTH + b"\r\n" + BODY
    wire.send(start(wire, key) + b"connection: close\r\n" + LENGTH + b"\r\n" + BODY + good)
    assert wire.answer().status == 200
    assert wire.ended()
    assert asked(triton) == before + 1


def test_a_flood_of_extensions(wire: Wire, triton: Triton, key: str) -> None:
    """In a body that the gateway waits for: in a read with the head, a few go by uncounted."""
    before = asked(triton)
    wire.send(start(wire, key) + CHUNKED + b"expect: 100-continue\r\n\r\n")
    assert wire.answer_head() == (100, {})
    with contextlib.suppress(OSError):  # it may be closed before all of it is sent
        wire.send((b"1;" + b"a" * 50 + b"\r\n \r\n") * 20_000 + CHUNKS)
    refused(wire, 400)
    assert asked(triton) == before


def test_trailers_are_no_headers(wire: Wire, triton: Triton, key: str) -> None:
    """A key that comes behind the body opens nothing."""
    before = asked(triton)
    unkeyed = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" % PATH
    trailer = f"authorization: Bearer {key}\r\n".encode()
    wire.send(unkeyed + CHUNKED + b"\r\n" + CHUNK + b"0\r\n" + trailer + b"\r\n")
    wire.answer().error(401)
    assert asked(triton) == before
    wire.send(start(wire, key) + CHUNKED + b"\r\n" + CHUNK + b"0\r\nx-client-request-id: a\r\n\r\n")
    answer = wire.answer()
    assert answer.status == 200
    assert "x-client-request-id" not in answer.headers


def test_a_target_with_the_host_itself(wire: Wire, key: str) -> None:
    """As a client of a proxy writes it (RFC 9112, 3.2.2: a server must take it)."""
    wire.send(b"GET HTTP://%b/v1/models HTTP/1.1\r\nhost: %b\r\n" % ((wire.host.encode(),) * 2) + given(key) + b"\r\n")
    assert wire.answer().status == 200


def test_small_extensions_and_trailers_pass(wire: Wire, key: str) -> None:
    wire.send(start(wire, key) + CHUNKED + b"\r\n" + CHUNKS.replace(b"\r\n", b";a=b\r\n", 1)[:-2] + b"x: y\r\n\r\n")
    assert wire.answer().status == 200
    wire.send(HEALTH)
    assert wire.answer().status == 200
