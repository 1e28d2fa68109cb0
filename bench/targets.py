"""What a bench run starts: nginx twice, the replayer, a gateway per revision, each on its core, stopped by its pid."""

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench import nginx
from bench.scenarios import PACED_INTERVAL, PACED_STREAMS, Scenario

SYSTEM_CORE = 0  # the system under test, alone
LOAD_CORE = 1  # what asks, and the static Triton and the replayer
HERE = Path(__file__).parent


class BenchError(Exception):
    """A run that cannot give honest figures: one sentence that says why."""


@dataclass(frozen=True)
class Target:
    """A system under test: its processes, and where it listens. `api` is the base of its paths; None: Triton's own."""

    name: str
    pid: int
    port: int
    api: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def path(self, scenario: Scenario) -> str:
        """What a scenario asks of it."""
        return scenario.call if self.api is None else self.api + scenario.path

    def body(self, scenario: Scenario) -> bytes:
        """The body of a scenario's request."""
        return scenario.body

    def heads(self, scenario: Scenario) -> dict[str, str]:
        """The headers of a scenario's request."""
        return {"Content-Type": scenario.content_type, **self.headers}


class Upstreams(NamedTuple):
    """What stands behind every target: nginx with its canned answers, and the replayer of the paced streams."""

    static: Target
    replayer: Target


@contextlib.contextmanager
def upstreams(folder: Path) -> Iterator[Upstreams]:
    """Both upstreams, on the load's core."""
    home = folder / "triton"
    home.mkdir()
    port = free_port()
    with (
        _nginx(home, nginx.triton(port, home), port, LOAD_CORE) as pid,
        replayer(folder, "replayer", PACED_INTERVAL, PACED_STREAMS) as paced,
    ):
        yield Upstreams(Target("triton", pid, port), paced)


@contextlib.contextmanager
def replayer(folder: Path, name: str, interval: float, slots: int) -> Iterator[Target]:
    """The paced upstream, on the load's core."""
    port, log = free_port(), folder / f"{name}.log"
    command = f"{sys.executable} -m bench.replay --port {port} --interval {interval} --slots {slots}".split()
    with process(command, HERE.parent, log, [LOAD_CORE]) as serving:
        await_ready(serving, port, log)
        yield Target("upstream", serving.pid, port)


@contextlib.contextmanager
def proxy(folder: Path, behind: Upstreams) -> Iterator[Target]:
    """nginx passing the same requests to the same upstreams: the yardstick."""
    port, home = free_port(), folder / "proxy"
    home.mkdir()
    configuration = nginx.proxy(port, behind.static.port, behind.replayer.port)
    with _nginx(home, configuration, port, SYSTEM_CORE) as pid:
        yield Target("nginx", pid, port)


@contextlib.contextmanager
def gateway(
    name: str,
    source: Path,
    folder: Path,
    behind: Upstreams,
    *,
    workers: int = 1,
    cores: Sequence[int] = (SYSTEM_CORE,),
    metered: bool = True,
) -> Iterator[Target]:
    """Conch as it stands in `source`, with its own store in `folder` and an enterprise key with credits.

    Metered, as in production; else limits and ledger are off.
    """
    if not (source / "app.py").exists():
        raise BenchError(f"{name}: there is no app.py in that tree.")
    home, port = folder / name, free_port()
    home.mkdir()
    settings = {
        "CONCH_CONFIG": str(HERE / "conch.toml"),
        "CONCH_SERVER__PORT": str(port),
        "CONCH_SERVER__WORKERS": str(workers),
        "CONCH_STORE__URL": f"sqlite:{home}/bench.db",
        "CONCH_UPSTREAMS__TRITON__URLS": f"http://127.0.0.1:{behind.static.port}",
        "CONCH_UPSTREAMS__REPLAYER__URLS": f"http://127.0.0.1:{behind.replayer.port}",
    }

    def ask(*words: str) -> str:
        return _ask([sys.executable, "app.py", *words], source, settings)

    ask("migrate")
    ask("workspaces", "create", "bench", "--plan", "enterprise")
    key = json.loads(ask("keys", "create", "--workspace", "bench", "--json"))["key"]
    ask("credits", "grant", "bench", "1000000")
    command = [sys.executable, *(["app.py"] if metered else ["-m", "bench.unmetered"]), "serve"]
    with process(command, source, home / "log", cores, settings) as serving:
        await_ready(serving, port, home / "log", "/readyz")
        yield Target(name, serving.pid, port, "/v1", {"Authorization": f"Bearer {key}"})


def ask(target: Target, scenario: Scenario, body: bytes) -> tuple[int, bytes]:
    """POST one body; the status and the whole answer. OSError when there is none within 60 s."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", target.path(scenario), body, target.heads(scenario))
        response = connection.getresponse()
        return response.status, response.read()


def check(target: Target, scenario: Scenario, behind: Upstreams) -> None:
    """Raise BenchError unless the answer is the right one, whole: of a proxy, what its upstream says."""
    body = scenario.lasting(4 * scenario.interval) if scenario.paced else target.body(scenario)
    status, answer = ask(target, scenario, body)
    if target.api is not None:
        right = status == 200 and scenario.right(answer)
    elif scenario.paced:
        right = answer.count(b" @") == 4
    else:
        right = (status, answer) == ask(behind.static, scenario, body)
    if not right:
        raise BenchError(f"{target.name}: a wrong answer to {scenario.name} ({status}): {answer[:300]!r}")


@contextlib.contextmanager
def _nginx(folder: Path, configuration: str, port: int, core: int) -> Iterator[int]:
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        raise BenchError("nginx is missing; `make bench` says how to install it.")
    (folder / "nginx.conf").write_text(configuration)
    command = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]
    with process(command, folder, folder / "log", [core]) as serving:
        await_ready(serving, port, folder / "log")
        yield serving.pid


@contextlib.contextmanager
def process(
    command: list[str],
    folder: Path,
    log: Path,
    cores: Sequence[int],
    settings: Mapping[str, str] | None = None,
    *,
    piped: bool = False,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process pinned to its cores, that ends with this one however this one ends; `piped` keeps its output here."""
    pinned = ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", ",".join(map(str, cores)), *command]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            pinned,
            cwd=folder,
            env=_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else output,
            stderr=output,
        ) as serving,
    ):
        try:
            yield serving
        finally:
            serving.terminate()
            try:
                serving.wait(10)
            except subprocess.TimeoutExpired:
                serving.kill()


def await_ready(serving: subprocess.Popen[bytes], port: int, log: Path, path: str = "", seconds: float = 20) -> None:
    """Return when the port takes connections and `path`, if any, answers 200; else BenchError after `seconds`."""
    deadline = time.monotonic() + seconds
    while serving.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if not path:
                socket.create_connection(("127.0.0.1", port), timeout=2).close()
                return
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            with contextlib.closing(connection):
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return
        time.sleep(0.05)
    raise BenchError(f"{log.parent.name} did not start: {log.read_text(errors='replace')[-1000:]}")


def _ask(command: list[str], folder: Path, settings: Mapping[str, str]) -> str:
    done = subprocess.run(
        command, check=False, cwd=folder, env=_environment(settings), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"{' '.join(command[1:4])} failed: {done.stderr[-1000:]}")
    return done.stdout


def _environment(settings: Mapping[str, str] | None) -> dict[str, str]:
    """Ours, but of Conch's own settings those given here alone."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CONCH_")}
    return ours | dict(settings or {})


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
