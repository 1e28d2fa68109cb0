"""The dashboard's files as a browser gets them: what they weigh, how they are kept, what they may do."""

from collections.abc import Iterator

import pytest

from handlers.ops import dashboard
from scripts.triton import Triton
from tests.gateway import ROOT, Conch
from tests.raw import Answer, Wire

FILES = sorted(
    path.relative_to(dashboard.FOLDER).as_posix()
    for path in dashboard.FOLDER.rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc")
)


@pytest.fixture
def wire(shop: Conch) -> Iterator[Wire]:
    with Wire(shop.url) as opened:
        yield opened


def get(wire: Wire, path: str, **headers: str) -> Answer:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    wire.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode())
    return wire.answer("GET")


def test_every_file_is_served_as_what_it_is(wire: Wire) -> None:
    weight = 0
    for name in FILES:
        answer = get(wire, f"/dashboard/{name}")
        assert answer.status == 200
        assert answer.body == (dashboard.FOLDER / name).read_bytes()
        assert answer.headers["content-type"].encode() == dashboard.KINDS["." + name.rpartition(".")[2]]
        assert answer.headers["x-content-type-options"] == "nosniff"
        weight += len(answer.body)
    assert weight < 300_000
    told = f"The pages are {len(FILES)} small files and weigh {round(weight, -4) // 1000} kB"
    assert told in (ROOT / "docs" / "dashboard.md").read_text(encoding="utf-8")


def test_a_file_that_is_kept_is_not_sent_again(wire: Wire) -> None:
    first = get(wire, "/dashboard")
    assert first.headers["cache-control"] == "no-cache"
    again = get(wire, "/dashboard", if_none_match=first.headers["etag"])
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert "content-length" not in again.headers
    assert get(wire, "/dashboard", if_none_match='"another"').body == first.body


def test_only_its_own_code_may_run(wire: Wire) -> None:
    page = get(wire, "/dashboard")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    text = page.body.decode()
    assert "<style" not in text
    assert "style=" not in text
    assert all("src=" in part for part in text.split("<script")[1:])
    assert not any("://" in line for line in text.splitlines())


def test_what_is_not_there(wire: Wire) -> None:
    for path in (
        "/dashboard/nothing.js",
        "/dashboard/__init__.py",
        "/dashboard/../app.py",
        "/dashboard/%2e%2e/admin.py",
    ):
        assert get(wire, path).error(404)["code"] == "unknown_route"
    moved = get(wire, "/dashboard/")
    assert (moved.status, moved.headers["location"]) == (307, "../dashboard")


def test_without_an_admin_token_there_is_no_dashboard(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> None:
    conch = Conch(tmp_path_factory.mktemp("closed"), triton.url)
    with conch.running(), Wire(conch.url) as wire:
        assert get(wire, "/dashboard").error(404)["code"] == "unknown_route"
