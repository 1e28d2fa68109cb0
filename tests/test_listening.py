"""Where it listens: an operator's port of its own, TLS, sockets from systemd; with one worker and with two."""

import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from openai import DefaultHttpxClient, OpenAI

from config import ConfigError, load
from scripts.triton import Triton
from tests.gateway import ROOT, Conch
from tests.raw import Wire, bearer, chat

TOKEN = "t" * 40
ADMIN = re.compile(r"/admin is answered on (https?://\S+)")
# What systemd does before it runs a service: the sockets from 3 on, and whom they are for.
HANDED = 'n=3; for fd in $FDS; do eval "exec $n<&$fd"; n=$((n+1)); done; LISTEN_PID=$$ exec "$@"'


@pytest.fixture
def own(triton: Triton, tmp_path: Path) -> Conch:
    """A gateway of the test's own, not started yet."""
    conch = Conch(tmp_path, triton.url, grpc=triton.grpc_url)
    conch.workspace("acme")
    return conch


def get(url: str, path: str, method: str = "GET", **headers: str) -> int:
    with Wire(url) as wire:
        wire.request(method, path, **headers)
        return wire.answer(method).status


# The operator's port ------------------------------------------------------------------------------


def admin_of(conch: Conch) -> str:
    """Its address, which is told before any other request is served."""
    found = [match[1] for line in conch.log if (match := ADMIN.search(line))]
    assert len(found) == 1, conch.log
    return found[0]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_admin_on_a_port_of_its_own(own: Conch, workers: str) -> None:
    given = {"CONCH_ADMIN_TOKEN": TOKEN, "CONCH_SERVER__WORKERS": workers, "CONCH_SERVER__ADMIN_LISTEN": "127.0.0.1:0"}
    with own.running(**given):
        while not any(ADMIN.search(line) for line in own.log):
            assert get(own.url, "/healthz") == 200
        inside = admin_of(own)
        assert inside != own.url
        for method in ("GET", "POST", "PUT", "OPTIONS", "HEAD"):
            for path in ("/admin/workspaces", "/admin/keys", "/admin", "/%61dmin/keys", "/dashboard", "/metrics"):
                assert get(own.url, path, method, **bearer(TOKEN)) == 404, "as if there were no such thing"
        for path in ("/admin/workspaces", "/metrics", "/healthz", "/readyz"):
            assert get(inside, path, **bearer(TOKEN)) == 200
        for path in ("/admin/workspaces", "/metrics"):
            assert get(inside, path) == 401
        for path in ("/healthz", "/readyz"):
            assert get(own.url, path) == 200
        assert get(own.url, "/v1/models", **bearer(own.key("acme"))) == 200


def test_a_port_that_is_taken(own: Conch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = start(own, CONCH_SERVER__ADMIN_LISTEN=address)
    told = f"conch: cannot listen on {address} (Address already in use): set CONCH_SERVER__ADMIN_LISTEN.\n"
    assert (done.returncode, done.stderr) == (1, told)


@pytest.mark.parametrize("address", ["9090", "localhost", "127.0.0.1:8080", "a b:1", "http://x:1"])
def test_what_is_no_address(conch: Conch, address: str) -> None:
    with pytest.raises(ConfigError, match="admin_listen: "):
        load(conch.config, variables={"CONCH_SERVER__ADMIN_LISTEN": address, "CONCH_SERVER__PORT": "8080"})


def start(conch: Conch, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A start that is to fail."""
    command = [str(ROOT / ".venv/bin/python"), "app.py", "serve", "--config", str(conch.config), *arguments]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=20)


# TLS ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One of our own for localhost, and its key."""
    return issue(tmp_path_factory.mktemp("tls"), "first")


def issue(folder: Path, name: str) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def secured(own: Conch, certificate: tuple[Path, Path]) -> Iterator[Conch]:
    files = {"CONCH_SERVER__SSL_CERTFILE": str(certificate[0]), "CONCH_SERVER__SSL_KEYFILE": str(certificate[1])}
    with own.running(**files):
        yield own


def test_the_sdk_over_tls(secured: Conch, certificate: tuple[Path, Path]) -> None:
    assert secured.url.startswith("https://127.0.0.1:")
    trusted = ssl.create_default_context(cafile=str(certificate[0]))
    trusted.minimum_version = ssl.TLSVersion.TLSv1_3
    ask: Any = [{"role": "user", "content": "hi"}]
    with DefaultHttpxClient(verify=trusted) as http:
        sdk = OpenAI(base_url=f"{secured.url}/v1", api_key=secured.key("acme"), http_client=http, max_retries=0)
        assert sdk.chat.completions.create(model="vllm", messages=ask).choices[0].message.content
        chunks = list(sdk.chat.completions.create(model="vllm", messages=ask, stream=True))
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_who_speaks_no_tls(secured: Conch) -> None:
    with Wire(secured.url) as wire:
        wire.request("GET", "/healthz")
        assert b"200" not in reading(wire)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with Wire(secured.url) as wire, pytest.raises((ssl.SSLError, ConnectionResetError)):
        old.wrap_socket(wire.socket)


def reading(wire: Wire) -> bytes:
    try:
        return wire.rest()
    except ConnectionResetError:
        return b""


def test_garbage_within_tls(secured: Conch, certificate: tuple[Path, Path]) -> None:
    trusted = ssl.create_default_context(cafile=str(certificate[0]))
    with Wire(secured.url) as wire, trusted.wrap_socket(wire.socket, server_hostname="localhost") as inner:
        inner.sendall(b"garbage\r\n\r\n")
        assert inner.recv(12) == b"HTTP/1.1 400"


def test_a_handshake_that_never_ends(secured: Conch) -> None:
    """It has as long as a head."""
    started = time.monotonic()
    with Wire(secured.url) as wire:
        wire.send(b"\x16\x03\x01\x02\x00")
        reading(wire)
    assert 1.8 < time.monotonic() - started < 5


def test_the_flags(own: Conch, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    for files, why in (
        (("missing.pem", "missing.key"), r"missing.pem or missing.key cannot be read \(No such file or directory\)"),
        ((str(certificate[0]), str(issue(tmp_path, "other")[1])), "do not fit: key values mismatch"),
        ((str(certificate[1]), str(certificate[0])), "do not fit: "),
    ):
        done = start(own, "--ssl-certfile", files[0], "--ssl-keyfile", files[1])
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert re.search(r"conch: \[server\] ssl_certfile .*" + why, done.stderr), done.stderr


# Sockets from systemd -----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sockets_that_are_handed_over(own: Conch, workers: str) -> None:
    """Served on, and left listening: who comes while it is away waits for the next one."""
    key = own.key("acme")
    with socket.create_server(("127.0.0.1", 0)) as public, socket.create_server(("127.0.0.1", 0)) as inside:
        own.before = ["/bin/bash", "-c", HANDED, "bash"]
        own.files = (public.fileno(), inside.fileno())
        url, admin = (f"http://127.0.0.1:{each.getsockname()[1]}" for each in (public, inside))
        given = {
            "FDS": f"{public.fileno()} {inside.fileno()}",
            "LISTEN_FDS": "2",
            "LISTEN_FDNAMES": "conch.socket:admin",
            "CONCH_ADMIN_TOKEN": TOKEN,
            "CONCH_SERVER__WORKERS": workers,
        }
        for _ in range(2):
            with Wire(url) as early:
                early.request("POST", "/v1/chat/completions", chat("hi"), **bearer(key))
                with own.running(**given):
                    assert own.url == url
                    assert early.answer().status == 200, "it came before there was a gateway"
                    assert [get(url, "/healthz") for _ in range(20)] == [200] * 20
                    assert get(url, "/admin/keys", **bearer(TOKEN)) == 404
                    assert get(admin, "/admin/keys", **bearer(TOKEN)) == 200


def test_sockets_for_somebody_else(own: Conch) -> None:
    """Of a process before, say: not taken."""
    with own.running(LISTEN_FDS="1", LISTEN_PID="1"):
        assert get(own.url, "/healthz") == 200
