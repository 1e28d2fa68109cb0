"""A store that takes nothing, a gateway that is stopping, a clock that jumps: told clearly, and over by itself."""

import os
import resource
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from scripts.triton import Triton
from store import Clock
from tests.gateway import Conch
from tests.raw import Answer, Wire, await_true, bearer, chat, script
from tests.test_workers import listens

PATH = "/v1/chat/completions"
DAY = 86_400_000_000_000


@pytest.fixture
def own(triton: Triton, tmp_path: Path) -> Conch:
    """A gateway of the test's own, not started yet."""
    conch = Conch(tmp_path, triton.url, grpc=triton.grpc_url)
    conch.workspace("acme")
    return conch


def ask(conch: Conch, path: str, body: bytes = b"", /, **headers: str) -> Answer:
    with Wire(conch.url) as wire:
        wire.request("POST" if body else "GET", path, body, **headers)
        return wire.answer()


# The store ----------------------------------------------------------------------------------------


@contextmanager
def full(conch: Conch) -> Iterator[None]:
    """No file of the gateway's takes a byte: what a full disk, or a quota, does to it."""
    limits = resource.prlimit(conch.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(conch.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    yield
    resource.prlimit(conch.pid, resource.RLIMIT_FSIZE, limits)


@contextmanager
def locked(conch: Conch) -> Iterator[None]:
    """By another program, for good."""
    with closing(sqlite3.connect(conch.store, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


@contextmanager
def read_only(conch: Conch) -> Iterator[None]:
    """No file of the store's may be written, those that are open included: as on a file system that the kernel has
    turned read-only after an error. By hand none with open files can be remounted so; immutable files are the same."""
    files = list(conch.store.parent.glob(f"{conch.store.name}*"))
    if subprocess.run(["chattr", "+i", *files], capture_output=True, check=False).returncode:
        pytest.skip("needs root, and a file system that knows chattr +i")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", *files], check=True)


@pytest.mark.parametrize("trouble", [full, read_only, locked])
def test_a_store_that_takes_nothing(own: Conch, trouble: object) -> None:
    assert callable(trouble)
    key = own.key("acme")
    with own.running():
        assert ask(own, PATH, chat("x"), **bearer(key)).status == 200
        assert ask(own, "/readyz").status == 200
        with trouble(own):
            started = time.monotonic()
            for path, body in (
                (PATH, chat("x")),
                (PATH, script("x", stream=True)),
                ("/v1/models", b""),
                ("/readyz", b""),
            ):
                answer = ask(own, path, body, **bearer(key))
                assert answer.error(503)["code"] == "store_unavailable"
                assert answer.headers["retry-after"] == "1"
            assert time.monotonic() - started < 4 * 4
            assert ask(own, "/healthz").status == 200
        await_true(lambda: ask(own, "/readyz").status == 200)
        assert ask(own, PATH, chat("x"), **bearer(key)).status == 200, "nobody had to restart it"
    assert "Traceback" not in "".join(own.log)


# Stopping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_says_that_it_is_stopping_before_it_does(own: Conch, workers: str) -> None:
    """So that a load balancer sends no more, while what it has sent meanwhile is answered."""
    key = own.key("acme")
    with own.running(CONCH_SERVER__DRAIN_DELAY="2s", CONCH_SERVER__WORKERS=workers):
        assert ask(own, "/readyz").status == 200
        stopped = time.monotonic()
        os.kill(own.pid, signal.SIGTERM)
        await_true(lambda: ask(own, "/readyz").status == 503)
        assert ask(own, "/readyz").error(503)["code"] == "draining"
        assert ask(own, "/healthz").status == 200
        assert ask(own, PATH, chat("x"), **bearer(key)).status == 200
        await_true(lambda: not listens(own))
        assert 1.8 < time.monotonic() - stopped < 8


# The clock ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_the_machines_clock_jumps(monkeypatch: pytest.MonkeyPatch, jump: int) -> None:
    """Budgets go by time that passes: a day more or less on the wall neither grants nor steals."""
    clock, real = Clock(), time.time_ns
    before = clock()
    monkeypatch.setattr(time, "time_ns", lambda: real() + jump)
    assert 0 <= clock() - before < 5_000_000
    assert abs(clock.wall() - before) > DAY // 2_000, "what is told of other processes goes by the wall"
