"""The other gateways of `make bench-peers`: LiteLLM, Portkey and TensorZero in front of a static OpenAI upstream.

Each as its own documentation starts it, telemetry and request logs off, one process on the system's core. They do other
work per request than Conch: no limiter here and no ledger, but more providers behind them.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.scenarios import Scenario
from bench.targets import HERE, SYSTEM_CORE, BenchError, Target, Upstreams, await_ready, free_port, process

ENVIRONMENT = HERE.parent / ".venv-peers"
SCENARIOS = ("unary-16", "stream-burst")  # what each of them can do
START = 90  # seconds
LITELLM = """
model_list:
  - model_name: assistant
    litellm_params: {{ model: openai/assistant, api_base: "{upstream}/v1", api_key: none }}
  - model_name: assistant-stream
    litellm_params: {{ model: openai/assistant, api_base: "{upstream}/stream/v1", api_key: none }}
"""
TENSORZERO = """
[gateway]
observability.enabled = false
disable_pseudonymous_usage_analytics = true
"""
TENSORZERO_MODEL = """
[models.{name}]
routing = ["static"]

[models.{name}.providers.static]
type = "openai"
model_name = "assistant"
api_base = "{base}/"
api_key_location = "none"
"""


@dataclass(frozen=True)
class Peer(Target):
    """Its models are called `prefix` and ours; streams have one of their own, since the static upstream cannot tell."""

    prefix: str = ""
    upstream: str = ""  # Portkey is told with every request where it is

    def body(self, scenario: Scenario) -> bytes:
        name = self.prefix + ("assistant-stream" if scenario.events else "assistant")
        return scenario.body.replace(b'"model":"assistant"', b'"model":"%b"' % name.encode())

    def heads(self, scenario: Scenario) -> dict[str, str]:
        heads = super().heads(scenario)
        if self.upstream:
            heads["x-portkey-custom-host"] = f"{self.upstream}{'/stream' if scenario.events else ''}/v1"
        return heads


@contextlib.contextmanager
def peers(folder: Path, behind: Upstreams) -> Iterator[list[Target]]:
    """All three, ready."""
    if not ENVIRONMENT.exists():
        raise BenchError("the other gateways are not installed; `make bench-peers` does it.")
    upstream = f"http://127.0.0.1:{behind.static.port}"
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(start(folder, upstream)) for start in (_tensorzero, _portkey, _litellm)]


@contextlib.contextmanager
def _litellm(folder: Path, upstream: str) -> Iterator[Target]:
    home, port = _home(folder, "litellm"), free_port()
    (home / "config.yaml").write_text(LITELLM.format(upstream=upstream))
    options = f"--config config.yaml --host 127.0.0.1 --port {port} --num_workers 1 --telemetry False".split()
    key = f"sk-{secrets.token_hex(32)}"  # it starts without one only when it is told that this is dangerous
    settings = {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with _serving([str(ENVIRONMENT / "bin/litellm"), *options], home, settings) as serving:
        await_ready(serving, port, home / "log", "/health/liveliness", START)
        yield Peer("litellm", serving.pid, port, "/v1", {"Authorization": f"Bearer {key}"})


@contextlib.contextmanager
def _portkey(folder: Path, upstream: str) -> Iterator[Target]:
    home, port = _home(folder, "portkey"), free_port()
    script = ENVIRONMENT / "node/node_modules/@portkey-ai/gateway/build/start-server.js"
    # Private addresses are refused unless they are named.
    settings = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
    with _serving(["node", str(script), "--headless", f"--port={port}"], home, settings) as serving:
        await_ready(serving, port, home / "log", seconds=START)
        heads = {"x-portkey-provider": "openai", "Authorization": "Bearer none"}
        yield Peer("portkey", serving.pid, port, "/v1", heads, upstream=upstream)


@contextlib.contextmanager
def _tensorzero(folder: Path, upstream: str) -> Iterator[Target]:
    home = _home(folder, "tensorzero")
    bases = {"assistant": f"{upstream}/v1", "assistant-stream": f"{upstream}/stream/v1"}
    models = (TENSORZERO_MODEL.format(name=name, base=base) for name, base in bases.items())
    (home / "tensorzero.toml").write_text(TENSORZERO + "".join(models))
    command = [str(ENVIRONMENT / "bin/python"), str(HERE / "tensorzero_server.py"), "tensorzero.toml"]
    with _serving(command, home, {"RUST_LOG": "error"}) as serving:
        assert serving.stdout is not None
        found = re.search(rb":(\d+)/openai/v1", serving.stdout.readline())
        if found is None:
            raise BenchError(f"tensorzero did not start: {(home / 'log').read_text(errors='replace')[-1000:]}")
        yield Peer("tensorzero", serving.pid, int(found[1]), "/openai/v1", prefix="tensorzero::model_name::")


def _home(folder: Path, name: str) -> Path:
    home = folder / name
    home.mkdir()
    return home


def _serving(
    command: list[str], home: Path, settings: dict[str, str]
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    return process(command, home, home / "log", [SYSTEM_CORE], settings, piped=True)
