"""A reload beside requests that run and wait: what has not changed goes on, its places, its queue and what is known."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.triton import Triton
from tests.gateway import ONE, Conch
from tests.observed import Model, Process
from tests.raw import Answer, Wire, await_true, bearer, chat, script
from tests.test_reload import READ, said

PATH, TOKEN = "/v1/chat/completions", "t" * 40
LONG = ["x"] * 5000
SHOP = ONE.replace("{root}/tests/plain.jinja", "template.jinja") + "max_inflight = 1\n"
SHOP = SHOP.replace("[[models]]", 'check_every = "0.3s"\n[upstreams.lost]\nurls = ["http://127.0.0.1:1"]\n[[models]]')
SHOP += """
[[models]]
id = "lost"
task = "chat"
upstream = "lost"
model = "vllm"
preset = "vllm"
chat.template = "template.jinja"
"""


@pytest.fixture
def own(triton: Triton, tmp_path: Path) -> Iterator[Conch]:
    """A model that takes one request at a time, and another whose server is not there; not started yet."""
    conch = Conch(tmp_path, triton.url, SHOP)
    (tmp_path / "template.jinja").write_text("{{ messages[0].content }}")
    yield conch
    assert "Traceback" not in "".join(conch.log)


@pytest.fixture
def shop(own: Conch) -> Iterator[tuple[Conch, str]]:
    """It serves; and a key."""
    own.workspace("acme")
    key = own.key("acme")
    with own.running(CONCH_ADMIN_TOKEN=TOKEN):
        yield own, key


def reload(conch: Conch, before: str = "", after: str = "") -> str:
    """Have it go by its file with `before` replaced; what it then said of its models."""
    count = said(conch, READ)
    text = conch.config.read_text()
    assert before in text
    conch.config.write_text(text.replace(before, after, 1))
    os.kill(conch.pid, signal.SIGHUP)
    await_true(lambda: said(conch, READ) == count + 1)
    return [line for line in conch.log if READ in line][-1]


def card(conch: Conch, id: str = "vllm") -> Any:
    with Wire(conch.url) as wire:
        wire.request("GET", "/admin/deployments", **bearer(TOKEN))
        return next(each for each in wire.answer().json["data"] if each["id"] == id)


def sent(conch: Conch, key: str, body: bytes) -> Wire:
    wire = Wire(conch.url)
    wire.request("POST", PATH, body, **bearer(key))
    return wire


def ask(conch: Conch, key: str, body: bytes) -> Answer:
    with sent(conch, key, body) as wire:
        return wire.answer()


def content(answer: Answer) -> Any:
    return answer.json["choices"][0]["message"]["content"]


@pytest.mark.parametrize("changed", [False, True], ids=["nothing", "names and prices"])
def test_who_waits_keeps_its_place_and_no_server_has_more_than_its_share(
    shop: tuple[Conch, str], triton: Triton, changed: bool
) -> None:
    conch, key = shop
    before = after = ""
    if changed:
        before, after = 'price = { output = "0.01" }', 'price = { output = "0.02" }\naliases = ["other"]'
        reload(conch, 'id = "vllm"', f'id = "vllm"\nmax_output = 100000\n{before}')
        conch.command("credits", "grant", "acme", "100")
    model = Model(triton)
    with sent(conch, key, script(*LONG, stream=True, pace_ms=5)) as first:
        assert first.answer_head()[0] == 200
        with sent(conch, key, script("second")) as second:
            await_true(lambda: card(conch)["queued"] == 1)
            reload(conch, before, after)
            with sent(conch, key, script("third", model="other" if changed else "vllm")) as third:
                await_true(lambda: card(conch)["queued"] == 2)
                assert (card(conch)["outstanding"], model.since("started")) == (1, 1)
                first.close()
                assert content(second.answer()) == "second"
                assert content(third.answer()) == "third"
    assert model.since("started") == 3


def test_who_waits_is_served_though_its_model_has_changed(shop: tuple[Conch, str], triton: Triton) -> None:
    conch, key = shop
    model = Model(triton)
    with sent(conch, key, script(*LONG, stream=True, pace_ms=5)) as first:
        assert first.answer_head()[0] == 200
        with sent(conch, key, script("second")) as second:
            await_true(lambda: card(conch)["queued"] == 1)
            reload(conch, 'id = "vllm"', 'id = "renamed"')
            assert ask(conch, key, chat("x")).status == 404
            assert model.since("started") == 1
            first.close()
            assert content(second.answer()) == "second"
    assert content(ask(conch, key, script("third", model="renamed"))) == "third"


def test_what_is_known_of_a_server_is_known_after(shop: tuple[Conch, str]) -> None:
    conch, key = shop
    for _ in range(2):
        ask(conch, key, script("x", fail_after=0)).error(502)
    before = card(conch)["servers"]
    assert (before[0]["requests"], before[0]["errors"]) == (2, 2)
    assert "1 of 2 models are verified" in reload(conch)
    assert card(conch)["servers"] == before
    reload(conch, 'id = "vllm"', 'id = "vllm"\ntimeout = "20s"')
    assert card(conch)["servers"][0]["requests"] == 0, "it asks something else of it now"


def test_files_are_read_again(shop: tuple[Conch, str]) -> None:
    """A template that cannot be read takes its model, and the next reload brings it back."""
    conch, key = shop
    template = conch.config.parent / "template.jinja"
    say = json.dumps({"pieces": ["new"]})
    template.write_text("script: " + say)
    assert "1 of 2 models are verified" in reload(conch)
    assert content(ask(conch, key, script("old"))) == "new"
    template.write_text("{{ unclosed")
    assert "0 of 2 models are verified" in reload(conch)
    assert ask(conch, key, script("old")).status == 503
    template.write_text("{{ messages[0].content }}")
    assert "1 of 2 models are verified" in reload(conch)
    assert content(ask(conch, key, script("old"))) == "old"


@pytest.fixture
def hung(own: Conch) -> Iterator[tuple[Conch, socket.socket]]:
    """Not started yet; and the server of `lost`, which says nothing: a check of it takes five seconds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        text = own.config.read_text().replace("http://127.0.0.1:1", f"http://127.0.0.1:{silent.getsockname()[1]}")
        own.config.write_text(text)
        yield own, silent


def ready(conch: Conch) -> Answer:
    with Wire(conch.url) as wire:
        wire.request("GET", "/readyz")
        return wire.answer()


def test_who_is_told_to_stop_while_it_reloads_stops(hung: tuple[Conch, socket.socket]) -> None:
    """It is not ready again once the reload is over."""
    conch, silent = hung
    with conch.running(CONCH_SERVER__DRAIN_DELAY="12s"):
        await_true(lambda: ready(conch).status == 200)
        conch.config.write_text(conch.config.read_text().replace('id = "lost"', 'id = "another"'))
        first, _ = silent.accept()
        os.kill(conch.pid, signal.SIGHUP)
        second, _ = silent.accept()  # the reload looks at its models
        os.kill(conch.pid, signal.SIGTERM)
        await_true(lambda: ready(conch).status == 503)
        assert said(conch, READ) == 0
        first.close()
        second.close()
        await_true(lambda: said(conch, READ) == 1)
        assert ready(conch).error(503)["code"] == "draining"


def test_one_model_is_enough_to_be_ready(hung: tuple[Conch, socket.socket]) -> None:
    """Whatever the others are still waited for."""
    conch, _ = hung
    with conch.running():
        began = time.monotonic()
        await_true(lambda: ready(conch).status == 200)
        assert time.monotonic() - began < 3


def test_an_upstream_that_changes_is_another_and_the_old_one_is_closed(shop: tuple[Conch, str], triton: Triton) -> None:
    conch, key = shop
    process = Process(conch, triton)
    with sent(conch, key, script(*LONG, stream=True, pace_ms=5)) as first:
        assert first.answer_head()[0] == 200
        for every in ("0.4s", "0.5s", "0.6s"):
            reload(conch, conch.config.read_text().split("check_every = ")[1].split("\n")[0], f'"{every}"')
        assert content(ask(conch, key, script("x"))) == "x", "a place of its own"
        assert len(process.upstream()) > 2
    await_true(lambda: len(process.upstream()) <= 2)
