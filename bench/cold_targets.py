"""What `make bench-cold` starts: app.py, the binary, LiteLLM and Portkey, and the static upstream behind them all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY = ROOT / "dist" / "conch"
PEERS = ROOT / ".venv-peers"  # made by make bench-peers
ANSWER = "The gateway turns chat requests into tensors."
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "assistant",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 9, "total_tokens": 21},
}
GENERATED = {"text_output": ANSWER, "finish_reason": "stop", "num_input_tokens": 12, "num_output_tokens": 9}
INPUTS = {
    "text_input": "STRING",
    "stream": "BOOL",
    "sampling_parameters": "STRING",
    "exclude_input_in_output": "BOOL",
    "return_finish_reason": "BOOL",
    "return_num_input_tokens": "BOOL",
    "return_num_output_tokens": "BOOL",
}
OUTPUTS = {
    "text_output": "STRING",
    "finish_reason": "STRING",
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
}
CONTRACT = {
    "name": "assistant",
    "max_batch_size": 0,
    "input": [
        {"name": name, "data_type": f"TYPE_{kind}", "dims": [1], "optional": name != "text_input"}
        for name, kind in INPUTS.items()
    ],
    "output": [{"name": name, "data_type": f"TYPE_{kind}", "dims": [1]} for name, kind in OUTPUTS.items()],
    "model_transaction_policy": {"decoupled": True},
}
MODEL = "/v2/models/assistant"
ANSWERS = {
    f"{MODEL}/ready": {},
    f"{MODEL}/config": CONTRACT,
    f"{MODEL}/generate": GENERATED,
    "/v1/chat/completions": COMPLETION,
}
SETTINGS = """
[server]
port = {port}

[store]
url = "sqlite:{folder}/cold.db"

[upstreams.static]
urls = ["http://127.0.0.1:{upstream}"]

[[models]]
id = "assistant"
task = "chat"
upstream = "static"
model = "assistant"
preset = "vllm"
max_output = 1024
price = {{ input = "0.10", output = "0.40" }}
chat.template = "{template}"
"""
LITELLM = """
model_list:
  - model_name: assistant
    litellm_params: {{ model: openai/assistant, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none }}
"""


class BenchError(Exception):
    """A run that cannot give honest figures: one sentence that says why."""


@dataclass(frozen=True)
class Program:
    """What is started, where it listens, how it is asked. `cache` is emptied before each start; `slow`: seconds."""

    name: str
    command: tuple[str, ...]
    port: int
    headers: Mapping[str, str]
    health: str = "/healthz"
    settings: Mapping[str, str] = field(default_factory=dict)
    cache: Path | None = None
    slow: bool = False


class _Static(BaseHTTPRequestHandler):
    """A Triton of the vLLM contract, and an OpenAI, with one answer each."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """As POST."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = ANSWERS.get(self.path)
        body = json.dumps(found).encode()
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - the name is http.server's

    def log_message(self, format: str, *args: object) -> None:
        """Nothing to say."""


@contextlib.contextmanager
def static_upstream() -> Iterator[int]:
    """The port of the upstream of every program: threads of this process, which has nothing else to do meanwhile."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Static) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def programs(folder: Path, upstream: int) -> Iterator[Program]:
    """Those that are there."""
    yield _conch("app.py serve", (sys.executable, "app.py"), folder / "app", upstream)
    if BINARY.exists():
        caches = folder / "warm-cache", folder / "first-cache"
        warm, first = ({"XDG_CACHE_HOME": str(cache)} for cache in caches)
        yield _conch("binary", (str(BINARY),), folder / "warm", upstream, warm)
        yield _conch("binary, first run", (str(BINARY),), folder / "first", upstream, first, caches[1])
    if PEERS.exists():
        yield _litellm(folder / "litellm", upstream)
        script = str(PEERS / "node/node_modules/@portkey-ai/gateway/build/start-server.js")
        port = free_port()
        yield Program(
            "Portkey",
            ("node", script, "--headless", f"--port={port}"),
            port,
            {
                "x-portkey-provider": "openai",
                "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1",
                "Authorization": "Bearer none",
            },
            health="/",
            settings={"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"},
        )


def _conch(
    name: str,
    command: tuple[str, ...],
    home: Path,
    upstream: int,
    settings: Mapping[str, str] | None = None,
    cache: Path | None = None,
) -> Program:
    """With a store, a key, credits and the assistant's own template."""
    home.mkdir()
    port, file, settings = free_port(), home / "conch.toml", settings or {}
    for made in settings.values():
        Path(made).mkdir()
    template = shutil.copy(ROOT / "models" / "assistant" / "chat_template.jinja", home)
    file.write_text(SETTINGS.format(port=port, folder=home, upstream=upstream, template=template))

    def run(*words: str) -> str:
        done = subprocess.run(
            [*command, *words, "--config", str(file)],
            cwd=ROOT, env=environment(settings), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BenchError(f"{name} {words[0]} failed: {done.stderr[-1000:]}")
        return done.stdout

    run("workspaces", "create", "bench", "--plan", "enterprise")
    key = json.loads(run("keys", "create", "--workspace", "bench", "--json"))["key"]
    run("credits", "grant", "bench", "1000")
    return Program(
        name,
        (*command, "serve", "--config", str(file)),
        port,
        {"Authorization": f"Bearer {key}"},
        settings=settings,
        cache=cache,
    )


def _litellm(home: Path, upstream: int) -> Program:
    home.mkdir()
    port, file = free_port(), home / "config.yaml"
    file.write_text(LITELLM.format(upstream=upstream))
    key = f"sk-{secrets.token_hex(32)}"
    options = f"--config {file} --host 127.0.0.1 --port {port} --num_workers 1 --telemetry False".split()
    return Program(
        "LiteLLM",
        (str(PEERS / "bin/litellm"), *options),
        port,
        {"Authorization": f"Bearer {key}"},
        health="/health/liveliness",
        settings={"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
        slow=True,
    )


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Ours, but of Conch's settings none, and with bytecode kept: nobody deploys a start that compiles its sources."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CONCH_")}
    ours.pop("PYTHONDONTWRITEBYTECODE", None)
    return ours | dict(settings)


def free_port() -> int:
    """One that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
