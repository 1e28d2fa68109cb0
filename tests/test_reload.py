"""SIGHUP and `conch reload`: what changes while it serves, in one process and in two; a broken file changes nothing."""

import os
import signal
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.triton import Triton
from tests.gateway import Conch
from tests.observed import Process
from tests.raw import Answer, Wire, await_true, bearer, chat, script
from tests.test_listening import issue
from tests.test_workers import worker_of, workers

PATH = "/v1/chat/completions"
MODEL = """
[[models]]
id = "newcomer"
task = "chat"
upstream = "local"
model = "vllm"
preset = "vllm"
chat.template = "{root}/tests/plain.jinja"
"""
READ, BROKEN = "the settings were read again; ", "the settings are not taken, and nothing has changed: "


@pytest.fixture(params=["1", "2"])
def shop(triton: Triton, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Conch]:
    """A gateway, of one process or of two workers, whose settings may be written anew."""
    conch = Conch(tmp_path, triton.url, grpc=triton.grpc_url)
    conch.workspace("acme", "pro")
    with conch.running(CONCH_SERVER__WORKERS=str(request.param)):
        yield conch
    assert "Traceback" not in "".join(conch.log)


def ask(conch: Conch, path: str, body: bytes = b"", **headers: str) -> Answer:
    with Wire(conch.url) as wire:
        wire.request("POST" if body else "GET", path, body, **headers)
        return wire.answer()


def said(conch: Conch, text: str) -> int:
    return sum(text in line for line in conch.log)


def processes(conch: Conch) -> int:
    return max(1, len(workers(conch)))


def reload(conch: Conch, change: Callable[[str], str]) -> None:
    """Change the file, and wait until every process goes by it."""
    count = said(conch, READ) + processes(conch)
    conch.config.write_text(change(conch.config.read_text()))
    os.kill(conch.pid, signal.SIGHUP)
    await_true(lambda: said(conch, READ) == count)


def added(text: str) -> str:
    root = Path(__file__).resolve().parents[1]
    return text + MODEL.format(root=root)


def everywhere(conch: Conch, check: Callable[[Wire], None]) -> None:
    """By every worker."""
    seen: set[int] = set()
    while len(seen) < processes(conch):
        with Wire(conch.url) as wire:
            check(wire)
            seen.add(worker_of(conch, wire))


def test_models_and_plans(shop: Conch, triton: Triton) -> None:
    key = shop.key("acme")
    assert ask(shop, PATH, chat("x", "newcomer"), **bearer(key)).status == 404
    before = workers(shop)

    def served(wire: Wire) -> None:
        wire.request("POST", PATH, chat("x", "newcomer"), **bearer(key))
        answer = wire.answer()
        assert answer.status == 200
        assert answer.headers["x-ratelimit-limit"] == "700"

    reload(shop, lambda text: "[plans.pro]\ndefault = 700\n" + added(text))
    everywhere(shop, served)

    def gone(wire: Wire) -> None:
        wire.request("POST", PATH, chat("x", "newcomer"), **bearer(key))
        assert wire.answer().status == 404
        wire.request("POST", PATH, b" " * 2_000, **bearer(key))
        assert wire.answer().status == 413

    reload(
        shop, lambda text: text.replace('"newcomer"', '"latecomer"').replace("port = 0", 'port = 0\nmax_body = "1KiB"')
    )
    everywhere(shop, gone)
    assert workers(shop) == before, "no process was replaced"


def test_who_is_under_way_ends_as_it_began(shop: Conch, triton: Triton) -> None:
    """Also when its model is no more; then the connections that only the old settings knew are closed."""
    key = shop.key("acme")
    with Wire(shop.url) as wire:
        wire.request("POST", PATH, script(*"abc" * 200, stream=True, pace_ms=5), **bearer(key))
        assert wire.answer_head()[0] == 200
        wire.chunk()
        reload(
            shop, lambda text: text.replace('id = "vllm"', 'id = "renamed"').replace('chat = "vllm"', 'chat = "bls"')
        )
        assert ask(shop, PATH, chat("x"), **bearer(key)).status == 404
        assert b"".join(iter(wire.chunk, b"")).endswith(b"data: [DONE]\n\n")
    assert ask(shop, PATH, chat("x", "renamed"), **bearer(key)).status == 200


def test_a_hundred_reloads_leave_nothing_behind(triton: Triton, tmp_path: Path) -> None:
    conch = Conch(tmp_path, triton.url, grpc=triton.grpc_url)
    with conch.running():
        process = Process(conch, triton)
        reload(conch, str)
        files, sockets = process.files, len(process.upstream())
        for _ in range(20):
            reload(conch, str)
        await_true(lambda: process.files <= files + 2)
        await_true(lambda: len(process.upstream()) <= 2 * sockets)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text + "[[models", "not valid TOML"),
        (lambda text: text + "[upstreams.x]\nurls = []\n", "Expected `array` of length >= 1"),
        (lambda text: text.replace('preset = "sd-bls"', 'preset = "nothing"'), "there is no preset 'nothing'"),
        (
            lambda text: text.replace("port = 0", 'port = 0\nssl_certfile = "x.pem"'),
            "ssl_certfile: TLS begins and ends",
        ),
    ],
)
def test_a_broken_file(shop: Conch, change: Callable[[str], str], why: str) -> None:
    key = shop.key("acme")
    shop.config.write_text(change(shop.config.read_text()))
    os.kill(shop.pid, signal.SIGHUP)
    await_true(lambda: said(shop, BROKEN))
    assert said(shop, why) == 1, "told once, not by every worker"
    assert said(shop, READ) == 0
    assert ask(shop, PATH, chat("x"), **bearer(key)).status == 200


def test_what_takes_a_restart(shop: Conch) -> None:
    reload(shop, lambda text: added(text).replace("port = 0", "port = 1\nworkers = 7"))
    assert said(shop, "[server] port is another now: that takes a restart; the rest is taken") == 1
    key = shop.key("acme")
    assert ask(shop, PATH, chat("x", "newcomer"), **bearer(key)).status == 200


def test_a_worker_that_dies_later_is_born_with_the_new_ones(triton: Triton, tmp_path: Path) -> None:
    conch = Conch(tmp_path, triton.url)
    conch.workspace("acme")
    key = conch.key("acme")
    with conch.running(CONCH_SERVER__WORKERS="2"):
        reload(conch, added)
        before = workers(conch)
        os.kill(min(before), signal.SIGKILL)
        await_true(lambda: len(workers(conch) | before) == 3)

        def served(wire: Wire) -> None:
            wire.request("POST", PATH, chat("x", "newcomer"), **bearer(key))
            assert wire.answer().status == 200

        everywhere(conch, served)


def test_the_verb(shop: Conch) -> None:
    count = said(shop, READ) + processes(shop)
    assert shop.command("reload", str(shop.pid)) == {"reloading": shop.pid}
    await_true(lambda: said(shop, READ) == count)
    assert "is no gateway that serves" in shop.command("reload", str(os.getpid()), status=1)
    shop.config.write_text(shop.config.read_text() + "[[models")
    assert "not valid TOML" in shop.command("reload", str(shop.pid), status=1)
    assert not said(shop, BROKEN), "it was not even asked"


def test_a_new_certificate(triton: Triton, tmp_path: Path) -> None:
    conch = Conch(tmp_path / "conch", triton.url)
    first, second = issue(tmp_path, "first"), issue(tmp_path, "second")
    served = tmp_path / "cert.pem"

    def put(pair: tuple[Path, Path]) -> None:
        served.write_bytes(b"".join(each.read_bytes() for each in pair))

    def trusts(pair: tuple[Path, Path]) -> bool:
        trusted = ssl.create_default_context(cafile=str(pair[0]))
        with Wire(conch.url) as wire:
            try:
                trusted.wrap_socket(wire.socket, server_hostname="localhost").close()
            except ssl.SSLCertVerificationError:
                return False
        return True

    put(first)
    with conch.running(CONCH_SERVER__SSL_CERTFILE=str(served)):
        assert trusts(first)
        put((first[0], second[1]))
        os.kill(conch.pid, signal.SIGHUP)
        await_true(lambda: said(conch, BROKEN))
        assert trusts(first), "a pair that does not fit changes nothing"
        put(second)
        reload(conch, str)
        assert trusts(second)
        assert not trusts(first)
