"""Several workers on one port: replaced when they die, drained when told, never orphans, and exact together."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from handlers.ops.workers import PAUSES, _stand_in
from scripts.triton import Triton
from tests.gateway import ROOT, Conch
from tests.priced import CONFIG, NANO, Books, open_books, started
from tests.raw import Answer, Wire, await_true, bearer, chat, quiet, script

CHAT = "/v1/chat/completions"
TWO = {"CONCH_SERVER__WORKERS": "2"}
LISTENING = "0A"  # in /proc/net/tcp
ENDLESS = ["x"] * 2_000


@pytest.fixture(scope="module")
def shop(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conch]:
    """A gateway of two workers, whose models have prices."""
    conch = Conch(tmp_path_factory.mktemp("workers"), triton.url, CONFIG, grpc=triton.grpc_url)
    conch.workspace("acme")
    with conch.running(**TWO, CONCH_SERVER__HEADER_TIMEOUT="30s"):
        yield conch
        quiet(conch, conch.key("acme"))


@pytest.fixture(scope="module")
async def books(shop: Conch) -> AsyncIterator[Books]:
    async with open_books(shop) as books:
        yield books


@pytest.fixture
def own(triton: Triton, tmp_path: Path) -> tuple[Conch, str]:
    """A gateway of the test's own, not started yet, and a key."""
    conch = Conch(tmp_path, triton.url)
    conch.workspace("acme")
    return conch, conch.key("acme")


# Who is who ---------------------------------------------------------------------------------------


def workers(conch: Conch) -> set[int]:
    """The processes below the gateway's, but for those that have ended."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == conch.pid and state != "Z":
                found.add(int(entry.parent.name))
    return found


def worker_of(conch: Conch, wire: Wire) -> int:
    """The one that has this connection; 0 while none has accepted it."""
    here, there = (f":{port:04X}" for port in (urlsplit(conch.url).port, wire.socket.getsockname()[1]))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(here) and row[2].endswith(there)}
    for pid in workers(conch):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(entry.readlink()) in sockets:
                    return pid
    return 0


def listeners(conch: Conch) -> int:
    """The sockets that take connections to its port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{urlsplit(conch.url).port:04X}") and row[3] == LISTENING for row in rows)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def streams(conch: Conch, key: str, stack: contextlib.ExitStack, pieces: list[str]) -> dict[int, Wire]:
    """A stream that has said its first word, in each worker."""
    found: dict[int, Wire] = {}
    while len(found) < 2:
        wire = stack.enter_context(Wire(conch.url))
        wire.request("POST", CHAT, script(*pieces, stream=True, pace_ms=20), **bearer(key))
        assert wire.answer_head()[0] == 200
        assert b'"content":"' in wire.chunk()
        found.setdefault(worker_of(conch, wire), wire)
    return found


def healthy(conch: Conch) -> bool:
    with Wire(conch.url) as wire:
        wire.request("GET", "/healthz")
        return wire.answer().status == 200


# A worker that dies -------------------------------------------------------------------------------


def test_a_dead_worker_is_replaced_and_requests_go_on(shop: Conch) -> None:
    key, before = shop.key("acme"), workers(shop)
    assert len(before) == 2
    with contextlib.ExitStack() as stack:
        dying, other = streams(shop, key, stack, ["x"] * 50).items()
        os.kill(dying[0], signal.SIGKILL)
        assert all(healthy(shop) for _ in range(60)), "nobody is refused, not even now"
        await_true(lambda: not lives(dying[0]))
        await_true(lambda: len(workers(shop)) == 2)
        assert workers(shop) & before == {other[0]}
        assert b"".join(iter(other[1].chunk, b"")).endswith(b"data: [DONE]\n\n")
    replaced = f"worker {dying[0]} was ended by SIGKILL; another takes its place\n"
    await_true(lambda: sum(line.endswith(replaced) for line in shop.log) == 1)
    (new,) = workers(shop) - before
    await_true(lambda: serves(shop, new))


def serves(conch: Conch, pid: int) -> bool:
    with Wire(conch.url) as wire:
        wire.request("GET", "/healthz")
        assert wire.answer().status == 200
        return worker_of(conch, wire) == pid


def test_a_worker_that_is_told_to_stop_drains_and_is_replaced(own: tuple[Conch, str]) -> None:
    conch, key = own
    with conch.running(**TWO), contextlib.ExitStack() as stack:
        leaving, other = streams(conch, key, stack, ["x"] * 50).items()
        os.kill(leaving[0], signal.SIGTERM)
        await_true(lambda: listeners(conch) == 1)
        assert all(healthy(conch) for _ in range(30)), "none waits for who is leaving"
        for wire in (leaving[1], other[1]):
            assert b"".join(iter(wire.chunk, b"")).endswith(b"data: [DONE]\n\n")
        await_true(lambda: len(workers(conch) - {leaving[0]}) == 2)
        await_true(lambda: serves(conch, *(workers(conch) - {leaving[0], other[0]})))


FRAGILE = """
import sys
from pathlib import Path
import app
build, broken = app.build, Path(sys.argv.pop())
def fragile(*given):
    if broken.exists():
        raise RuntimeError("It is broken.")
    return build(*given)
app.build = fragile
app.main()
"""


@pytest.fixture
def fragile(own: tuple[Conch, str], tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a gateway of two workers, none of which can start while the file `broken` exists."""
    with contextlib.ExitStack() as stack:

        def start() -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", FRAGILE, "serve", "--config", str(own[0].config), str(tmp_path / "broken")],
                cwd=ROOT,
                env={"CONCH_STORE__URL": f"sqlite:{own[0].store}", **TWO},
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate)
            stack.callback(process.terminate)
            return process

        yield start


def test_a_crash_loop_ends_with_one_sentence(fragile: Callable[[], Any], tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    process = fragile()
    _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    assert log.splitlines()[-1] == (
        "conch: workers do not stay alive: the last ended with status 1; what it logged says why."
    )
    assert "listening" not in log
    assert len(PAUSES) <= log.count("RuntimeError: It is broken.") <= 2 * len(PAUSES)
    assert log.index("takes its place\n") < log.index("takes its place in 0.1 s\n") < log.index("in 2 s\n")


def test_while_one_serves_the_other_is_tried_again(own: tuple[Conch, str], fragile: Callable[[], Any]) -> None:
    conch, _ = own
    process = fragile()
    conch.pid = process.pid
    conch._await_address(process.stderr)
    broken = conch.config.with_name("broken")
    broken.touch()
    os.kill(min(workers(conch)), signal.SIGKILL)
    for line in process.stderr:
        if "takes its place in 0.5 s" in line:
            break
    assert all(healthy(conch) for _ in range(10))
    broken.unlink()
    await_true(lambda: len(workers(conch)) == 2)


# The end ------------------------------------------------------------------------------------------


def test_sigterm_drains_every_worker(own: tuple[Conch, str]) -> None:
    conch, key = own
    with conch.running(**TWO), contextlib.ExitStack() as stack:  # running() asserts the exit status 0
        both = streams(conch, key, stack, ["x"] * 50)
        os.kill(conch.pid, signal.SIGTERM)
        await_true(lambda: not listens(conch))
        socket.create_server(("127.0.0.1", urlsplit(conch.url).port)).close()  # a successor could begin
        for wire in both.values():
            assert b"".join(iter(wire.chunk, b"")).endswith(b"data: [DONE]\n\n")
        await_true(lambda: not any(map(lives, both)))
    assert "Traceback" not in "".join(conch.log)
    assert "while it was to stop" not in "".join(conch.log)


def listens(conch: Conch) -> bool:
    try:
        Wire(conch.url).close()
    except ConnectionRefusedError:
        return False
    return True


def test_the_second_sigint_hurries(own: tuple[Conch, str]) -> None:
    conch, key = own
    with conch.running(**TWO), contextlib.ExitStack() as stack:
        both = streams(conch, key, stack, ENDLESS)
        assert {os.getsid(pid) for pid in both} == set(both), "Ctrl-C must not reach them twice"
        os.kill(conch.pid, signal.SIGINT)
        await_true(lambda: not listens(conch))
        assert all(b'"content":"' in wire.chunk() for wire in both.values())
        os.kill(conch.pid, signal.SIGINT)
        await_true(lambda: not lives(conch.pid))
        assert not any(map(lives, both))


def test_no_worker_outlives_its_parent(own: tuple[Conch, str]) -> None:
    conch, _ = own
    conch.status = -signal.SIGKILL
    with conch.running(**TWO):
        both = workers(conch)
        assert len(both) == 2
        os.kill(conch.pid, signal.SIGKILL)
        try:
            await_true(lambda: not any(map(lives, both)))
        finally:
            for pid in filter(lives, both):  # they would keep the log open, and this test waiting
                os.kill(pid, signal.SIGKILL)


def test_sigterm_before_all_have_begun(fragile: Callable[[], Any], own: tuple[Conch, str]) -> None:
    process = fragile()
    own[0].pid = process.pid
    await_true(lambda: workers(own[0]))
    process.send_signal(signal.SIGTERM)
    try:
        _, log = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert "Traceback" not in log


# One port -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", ["1", "2"])
def test_another_gateway_is_refused(shop: Conch, own: tuple[Conch, str], count: str) -> None:
    port = urlsplit(shop.url).port
    done = subprocess.run(
        [sys.executable, "app.py", "serve", "--config", str(own[0].config)],
        cwd=ROOT,
        env={"CONCH_SERVER__PORT": str(port), "CONCH_SERVER__WORKERS": count},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use)" in done.stderr
    assert healthy(shop)


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_is_held_also_while_no_worker_listens(family: socket.AddressFamily, host: str) -> None:
    first = socket.create_server((host, 0), family=family)
    address = first.getsockname()
    with socket.create_connection(address[:2]), first.accept()[0]:
        pass  # a closed connection, which keeps the address in use for a while
    with _stand_in(first):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address[:2])
        with pytest.raises(OSError, match="in use"):
            socket.create_server(address, family=family)
        for _ in range(2):
            socket.create_server(address, family=family, reuse_port=True).close()
    socket.create_server(address, family=family).close()


def test_it_is_told_once(shop: Conch) -> None:
    assert sum(bool(re.search("listening on http://127.0.0.1:[0-9]+$", line)) for line in shop.log) == 1


# Exact together -----------------------------------------------------------------------------------


def at_once(conch: Conch, key: str, count: int, body: bytes, **headers: str) -> list[Answer]:
    """So many requests, all sent before the first answer is read, and to both workers."""
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(conch.url, timeout=30)) for _ in range(count)]
        for wire in wires:
            wire.request("POST", CHAT, body, **bearer(key), **headers)
        answers = [wire.answer() for wire in wires]
        spread = Counter(worker_of(conch, wire) for wire in wires[:40])
        assert len(spread) == min(2, count), spread
    return answers


def test_a_bucket_of_two_workers(shop: Conch) -> None:
    key = shop.key("acme", "--limit", "50")
    began = time.monotonic()
    answers = at_once(shop, key, 200, chat("hello", "vllm"))
    refilled = int((time.monotonic() - began) * 50 / 60)
    statuses = Counter(answer.status for answer in answers)
    assert statuses.keys() == {200, 429}
    assert 50 <= statuses[200] <= 50 + refilled


async def test_credits_of_two_workers(shop: Conch, books: Books) -> None:
    """A dollar each: fifty of two hundred can pay."""
    customer = await books.customer("50")
    answers = at_once(shop, customer.key, 200, chat('script: {"pieces": ["a"]}', "coin", max_tokens=1))
    assert Counter(answer.status for answer in answers) == {200: 50, 402: 150}
    account = await books.account(customer)
    assert (account.credits, account.held, account.spent) == (0, 0, 50 * NANO)
    assert len(await books.usage(customer)) == 50


async def test_an_idempotency_key_of_two_workers(shop: Conch, books: Books, triton: Triton) -> None:
    """One runs; the others get its answer, or are told that it is under way."""
    customer, before = await books.customer(), started(triton)
    body = script("a", "b", model="priced", wait_ms=300)
    answers = at_once(shop, customer.key, 20, body, idempotency_key=f"key-{uuid4()}")
    assert {answer.status for answer in answers} <= {200, 409}
    assert len({answer.body for answer in answers if answer.status == 200}) == 1
    assert started(triton) - before == 1
    assert len(await books.usage(customer)) == 1
