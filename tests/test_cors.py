"""Browsers: no page may call unless it is named, preflights ask nobody, and never with credentials."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from config import ConfigError, load
from scripts.triton import Triton
from tests.gateway import Conch
from tests.raw import Answer, Wire, bearer, chat

PAGE = "https://app.example.com"
PATH = "/v1/chat/completions"
ASKS = {
    "access_control_request_method": "POST",
    "access_control_request_headers": "authorization, content-type, x-stainless-os",
}
TOKEN = {"CONCH_ADMIN_TOKEN": "x" * 32}


@pytest.fixture(scope="module")
def named(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conch]:
    """A gateway that one page may call."""
    conch = Conch(tmp_path_factory.mktemp("cors"), triton.url, grpc=triton.grpc_url)
    conch.workspace("acme")
    with conch.running(CONCH_SERVER__CORS_ORIGINS=f'["{PAGE}", "tauri://localhost"]', **TOKEN):
        yield conch


@pytest.fixture(scope="module")
def key_of_named(named: Conch) -> str:
    return named.key("acme")


def ask(conch: Conch, method: str, path: str, body: bytes = b"", /, **headers: str) -> Answer:
    with Wire(conch.url) as wire:
        wire.request(method, path, body, **headers)
        return wire.answer(method)


def allows(answer: Answer) -> set[str]:
    """The headers by which it allows anything."""
    return {name for name in answer.headers if name.startswith("access-control-")}


@pytest.mark.parametrize("path", [PATH, "/v1/models", "/v1/nothing", "/healthz"])
def test_off_by_default(conch: Conch, key: str, path: str) -> None:
    assert not allows(ask(conch, "OPTIONS", path, origin=PAGE, **ASKS))
    got = ask(conch, "GET", path, origin=PAGE, **bearer(key))
    assert not allows(got)
    assert "vary" not in got.headers
    assert ask(conch, "OPTIONS", PATH, origin=PAGE, **ASKS).status == 405


@pytest.mark.parametrize("origin", [PAGE, "tauri://localhost"])
def test_a_named_page(named: Conch, key_of_named: str, origin: str) -> None:
    for body, status in ((chat("hi"), 200), (chat("hi", stream=True), 200), (b"{", 400)):
        answer = ask(named, "POST", PATH, body, origin=origin, **bearer(key_of_named))
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["vary"] == "origin"
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after", "x-ratelimit-remaining", "x-ratelimit-tier"} <= set(exposed)
        assert "access-control-allow-credentials" not in answer.headers
    stranger = ask(named, "POST", PATH, b"{}", origin=origin)
    assert stranger.status == 401
    assert stranger.headers["access-control-allow-origin"] == origin, "so that a page can tell why"


@pytest.mark.parametrize("origin", ["https://evil.example.com", "http://app.example.com", f"{PAGE}.evil.org", "null"])
def test_another_page(named: Conch, key_of_named: str, origin: str) -> None:
    answer = ask(named, "GET", "/v1/models", origin=origin, **bearer(key_of_named))
    assert not allows(answer)
    assert answer.headers["vary"] == "origin"
    refused = ask(named, "OPTIONS", PATH, origin=origin, **ASKS)
    assert refused.status == 405
    assert not allows(refused)


def test_a_preflight_asks_nobody(named: Conch) -> None:
    """Neither a key nor the store: it is answered while that is locked for everyone."""
    with closing(sqlite3.connect(named.store, isolation_level=None)) as other, Wire(named.url) as wire:
        other.execute("BEGIN EXCLUSIVE")
        for path in (PATH, "/api/v1/pipe_support/chat/completions", "/v1/models"):
            wire.request("OPTIONS", path, origin=PAGE, **ASKS)
            answer = wire.answer()
            assert (answer.status, answer.body) == (200, b"")
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert answer.headers["access-control-allow-methods"] == "GET, POST, DELETE"
            assert answer.headers["access-control-allow-headers"] == ASKS["access_control_request_headers"]
            assert int(answer.headers["access-control-max-age"]) > 0
            assert "access-control-allow-credentials" not in answer.headers
            assert float(answer.headers["server-timing"].split("dur=")[1].split(",")[0]) < 100


@pytest.mark.parametrize("wanted", ["x\t", "x;y", "x" * 3000, "\xe9"])
def test_odd_headers_are_not_allowed(named: Conch, wanted: str) -> None:
    with Wire(named.url) as wire:
        head = f"OPTIONS {PATH} HTTP/1.1\r\nhost: x\r\norigin: {PAGE}\r\naccess-control-request-method: POST\r\n"
        wire.send(f"{head}access-control-request-headers: a{wanted}b\r\n\r\n".encode("latin-1"))
        assert "access-control-allow-headers" not in wire.answer().headers


def test_not_for_the_operator(named: Conch) -> None:
    for path in ("/admin/keys", "/healthz"):
        assert not allows(ask(named, "OPTIONS", path, origin=PAGE, **ASKS))
        assert not allows(ask(named, "GET", path, origin=PAGE, **bearer(TOKEN["CONCH_ADMIN_TOKEN"])))


def test_an_options_that_is_no_preflight(named: Conch) -> None:
    assert ask(named, "OPTIONS", PATH, origin=PAGE).status == 405


def test_all_pages(triton: Triton, conch: Conch, tmp_path_factory: pytest.TempPathFactory) -> None:
    own = Conch(tmp_path_factory.mktemp("all"), triton.url)
    with own.running(CONCH_SERVER__CORS_ORIGINS='["*"]'):
        answer = ask(own, "OPTIONS", PATH, origin="https://any.example.org", **ASKS)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
        assert ask(own, "GET", "/v1/models").headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "origins", ['["app.example.com"]', f'["{PAGE}/"]', f'["{PAGE}/x"]', f'["*", "{PAGE}"]', '["https://*.a.org"]']
)
def test_what_is_no_origin(conch: Conch, origins: str) -> None:
    with pytest.raises(ConfigError, match="cors_origins: "):
        load(conch.config, variables={"CONCH_SERVER__CORS_ORIGINS": origins})


def test_no_answer_is_guessed_at(conch: Conch, key: str) -> None:
    """x-content-type-options, also where the request was refused before anybody read it."""
    for path in ("/healthz", "/v1/models", "/v1/nothing"):
        assert ask(conch, "GET", path, **bearer(key)).headers["x-content-type-options"] == "nosniff"
    with Wire(conch.url) as wire:
        wire.send(b"garbage\r\n\r\n")
        assert wire.answer().headers["x-content-type-options"] == "nosniff"
