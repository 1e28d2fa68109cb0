"""Traces as those at either end see them: what Triton is told of a client's, and what a collector is sent."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from config import ConfigError, Tracing, load
from handlers.seeing import tracing
from scripts.triton import Triton
from tests.collector import Collector, attributes, grpc_proxy, http_proxy
from tests.gateway import CONFIG, ROOT, Conch
from tests.raw import Answer, Wire, bearer, chat, script

CHAT = "/v1/chat/completions"
ID, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{ID}-{PARENT}-01"
BY_GRPC = """
[[models]]
id = "by-grpc"
task = "chat"
upstream = "local"
model = "vllm"
preset = "vllm"
transport = "grpc"
chat.template = "{root}/tests/plain.jinja"
"""


class Way:
    """A Triton behind proxies: what it was sent of traces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes: list[bytes] = []
        self.metadata: list[dict[str, str]] = []
        self.url = self.grpc = ""

    def conch(self) -> Conch:
        """A gateway before it, not started yet, with a workspace."""
        by_http = CONFIG.replace('id = "vllm"\n', 'id = "vllm"\ncancel = "none"\n')
        conch = Conch(self.folder, self.url, by_http + BY_GRPC, grpc=self.grpc)
        conch.workspace("acme")
        return conch

    def told(self, header: str) -> list[str]:
        """A header's values in the requests that asked a model something, over HTTP."""
        asked = b"".join(self.bytes).split(b"POST ")[1:]
        heads = [each.partition(b"\r\n\r\n")[0].decode() for each in asked]
        return [found[1] for head in heads for found in re.finditer(rf"\r\n{header}: ([^\r]*)", head)]


@pytest.fixture
async def way(triton: Triton, tmp_path: Path) -> AsyncIterator[Way]:
    way = Way(tmp_path)
    async with http_proxy(triton.url, way.bytes) as way.url, grpc_proxy(triton.grpc_url, way.metadata) as way.grpc:
        yield way


async def ask(conch: Conch, key: str, body: bytes, **headers: str) -> Answer:
    """One chat, beside the loop, in which the proxies are."""

    def asked() -> Answer:
        with Wire(conch.url) as wire:
            wire.request("POST", CHAT, body, **bearer(key), **headers)
            return wire.answer()

    return await asyncio.to_thread(asked)


async def within(conch: Conch, **variables: str) -> Any:
    """Starts a gateway beside the loop: returns what ends it."""
    running = conch.running(**variables)
    await asyncio.to_thread(running.__enter__)
    return lambda: asyncio.to_thread(running.__exit__, None, None, None)


async def test_triton_is_told_of_the_clients_trace(way: Way) -> None:
    conch = way.conch()
    key, end = conch.key("acme"), await within(conch)
    for stream in (False, True):
        way.bytes.clear()
        answer = await ask(conch, key, script("x", stream=stream), traceparent=TRACEPARENT, tracestate="a=1,b=2")
        assert answer.status == 200
        assert (way.told("traceparent"), way.told("tracestate")) == ([TRACEPARENT], ["a=1,b=2"])
    assert (await ask(conch, key, script("x", stream=True, model="by-grpc"), traceparent=TRACEPARENT)).status == 200
    assert [each.get("traceparent") for each in way.metadata] == [TRACEPARENT]
    for wrong in ("", "x", TRACEPARENT[:-1], f"{TRACEPARENT}-x", TRACEPARENT.upper(), f"00-{'0' * 32}-{PARENT}-01"):
        way.bytes.clear()
        assert (await ask(conch, key, script("x"), **({"traceparent": wrong} if wrong else {}))).status == 200
        assert way.told("traceparent") == []
    way.bytes.clear()
    await ask(conch, key, script("x"), traceparent=f"cc-{ID}-{PARENT}-00-what-is-to-come")
    assert way.told("traceparent") == [f"00-{ID}-{PARENT}-00"]
    await end()
    end = await within(conch, CONCH_TRACING__PROPAGATE="false")
    way.bytes.clear()
    await ask(conch, key, script("x"), traceparent=TRACEPARENT)
    assert way.told("traceparent") == []
    await end()


async def test_spans_reach_the_collector(way: Way) -> None:
    conch, collector = way.conch(), Collector()
    key = conch.key("acme")
    with collector.listening() as endpoint:
        end = await within(conch, CONCH_TRACING__ENDPOINT=endpoint, CONCH_TRACING__SERVICE="edge")
        way.bytes.clear()
        answer = await ask(conch, key, script("one ", "two"), traceparent=TRACEPARENT)
        told = way.told("traceparent")
        assert (await ask(conch, key, chat("hello", model="nobody's"))).status == 404
        assert (await ask(conch, key, script("x", fail_after=0, model="llmapi"))).status == 502
        unsampled = f"00-{ID}-{PARENT}-00"
        way.bytes.clear()
        await ask(conch, key, script("x"), traceparent=unsampled)
        assert way.told("traceparent") == [unsampled]
        await end()  # which sends what is still to be sent
    assert collector.paths == {"/v1/traces"}
    assert collector.resources[0]["service.name"] == "edge"
    assert collector.spans.keys() == {f"POST {CHAT}", "chat vllm", "chat llmapi"}
    client, failed = collector.spans["chat vllm"], collector.spans["chat llmapi"]
    assert client.trace_id.hex() == ID
    assert told == [f"00-{ID}-{client.span_id.hex()}-01"], "what Triton makes of it hangs below"
    about = attributes(client)
    assert about["gen_ai.usage.input_tokens"] == answer.json["usage"]["prompt_tokens"]
    assert about["gen_ai.usage.output_tokens"] == answer.json["usage"]["completion_tokens"]
    assert (about["gen_ai.operation.name"], about["gen_ai.provider.name"]) == ("chat", "triton")
    assert about["gen_ai.request.model"] == "vllm"
    assert failed.status.code == 2
    assert attributes(failed)["error.type"] == "upstream_error"
    assert failed.trace_id.hex() != ID


async def test_a_server_span_has_its_parent_and_its_child(way: Way) -> None:
    conch, collector = way.conch(), Collector()
    key = conch.key("acme")
    with collector.listening() as endpoint:
        end = await within(conch, CONCH_TRACING__ENDPOINT=f"{endpoint}/v1/traces")
        answer = await ask(conch, key, script(*["x"] * 10, stream=True, pace_ms=10), traceparent=TRACEPARENT)
        await end()
    server, client = collector.spans[f"POST {CHAT}"], collector.spans["chat vllm"]
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (ID, PARENT)
    assert client.parent_span_id == server.span_id
    assert (server.kind, client.kind) == (2, 3)  # SERVER, CLIENT
    assert server.start_time_unix_nano < client.start_time_unix_nano
    assert client.end_time_unix_nano <= server.end_time_unix_nano
    assert client.end_time_unix_nano - client.start_time_unix_nano > 80e6
    about = attributes(server)
    assert about["conch.request_id"] == answer.headers["x-request-id"]
    assert about["conch.workspace"] == "acme"
    assert (about["http.route"], about["http.response.status_code"]) == (CHAT, 200)


async def test_a_collector_that_is_away_is_in_nobodys_way(way: Way) -> None:
    conch = way.conch()
    key, end = conch.key("acme"), await within(conch, CONCH_TRACING__ENDPOINT="http://127.0.0.1:9")
    assert (await ask(conch, key, script("x"))).status == 200
    await end()  # cleanly


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="OpenTelemetry is not installed"):
        tracing.check(Tracing(endpoint="http://collector:4318"))
    tracing.check(Tracing())
    (tmp_path / "conch.toml").write_text('[tracing]\nendpoint = "collector:4318"\n')
    with pytest.raises(ConfigError, match=r"\[tracing\] endpoint: 'collector:4318' is no address such as"):
        load(tmp_path / "conch.toml", variables={})


def test_nothing_is_imported_where_it_is_off() -> None:
    program = "import sys, app; from handlers.seeing import observer; print('opentelemetry' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT) == "False\n"
