"""Clients that leave: the model stops, whatever the moment was, and nothing of them stays in the gateway."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn

from app import build
from config import load
from handlers.door import lifetime
from handlers.door.protocol import configured
from scripts.triton import Triton
from tests.gateway import Conch
from tests.observed import Model, Process
from tests.raw import Wire, await_true, bearer, chat, head, script

PATH = "/v1/chat/completions"
ENDLESS = ["x"] * 20_000
LISTENING = "0A"  # in /proc/net/tcp
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a RST


pytestmark = pytest.mark.usefixtures("no_crash")


@pytest.fixture
def model(triton: Triton) -> Model:
    return Model(triton)


@pytest.fixture
def process(conch: Conch, triton: Triton) -> Process:
    return Process(conch, triton)


def opened(conch: Conch, key: str, *pieces: str, **how: Any) -> Wire:
    """A stream that has said its first word."""
    wire = Wire(conch.url)
    wire.request("POST", PATH, script(*pieces, stream=True, **how), **bearer(key))
    status, _ = wire.answer_head()
    assert status == 200
    assert b'"content":"' in wire.chunk()
    return wire


# The moment of leaving ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closes", "resets", "closes its half"])
def test_gone_within_a_stream(conch: Conch, key: str, model: Model, how: str) -> None:
    wire = opened(conch, key, *ENDLESS[:2000], pace_ms=5)
    assert model.since("cancelled") == 0
    if how == "resets":
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    if how == "closes its half":
        wire.socket.shutdown(socket.SHUT_WR)
    else:
        wire.close()
    await_true(lambda: model.since("cancelled") == 1)
    wire.close()
    assert model.since("finished") == 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "unary"])
def test_gone_before_the_first_word(conch: Conch, key: str, model: Model, process: Process, stream: bool) -> None:
    """Of a stream, the connection to Triton is dropped; a whole answer goes over gRPC, and is cancelled there."""
    body = script("a", "b", stream=stream, wait_ms=1000, pace_ms=1)
    with Wire(conch.url) as wire:
        wire.request("POST", PATH, body, **bearer(key))
        await_true(lambda: model.since("started") == 1)
        used = process.upstream()
        assert used
    if stream:
        await_true(lambda: used - process.upstream(), 1)
    await_true(lambda: model.since("cancelled") == 1)
    assert model.since("finished") == 0


def test_gone_after_a_long_body(conch: Conch, key: str, model: Model, process: Process) -> None:
    """Reading pauses when much of a body comes at once, and must go on for the leaving to be seen: not by chance."""
    clients = process.clients()
    body = chat("word " * 40_000 + 'script: {"pieces": ["a"], "wait_ms": 1000}')
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            wire = stack.enter_context(Wire(conch.url))
            wire.request("POST", PATH, b" " * (8 << 20), **bearer(key))  # widens the connection's window
            wire.answer().error(400)
            wire.request("POST", PATH, body, **bearer(key))
        await_true(lambda: model.since("started") == 8)
    await_true(lambda: process.clients() <= clients, 1)
    await_true(lambda: model.since("cancelled") + model.since("finished") == 8)


def test_gone_within_the_body(conch: Conch, key: str, model: Model, process: Process) -> None:
    clients = process.clients()
    for size in (0, 1, 100, 70_000, 300_000):
        for length in (1_000_000, None):
            coding = {} if length else {"transfer_encoding": "chunked"}
            with Wire(conch.url) as wire:
                wire.send(head("POST", PATH, wire.host, length, **coding, **bearer(key)))
                wire.send(b"x" * size if length else b"%x\r\n" % 1_000_000 + b"x" * size)
    await_true(lambda: process.clients() <= clients)
    assert model.since("started") == 0


def test_gone_at_once(conch: Conch, key: str, process: Process) -> None:
    """The whole request and the end of the connection come together."""
    clients = process.clients()
    for _ in range(200):
        with Wire(conch.url) as wire:
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            wire.request("POST", PATH, chat("x", stream=True), **bearer(key))
    await_true(lambda: process.clients() <= clients)


def test_gone_with_requests_behind(conch: Conch, key: str, model: Model, process: Process) -> None:
    """A stream under way is cancelled, and what waits behind it never begins."""
    body = script(*ENDLESS[:2000], stream=True, pace_ms=5)
    request = head("POST", PATH, "x", len(body), **bearer(key)) + body
    clients = process.clients()
    with Wire(conch.url) as wire:
        wire.send(request * 5)
        wire.answer_head()
        wire.chunk()
    await_true(lambda: model.since("cancelled") == 1)
    await_true(lambda: process.clients() <= clients)
    assert model.since("started") == 1


def test_gone_while_its_error_is_written(conch: Conch, key: str, process: Process) -> None:
    """A slow reader, so that the error frame must wait for room, and then it leaves: nobody is left to tell."""
    clients, logged = process.clients(), len(conch.log)
    with Wire(conch.url, receive_buffer=4096) as wire:
        wire.request(
            "POST",
            PATH,
            script("x" * 6_000_000, "y", stream=True, fail_after=1, pace_ms=50),
            **bearer(key),
        )
        status, _ = wire.answer_head()
        assert status == 200
        # The model's failure has been logged, so the gateway is trying to write its frame.
        await_true(lambda: any("ModelFailed" in line for line in conch.log[logged:]))
    await_true(lambda: process.clients() <= clients)


def test_a_slow_reader_gets_everything(conch: Conch, key: str) -> None:
    pieces = [f"{number:06d}" + "x" * 100_000 for number in range(40)]
    with Wire(conch.url, receive_buffer=4096) as wire:
        wire.request("POST", PATH, script(*pieces, stream=True), **bearer(key))
        body = wire.answer().body
    assert body.endswith(b"data: [DONE]\n\n")
    events = [json.loads(event[6:]) for event in body.split(b"\n\n")[:-2]]
    said = "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])
    assert said == "".join(pieces)


# Many of them -------------------------------------------------------------------------------------


async def abandon(conch: Conch, body: bytes, request: bytes, number: int) -> None:
    """Open a stream, wait for its first word, leave; every other one by a reset."""
    parts = urlsplit(conch.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(request + body)
    await reader.readuntil(b'"content":"x"')
    if number % 2:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


IDLE = 8
"""Connections that the checks of the models may have made meanwhile, and keep for the next time."""


async def test_a_thousand_leave_nothing_behind(conch: Conch, key: str, model: Model, process: Process) -> None:
    body = script(*ENDLESS[:500], stream=True, pace_ms=10)
    request = head("POST", PATH, "x", len(body), **bearer(key))

    async def many(count: int) -> None:
        for first in range(0, count, 40):
            await asyncio.gather(*(abandon(conch, body, request, first + each) for each in range(40)))

    connections = len(process.upstream())
    await many(200)
    await_true(lambda: model.since("cancelled") == 200)
    await_true(lambda: len(process.upstream()) <= connections + IDLE)
    clients, files, memory = process.clients(), process.files, process.resident
    await many(1000)
    await_true(lambda: model.since("cancelled") == 1200)
    assert model.since("finished") == 0
    await_true(lambda: len(process.upstream()) <= connections + IDLE)
    await_true(lambda: process.clients() <= clients)
    await_true(lambda: process.files <= files + IDLE)  # a checkpoint of the store opens three for a moment
    assert process.resident - memory < 4 << 20


# The server's own end -----------------------------------------------------------------------------


@pytest.fixture
def own(triton: Triton, tmp_path: Path) -> tuple[Conch, str]:
    """A gateway of the test's own, not started yet, and a key."""
    conch = Conch(tmp_path, triton.url)
    conch.workspace("acme")
    return conch, conch.key("acme")


def test_sigterm_lets_streams_finish(own: tuple[Conch, str]) -> None:
    conch, key = own
    # running() asserts the exit status 0.
    with conch.running(), Wire(conch.url) as idle, opened(conch, key, *"abcdefghij", pace_ms=50) as wire:
        os.kill(conch.pid, signal.SIGTERM)
        assert idle.ended()
        await_true(lambda: not _listens(conch))
        rest = b"".join(iter(wire.chunk, b""))
        assert rest.endswith(b"data: [DONE]\n\n")
        assert wire.ended()
    assert "Traceback" not in "".join(conch.log)


def test_sigterm_waits_only_so_long(own: tuple[Conch, str], model: Model) -> None:
    """What is then still under way is told so in its own form, the model is stopped, and the end is a clean one."""
    conch, key = own
    with conch.running(CONCH_SERVER__DRAIN="1s"):
        stream = opened(conch, key, *ENDLESS[:2000], pace_ms=5)
        with stream, Wire(conch.url) as unary:
            unary.request("POST", PATH, script(*ENDLESS[:2000], pace_ms=5), **bearer(key))
            await_true(lambda: model.since("started") >= 2)
            os.kill(conch.pid, signal.SIGTERM)
            answer = unary.answer()
            assert answer.error(503)["code"] == "stopping"
            assert answer.headers["retry-after"] == "1"
            last = b"".join(iter(stream.chunk, b"")).split(b"\n\n")[-2]
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "stopping"
    assert "Traceback" not in "".join(conch.log)
    await_true(lambda: model.since("cancelled") >= 1)


def test_a_client_that_reads_nothing_has_left(own: tuple[Conch, str], model: Model) -> None:
    """It would hold its place and its credits for ever."""
    conch, key = own
    with conch.running(CONCH_SERVER__WRITE_TIMEOUT="1s"), Wire(conch.url, receive_buffer=4096) as wire:
        wire.request("POST", PATH, script("x" * 6_000_000, *["y"] * 2000, stream=True, pace_ms=5), **bearer(key))
        assert wire.answer_head()[0] == 200
        await_true(lambda: model.since("cancelled") >= 1)
    assert "Traceback" not in "".join(conch.log)


def _listens(conch: Conch) -> bool:
    try:
        Wire(conch.url).close()
    except ConnectionRefusedError:
        return False
    return True


# Comments while nothing flows ---------------------------------------------------------------------


@pytest.fixture
async def inside(conch: Conch, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """The port of a gateway in the test's own loop, which sends a comment after each 0.1 s of silence."""
    monkeypatch.setattr(lifetime, "KEEP_ALIVE_EVERY", 0.1)
    config = load(conch.config, variables={})
    application, http = build(config), configured(config.server)
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            interface="asgi3",
            port=0,
            http=http,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
        )
    )
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


async def until(condition: Callable[[], bool]) -> None:
    """Look until it holds, and let the loop run meanwhile."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is looked at sets no event
            await asyncio.sleep(0.01)


async def exchange(port: int, key: str, body: bytes) -> bytes:
    """All that comes back on a connection that is then closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head("POST", PATH, "x", len(body), connection="close", **bearer(key)) + body)
    try:
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("how", [{"wait_ms": 350}, {"pace_ms": 350}], ids=["before the first word", "between words"])
async def test_comments(inside: int, key: str, how: dict[str, Any]) -> None:
    answer = await exchange(inside, key, script("a", "b", stream=True, **how))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert 2 <= answer.count(b": keep-alive\n\n") <= 4
    assert answer.count(b"data: [DONE]") == 1


async def test_no_comments_in_an_answer_that_is_not_streamed(inside: int, key: str) -> None:
    answer = await exchange(inside, key, script("a", wait_ms=300))
    assert b"keep-alive" not in answer
    assert b'"content":"a"' in answer


async def test_an_error_after_comments_is_a_frame(inside: int, key: str) -> None:
    answer = await exchange(inside, key, script("a", stream=True, wait_ms=300, fail_after=0))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"data: [DONE]" not in answer
    assert b'"code":"upstream_error"' in answer.split(b"data: ")[-1]


async def test_comments_race_with_the_end(
    inside: int, key: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment falls due at any moment of an answer, its last and its error included: never after its end."""
    monkeypatch.setattr(lifetime, "KEEP_ALIVE_EVERY", 0.0005)
    bodies = [script("a", "b", stream=True, pace_ms=2, fail_after=count) for count in (None, 1, 0)]
    for _ in range(20):
        for answer in await asyncio.gather(*(exchange(inside, key, body) for body in bodies)):
            assert answer.endswith(b"\r\n0\r\n\r\n") or b"HTTP/1.1 502" in answer
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_leaving_leaves_no_task(inside: int, key: str, model: Model) -> None:
    await exchange(inside, key, chat("x"))
    tasks = len(asyncio.all_tasks())
    body = script(*ENDLESS[:500], stream=True, pace_ms=10)
    for _ in range(50):
        reader, writer = await asyncio.open_connection("127.0.0.1", inside)
        writer.write(head("POST", PATH, "x", len(body), **bearer(key)) + body)
        await reader.readuntil(b'"content":"x"')
        writer.transport.abort()
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    await until(lambda: model.since("cancelled") == 50)
