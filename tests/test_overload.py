"""More than it can take, or slower than it waits: refused quickly and told when to come again, and alive after it."""

import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.triton import Triton
from tests.gateway import Conch
from tests.observed import Model, Process
from tests.raw import Answer, Wire, await_true, bearer, chat, head, script

PATH = "/v1/chat/completions"
REQUESTS = 4
IDLE = 2_000
TIGHT = {
    "CONCH_SERVER__MAX_REQUESTS": str(REQUESTS),
    "CONCH_SERVER__WRITE_TIMEOUT": "1s",
    "CONCH_SERVER__REQUEST_TIMEOUT": "1500ms",
    "CONCH_SERVER__BODY_TIMEOUT": "1s",
}


@pytest.fixture(scope="module")
def tight(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Conch, str]]:
    """A gateway with small limits, and a key."""
    conch = Conch(tmp_path_factory.mktemp("tight"), triton.url, grpc=triton.grpc_url)
    conch.workspace("acme")
    key = conch.key("acme")
    with conch.running(**TIGHT):
        yield conch, key
    assert "Traceback" not in "".join(conch.log)


@pytest.fixture
def own(triton: Triton, tmp_path: Path) -> Conch:
    """A gateway of the test's own, not started yet."""
    conch = Conch(tmp_path, triton.url, grpc=triton.grpc_url)
    conch.workspace("acme")
    return conch


def ask(conch: Conch, method: str, path: str, body: bytes = b"", /, **headers: str) -> Answer:
    with Wire(conch.url) as wire:
        wire.request(method, path, body, **headers)
        return wire.answer()


def health(wire: Wire) -> bool:
    wire.request("GET", "/healthz")
    return wire.answer().status == 200


def silent(wire: Wire, seconds: float) -> bool:
    """Whether nothing comes for so long, not even the end."""
    wire.socket.settimeout(seconds)
    try:
        wire.socket.recv(1)
    except TimeoutError:
        wire.socket.settimeout(10)
        return True
    return False


def overloaded(answer: Answer) -> None:
    assert answer.error(503)["code"] == "overloaded"
    assert answer.headers["retry-after"] == "1"


# Requests -----------------------------------------------------------------------------------------


def test_more_requests_than_there_may_be(tight: tuple[Conch, str]) -> None:
    """Refused before the key is looked at: a key that there is none of is not told so."""
    conch, key = tight
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(Wire(conch.url)) for _ in range(REQUESTS)]
        for wire in streams:
            wire.request("POST", PATH, script(*"x" * 2_000, stream=True, pace_ms=5), **bearer(key))
            assert wire.answer_head()[0] == 200
        other = stack.enter_context(Wire(conch.url))
        for secret in (key, "rp_live_" + "0" * 64):
            other.request("POST", PATH, chat("x"), **bearer(secret))
            refusal = other.answer()
            overloaded(refusal)
            assert "x-ratelimit-limit" not in refusal.headers
        assert health(other), "the process is alive, and says so on the same connection"
        assert ask(conch, "GET", "/readyz").status == 200
        streams[0].close()
        await_true(lambda: ask(conch, "POST", PATH, chat("x"), **bearer(key)).status == 200)


# Connections --------------------------------------------------------------------------------------


def test_more_connections_than_there_may_be(own: Conch) -> None:
    with own.running(CONCH_SERVER__MAX_CONNECTIONS="10"), contextlib.ExitStack() as stack:
        kept = [stack.enter_context(Wire(own.url)) for _ in range(10)]
        assert all(map(health, kept))
        with Wire(own.url) as crowded:
            refusal = crowded.answer()
            overloaded(refusal)
            assert refusal.headers["connection"] == "close"
            assert crowded.ended()
        flood = [stack.enter_context(Wire(own.url)) for _ in range(200)]
        ends = [ended(wire) for wire in flood]
        assert True in ends, "beyond some, connections are reset"
        assert all(map(health, kept)), "those that are open go on"
        kept.pop().close()
        for wire in flood:
            wire.close()
        await_true(lambda: serves(own))


def ended(wire: Wire) -> bool:
    """Whether it was reset without a word."""
    try:
        return not wire.rest()
    except ConnectionResetError:
        return True


def serves(conch: Conch) -> bool:
    try:
        return ask(conch, "GET", "/healthz").status == 200
    except (OSError, EOFError):
        return False


def test_no_file_is_left(own: Conch, triton: Triton) -> None:
    """The kernel gives no more files: neither a busy loop nor an end, and all is well when there are some again."""
    key = own.key("acme")
    with own.running() as conch, contextlib.ExitStack() as stack:
        process = Process(conch, triton)
        kept = stack.enter_context(Wire(conch.url))
        kept.request("POST", PATH, chat("x"), **bearer(key))
        assert kept.answer().status == 200
        limits = resource.prlimit(conch.pid, resource.RLIMIT_NOFILE)
        most = 1 + max(int(entry.name) for entry in (process.folder / "fd").iterdir())
        resource.prlimit(conch.pid, resource.RLIMIT_NOFILE, (most + 5, limits[1]))
        waiting = [stack.enter_context(Wire(conch.url)) for _ in range(50)]
        await_true(lambda: process.files + len(process.upstream()) >= most)
        before, since = process.busy, time.monotonic()
        for _ in range(20):
            kept.request("POST", PATH, chat("x"), **bearer(key))
            assert kept.answer().status == 200, "a request needs no new file"
        assert silent(kept, 0.7)
        assert process.busy - before < 0.5 * (time.monotonic() - since), "it does not spin"
        for wire in waiting:
            wire.close()
        resource.prlimit(conch.pid, resource.RLIMIT_NOFILE, limits)
        await_true(lambda: serves(conch))
    log = "".join(own.log)
    assert "Traceback" not in log, log


def test_idle_connections_cost_little(own: Conch, triton: Triton) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = IDLE + 200
    if soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            pytest.skip(f"this user may open {hard} files only")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    with own.running() as conch, contextlib.ExitStack() as stack:
        process = Process(conch, triton)
        with Wire(conch.url) as wire:
            assert all(health(wire) for _ in range(50))
        before = process.resident
        idle = [stack.enter_context(Wire(conch.url)) for _ in range(IDLE)]
        assert all(map(health, idle))
        each = (process.resident - before) / IDLE
        spent = process.busy
        assert silent(idle[0], 1.0)
        assert process.busy - spent < 0.2, "they cost no time"
        assert all(map(health, idle[::100])), "each can be used again"
    assert each < 24 << 10, f"{each / 1024:.1f} KiB of memory for an idle connection"


# Time ---------------------------------------------------------------------------------------------


def test_a_body_that_drips(tight: tuple[Conch, str]) -> None:
    """Never silent for long, and yet over in time."""
    conch, key = tight
    started = time.monotonic()
    with Wire(conch.url) as wire:
        wire.send(head("POST", PATH, wire.host, 100_000, **bearer(key)))
        wire.socket.settimeout(0.2)
        while True:
            wire.send(b" ")
            with contextlib.suppress(TimeoutError):
                if wire.socket.recv(12, socket.MSG_PEEK):
                    break
            assert time.monotonic() - started < 10
        wire.socket.settimeout(10)
        assert wire.answer().error(408)["code"] == "request_timeout"
    assert 1.3 < time.monotonic() - started < 4


def test_a_reader_that_stops(tight: tuple[Conch, str], triton: Triton) -> None:
    """What is kept for it is small; when its time is over it is cut off, and the model stops."""
    conch, key = tight
    model, process = Model(triton), Process(conch, triton)
    said = 400
    with Wire(conch.url, receive_buffer=4096) as wire:
        body = script(*["x" * 20_000] * said, stream=True, pace_ms=10)
        wire.request("POST", PATH, body, **bearer(key))
        assert wire.answer_head()[0] == 200
        wire.chunk()
        consumed, resident = process.consumed, process.resident
        await_true(lambda: model.since("cancelled") == 1, 20)
        assert process.consumed - consumed < 20_000 * said * 0.75
        assert process.resident - resident < 2 << 20
        with pytest.raises((ConnectionResetError, EOFError, ValueError)):  # what was on its way, but not the end
            list(iter(wire.chunk, b""))
    assert model.since("finished") == 0
    assert serves(conch)


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_reader_of_a_whole_answer_that_stops(tight: tuple[Conch, str], triton: Triton, connection: str) -> None:
    """What is left of the answer does not wait for ever; who only reads slowly gets all of it."""
    conch, key = tight
    process, size = Process(conch, triton), 12_000_000
    body = script(*["x" * 4_000_000] * 3)
    with Wire(conch.url, receive_buffer=4096) as stopped, Wire(conch.url, receive_buffer=1 << 16) as slow:
        for wire in (stopped, slow):
            wire.request("POST", PATH, body, **bearer(key), connection=connection)
        address = f"0100007F:{stopped.socket.getsockname()[1]:04X}"
        started = time.monotonic()
        got = slow.read(1)
        while address in process.clients():
            assert time.monotonic() - started < 15
            got += slow.read(150_000)
            time.sleep(0.05)
        assert len(got) < size / 2, "the one that reads was still reading"
        assert time.monotonic() - started > 1
        assert len(got + slow.read(size - len(got))) == size
    assert serves(conch)
