"""Models that Triton knows and has not loaded: loaded once for all who ask, unloaded when nobody does."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from scripts.triton import Triton
from tests.gateway import ONE, Conch
from tests.raw import Answer, Wire, await_true, bearer, script
from tests.scrape import TOKEN, Scrape
from tests.test_pool import ask, model, outstanding, say, served, until
from upstream.errors import Loading, Unavailable

ROOT = Path(__file__).resolve().parents[1]

# The contract model, which takes a while to load; `broken` never does.
SLOW = """
import importlib.util, sys, time
time.sleep(1.0)
spec = importlib.util.spec_from_file_location("contract_model", {path!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
TritonPythonModel = module.TritonPythonModel
"""
BROKEN = "raise RuntimeError('no weights here')\n"

CONFIG = ONE.replace("[[models]]", 'check_every = "300ms"\n\n[[models]]') + 'autoload = true\ncold_start_wait = "20s"\n'


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A Triton that has loaded nothing yet but the model that keeps it ready."""
    repository = tmp_path_factory.mktemp("repository")
    contract = ROOT / "tests" / "contracts" / "vllm"
    for name, code in (("vllm", SLOW.format(path=str(contract / "1" / "model.py"))), ("broken", SLOW)):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.py").write_text(code)
        (repository / name / "config.pbtxt").write_text((contract / "config.pbtxt").read_text())
    (repository / "broken" / "1" / "model.py").write_text(SLOW.format(path=str(contract / "1" / "model.py")))
    with Triton(repository, explicit=True, log=tmp_path_factory.mktemp("log") / "triton.log") as server:
        call(server, "broken/unload")
        (repository / "broken" / "1" / "model.py").write_text(BROKEN)
        yield server


def call(server: Triton, path: str) -> None:
    request = urllib.request.Request(f"{server.url}/v2/repository/models/{path}", b"{}", method="POST")
    request.add_header("content-type", "application/json")
    urllib.request.urlopen(request, timeout=60).close()


def state(server: Triton, name: str = "vllm") -> str:
    request = urllib.request.Request(f"{server.url}/v2/repository/index", b"{}", method="POST")
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=5) as reply:
        return str(next(each.get("state", "") for each in json.load(reply) if each["name"] == name))


def loads(server: Triton) -> int:
    """How often Triton began to load the model."""
    assert server.log is not None
    return server.log.read_text(errors="replace").count("loading: vllm:1")


@pytest.fixture
def unloaded(cold: Triton) -> Triton:
    call(cold, "vllm/unload")
    await_true(lambda: state(cold) == "UNAVAILABLE")
    return cold


def eager(tmp: Path, **changes: Any) -> Any:
    return model(tmp, autoload=True, **changes)


async def test_loaded_once_for_all_who_ask(unloaded: Triton, tmp_path: Path) -> None:
    before = loads(unloaded)
    async with served(eager(tmp_path), [unloaded.url]) as deployment:
        assert deployment.loader is not None
        assert (deployment.verified, deployment.available) == (False, True)
        assert await asyncio.gather(*(ask(deployment, say("a")) for _ in range(20))) == ["a"] * 20
        assert loads(unloaded) - before == 1
        assert (deployment.loader.loads, deployment.loader.cold) == (1, 20)


async def test_a_wait_that_is_too_long_ends(unloaded: Triton, tmp_path: Path) -> None:
    """The load goes on, and the next one finds it done."""
    async with served(eager(tmp_path, cold_start_wait="200ms"), [unloaded.url]) as deployment:
        with pytest.raises(Loading) as told:
            await deployment.open(say("a"))
        assert told.value.retry_after == 30
        await until(lambda: deployment.verified)
        assert await ask(deployment, say("a")) == "a"
        assert deployment.loader is not None
        assert deployment.loader.loads == 1


async def test_nothing_is_loaded_that_nobody_asks_for(unloaded: Triton, tmp_path: Path) -> None:
    async with served(eager(tmp_path), [unloaded.url], every=0.05) as deployment:
        await asyncio.sleep(0.5)
        assert not deployment.verified
    async with served(model(tmp_path), [unloaded.url], every=0.05) as deployment:
        with pytest.raises(Unavailable):
            await deployment.open(say("a"))
        assert not deployment.available
    assert state(unloaded) == "UNAVAILABLE"


async def test_a_load_that_fails_is_told_and_not_repeated(cold: Triton, tmp_path: Path) -> None:
    async with served(replace(eager(tmp_path), model="broken"), [cold.url]) as deployment:
        for _ in range(5):
            with pytest.raises(Unavailable, match="no weights here") as told:
                await deployment.open(say("a"))
            assert not isinstance(told.value, Loading)
        assert deployment.loader is not None
        assert (deployment.loader.loads, deployment.loader.failed_loads) == (1, 1)


async def test_unloaded_when_idle_and_loaded_again(unloaded: Triton, tmp_path: Path) -> None:
    async with served(eager(tmp_path, idle_unload="600ms"), [unloaded.url], every=0.1) as deployment:
        assert deployment.loader is not None
        answer = await deployment.open(say(*"ab" * 150, stream=True, pace_ms=5))  # 1.5 s and more
        while await answer.read():
            assert state(unloaded) == "READY"
        answer.close()
        ended = time.monotonic()
        await until(lambda: state(unloaded) == "UNAVAILABLE")
        assert time.monotonic() - ended > 0.5
        assert (deployment.loader.unloads, deployment.available) == (1, True)
        assert await ask(deployment, say("a")) == "a"
        assert (deployment.loader.loads, outstanding(deployment)) == (2, [0])


async def test_what_another_gateway_uses_stays_loaded(unloaded: Triton, tmp_path: Path) -> None:
    settings = eager(tmp_path, idle_unload="600ms")
    async with served(settings, [unloaded.url]) as idle, served(eager(tmp_path), [unloaded.url]) as busy:
        assert await ask(busy, say("a")) == "a"
        await until(lambda: idle.verified)
        for _ in range(30):
            assert await ask(busy, say("a")) == "a"
            await asyncio.sleep(0.05)
        assert state(unloaded) == "READY"
        await until(lambda: state(unloaded) == "UNAVAILABLE")
        assert await ask(busy, say("a")) == "a", "the other one loads it again when it is asked"


def test_at_the_gateway(unloaded: Triton, tmp_path: Path) -> None:
    """Listed and ready, since whoever asks will have it; one that leaves meanwhile leaves the load to the others."""
    conch = Conch(tmp_path, unloaded.url, CONFIG)
    conch.workspace("acme")
    key = conch.key("acme")

    def chat(_: int) -> Answer:
        with Wire(conch.url, timeout=30) as wire:
            wire.request("POST", "/v1/chat/completions", script("a"), **bearer(key))
            return wire.answer()

    def get(path: str) -> Answer:
        with Wire(conch.url) as wire:
            wire.request("GET", path, **bearer(key))
            return wire.answer()

    before = loads(unloaded)
    with conch.running(CONCH_METRICS_TOKEN=TOKEN), ThreadPoolExecutor(8) as pool:
        scrape = Scrape(conch)
        outcomes = scrape.found("conch_model_load_duration_seconds_count", model="vllm")
        assert {labels["outcome"]: count for labels, count in outcomes} == {"loaded": 0, "failed": 0}
        assert scrape("conch_cold_start_duration_seconds_count", model="vllm") == 0
        assert get("/readyz").status == 200
        assert [each["id"] for each in get("/v1/models").json["data"]] == ["vllm"]
        with Wire(conch.url) as wire:
            wire.request("POST", "/v1/chat/completions", script("a"), **bearer(key))
            await_true(lambda: any("is being loaded" in line for line in conch.log))
        assert [each.status for each in pool.map(chat, range(8))] == [200] * 8
        assert loads(unloaded) - before == 1
        scrape = Scrape(conch)
        assert scrape("conch_model_load_duration_seconds_count", model="vllm", outcome="loaded") == 1
        assert 1.0 < scrape("conch_model_load_duration_seconds_sum", model="vllm", outcome="loaded") < 20
        assert scrape("conch_cold_start_duration_seconds_count", model="vllm") == 9, "also the one that left"
        assert scrape("conch_cold_start_duration_seconds_sum", model="vllm") > 1.0


def test_an_unload_is_seen(unloaded: Triton, tmp_path: Path) -> None:
    conch = Conch(tmp_path, unloaded.url, CONFIG + 'idle_unload = "600ms"\n')
    conch.workspace("acme")
    with conch.running(CONCH_METRICS_TOKEN=TOKEN), Wire(conch.url, timeout=30) as wire:
        assert list(Scrape(conch).found("conch_model_unloads_total")) == [({"model": "vllm"}, 0)]
        wire.request("POST", "/v1/chat/completions", script("a"), **bearer(conch.key("acme")))
        assert wire.answer().status == 200
        await_true(lambda: Scrape(conch)("conch_model_unloads_total", model="vllm") == 1)
        await_true(lambda: state(unloaded) == "UNAVAILABLE")


def test_a_load_that_fails_is_seen(cold: Triton, tmp_path: Path) -> None:
    conch = Conch(tmp_path, cold.url, CONFIG.replace('model = "vllm"', 'model = "broken"'))
    conch.workspace("acme")
    with conch.running(CONCH_METRICS_TOKEN=TOKEN), Wire(conch.url) as wire:
        wire.request("POST", "/v1/chat/completions", script("a"), **bearer(conch.key("acme")))
        assert wire.answer().error(503)["code"] == "model_unavailable"
        scrape = Scrape(conch)
        assert scrape("conch_model_load_duration_seconds_count", outcome="failed") == 1
        assert scrape("conch_model_load_duration_seconds_count", outcome="loaded") == 0
        assert scrape("conch_cold_start_duration_seconds_count", model="vllm") == 1


def test_who_waits_too_long_is_told_when_to_come_again(unloaded: Triton, tmp_path: Path) -> None:
    conch = Conch(tmp_path, unloaded.url, CONFIG.replace('"20s"', '"200ms"'))
    conch.workspace("acme")
    key = conch.key("acme")
    with conch.running(), Wire(conch.url) as wire:
        wire.request("POST", "/v1/chat/completions", script("a"), **bearer(key))
        answer = wire.answer()
        error = answer.error(503)
        assert (error["type"], error["code"]) == ("deployment_error", "model_unavailable")
        assert "being loaded" in error["message"]
        assert answer.headers["retry-after"] == "30"
