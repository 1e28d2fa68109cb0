"""What a bench run starts: nginx twice, a gateway per revision, each on its core, each stopped by its pid."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import nginx

SYSTEM_CORE = 0  # the system under test, alone
LOAD_CORE = 1  # wrk and the static Triton
TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "<|im_start|>assistant\n"
)
GATEWAY = """
[server]
host = "127.0.0.1"
port = {port}

[store]
url = "sqlite:{folder}/bench.db"

[plans.enterprise]   # the limiter works for every request, and admits all of them
default = 100_000_000
ceiling = 100_000_000

[upstreams.bench]
urls = ["http://127.0.0.1:{upstream}"]

[[models]]
id = "assistant"
task = "chat"
upstream = "bench"
model = "assistant"
preset = "vllm"
{price}
[models.chat]
template = "template.jinja"
"""


class BenchError(Exception):
    """A run that cannot give honest figures: one sentence that says why."""


@dataclass(frozen=True)
class Target:
    """A system under test: its process tree, where it listens, and how a chat is asked of it."""

    name: str
    pid: int
    port: int
    unary: str
    stream: str
    key: str = "none"


@contextlib.contextmanager
def static_triton(folder: Path) -> Iterator[Target]:
    """The upstream of every target, on the load's core."""
    port = _free_port()
    with _nginx(folder / "triton", nginx.triton(port), port, LOAD_CORE) as pid:
        yield Target("triton", pid, port, f"{nginx.MODEL}/generate", f"{nginx.MODEL}/generate_stream")


@contextlib.contextmanager
def proxy(folder: Path, upstream: Target) -> Iterator[Target]:
    """nginx passing the same requests to the same upstream: the yardstick."""
    port = _free_port()
    with _nginx(folder / "proxy", nginx.proxy(port, upstream.port), port, SYSTEM_CORE) as pid:
        yield Target("nginx", pid, port, "/generate", "/stream")


@contextlib.contextmanager
def gateway(name: str, source: Path, folder: Path, upstream: Target, *, metered: bool = True) -> Iterator[Target]:
    """Conch as it stands in `source`, with its own store in `folder`, one worker, one enterprise key.

    Metered, its model has a price; else limits and ledger are off.
    """
    if not (source / "app.py").exists():
        raise BenchError(f"{name}: there is no app.py in that tree.")
    home = folder / name
    home.mkdir()
    (home / "template.jinja").write_text(TEMPLATE)
    port = _free_port()
    settings = home / "conch.toml"
    on_credit = metered and (source / "handlers/door/billing.py").exists()  # an older revision has no prices
    price = 'max_output = 1024\nprice = { input = "0.10", output = "0.40" }\n' if on_credit else ""
    settings.write_text(GATEWAY.format(port=port, folder=home, upstream=upstream.port, price=price))

    def command(*words: str, program: Sequence[str] = ("app.py",)) -> list[str]:
        return [sys.executable, *program, *words, "--config", str(settings)]

    _ask(command("migrate"), source)
    _ask(command("workspaces", "create", "bench", "--plan", "enterprise"), source)
    key = json.loads(_ask(command("keys", "create", "--workspace", "bench", "--json"), source))["key"]
    if on_credit:
        _ask(command("credits", "grant", "bench", "1000000"), source)
    program = ("app.py",) if metered else ("-m", "bench.unmetered")
    with _process(command("serve", program=program), source, home / "log", SYSTEM_CORE) as process:
        target = Target(name, process.pid, port, "/v1/chat/completions", "/v1/chat/completions", key)
        _await_ready(process, port, home / "log", "/readyz")
        yield target


def ask(target: Target, path: str, body: bytes) -> tuple[int, bytes]:
    """POST one body; the status and the whole answer. OSError when there is none within 10 s."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=10)
    headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"}
    with contextlib.closing(connection):
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()


def check(target: Target, unary: bytes, stream: bytes) -> None:
    """Raise BenchError unless one answer of each kind is the right one, whole."""
    status, answer = ask(target, target.unary, unary)
    text = _text(json.loads(answer)) if status == 200 else None
    if text != nginx.ANSWER:
        raise BenchError(f"{target.name}: a wrong answer ({status}): {answer[:300]!r}")
    status, answer = ask(target, target.stream, stream)
    frames = [frame.removeprefix("data: ") for frame in answer.decode().split("\n\n") if frame]
    events = [json.loads(frame) for frame in frames if frame != "[DONE]"] if status == 200 else []
    text = "".join(_text(event) for event in events)
    if text != nginx.WORD * nginx.EVENTS or (target.name != "nginx" and frames[-1] != "[DONE]"):
        raise BenchError(f"{target.name}: a wrong stream ({status}): {answer[:300]!r}")


def _text(answer: dict[str, Any]) -> str:
    """The text of an answer: Triton's, or a chat completion's or chunk's."""
    if "text_output" in answer:
        return str(answer["text_output"])
    if not answer["choices"]:
        return ""
    choice = answer["choices"][0]
    return str((choice["message"] if answer["object"] == "chat.completion" else choice["delta"]).get("content") or "")


@contextlib.contextmanager
def _nginx(folder: Path, configuration: str, port: int, core: int) -> Iterator[int]:
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        raise BenchError("nginx is missing; `make bench` says how to install it.")
    folder.mkdir()
    (folder / "nginx.conf").write_text(configuration)
    command = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]
    with _process(command, folder, folder / "log", core) as process:
        _await_ready(process, port, folder / "log")
        yield process.pid


@contextlib.contextmanager
def _process(command: list[str], folder: Path, log: Path, core: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process pinned to a core, that ends with this one however this one ends."""
    pinned = ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", str(core), *command]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            pinned, cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _ask(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, check=False, cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"{' '.join(command[1:4])} failed: {done.stderr[-1000:]}")
    return done.stdout


def _environment() -> dict[str, str]:
    """Ours without Conch's own settings: the generated file alone decides."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CONCH_")}


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path, path: str | None = None) -> None:
    """Return when the port takes connections and `path`, if any, answers 200; BenchError after 20 s."""
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if path is None:
                socket.create_connection(("127.0.0.1", port), timeout=2).close()
                return
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            with contextlib.closing(connection):
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return
        time.sleep(0.05)
    raise BenchError(f"{log.parent.name} did not start: {log.read_text(errors='replace')[-1000:]}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
