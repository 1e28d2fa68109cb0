"""Fetch and run the real tritonserver of the nvidia-pytriton wheel (CPU, python backend), without Docker or a GPU.

    python scripts/triton.py fetch                         # once: about 200 MB, checksums verified
    python scripts/triton.py serve [--repository DIR ...]  # in the foreground, on 127.0.0.1; Ctrl-C stops it

Standard library only, so that it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType, TracebackType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.wheel import CACHE, ROOT, Installation, TritonError, clean_environment, fetch, say

__all__ = ["Triton", "TritonError", "fetch"]

# Becomes the server, which the kernel then stops when our thread ends, even by kill -9 (PR_SET_PDEATHSIG is 1).
TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Triton:
    """One tritonserver on 127.0.0.1 over one or more model repositories; a context manager.

    A port of 0 is chosen free. `explicit` allows load and unload; `env` lies over the environment that the models see.
    Call start() from a thread that outlives the server: the kernel stops the server when that thread ends.
    """

    def __init__(
        self,
        repository: Path | list[Path],
        *,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        explicit: bool = False,
        env: dict[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self.repositories = [path.resolve() for path in ([repository] if isinstance(repository, Path) else repository)]
        self.explicit = explicit
        self.env = env or {}
        self.process: subprocess.Popen[bytes] | None = None
        self._asked = (http_port, grpc_port, metrics_port)
        self.ports = self._asked
        self._log = log
        self.log = log

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self.ports[1]}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.ports[2]}/metrics"

    def start(self, timeout: float = 180.0) -> Triton:
        """Return when every model is ready.

        TritonError if a port is taken; with the log's end if the server dies or `timeout` seconds pass.
        """
        installation = fetch()
        _refuse_taken(self._asked)
        # A free port can be taken by another process before Triton binds it.
        for attempt in range(3):
            self.ports = _free_ports(self._asked)
            try:
                self._launch(installation)
                self._wait_until_ready(time.monotonic() + timeout)
                return self
            except BaseException as error:
                taken = isinstance(error, TritonError) and "Address already in use" in str(error)
                self.stop()
                if not taken or 0 not in self._asked or attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def stop(self, timeout: float = 20.0) -> None:
        """SIGTERM, and after `timeout` seconds SIGKILL; the stubs of the models go with the server."""
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for segment in Path("/dev/shm").glob(f"{self._prefix}*"):
            segment.unlink(missing_ok=True)

    def __enter__(self) -> Triton:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _prefix(self) -> str:
        # Two servers with one prefix would write into each other's tensors.
        return f"conch_{os.getpid()}_{self.ports[0]}_"

    def _launch(self, installation: Installation) -> None:
        http_port, grpc_port, metrics_port = self.ports
        command = [sys.executable, "-I", "-S", "-c", TIED, str(os.getpid())]
        command += [str(installation.server / "bin" / "tritonserver")]
        command += [f"--model-repository={path}" for path in self.repositories]
        command += [
            f"--backend-directory={installation.server / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            *("--http-address=127.0.0.1", f"--http-port={http_port}"),
            *("--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}"),
            *("--metrics-address=127.0.0.1", f"--metrics-port={metrics_port}"),
            "--allow-gpu-metrics=false",
            "--exit-timeout-secs=5",
            # Two stubs starting at once were seen to swap their models (server 2.51): one after the other.
            "--model-load-thread-count=1",
            # Each config.pbtxt is whole; completing it starts every model twice, 1.6 s each.
            "--disable-auto-complete-config",
        ]
        if self.explicit:
            command += ["--model-control-mode=explicit", "--load-model=*"]
        if self._log is None:
            folder = CACHE / "log"
            folder.mkdir(parents=True, exist_ok=True)
            self.log = folder / f"{http_port}.log"
        assert self.log is not None
        with open(self.log, "wb") as output:
            self.process = subprocess.Popen(
                command,
                env=self._environment(installation),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self, installation: Installation) -> dict[str, str]:
        env = clean_environment()
        # The stub finds its packages through the first python on PATH, and nowhere else.
        env["PATH"] = f"{installation.venv / 'bin'}:{env.get('PATH', os.defpath)}"
        env["LD_LIBRARY_PATH"] = ":".join(filter(None, [str(installation.libpython), env.get("LD_LIBRARY_PATH")]))
        return env | self.env

    def _wait_until_ready(self, deadline: float) -> None:
        assert self.process is not None
        # Another Triton may answer on our port, until ours finds it taken and ends.
        while not (self._ready() and _listens(self.process.pid, self.ports[0])):
            code = self.process.poll()
            if code is not None:
                raise TritonError(f"Triton ended with code {code} before it was ready. Its log ends:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise TritonError(f"Triton was not ready in time. Its log ends:\n{self.tail()}")
            time.sleep(0.05)

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[0], timeout=5)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/v2/health/live")
                live = connection.getresponse()
                live.read()
                connection.request("POST", "/v2/repository/index", "{}", {"content-type": "application/json"})
                index = connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                return False
        models = json.loads(index) if live.status == 200 else []
        return bool(models) and all(model.get("state") == "READY" for model in models)

    def tail(self, lines: int = 40) -> str:
        """Return the last lines of the log."""
        assert self.log is not None
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _refuse_taken(asked: tuple[int, int, int]) -> None:
    for name, port in zip(("HTTP", "gRPC", "metrics"), asked, strict=True):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            raise TritonError(
                f"Port {port}, for Triton's {name}, cannot be had ({os.strerror(error.errno or 0)}): end what holds it."
            ) from None


def _listens(pid: int, port: int) -> bool:
    """Whether this process itself holds the port on 127.0.0.1; see proc(5) for the columns and states."""
    local, listening = f"0100007F:{port:04X}", "0A"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1] == local and row[3] == listening}
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            if str(descriptor.readlink()) in sockets:
                return True
    return False


def _free_ports(asked: tuple[int, int, int]) -> tuple[int, int, int]:
    """Replace each 0 by a free port below the ephemeral range, where no client's connection can take it first."""
    chosen: list[int] = []
    for port in asked:
        while port == 0 or port in chosen:
            candidate = random.SystemRandom().randrange(20000, 32000)
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", candidate))
                port = candidate
        chosen.append(port)
    return chosen[0], chosen[1], chosen[2]


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Fetch and run a real Triton, without Docker or a GPU.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("fetch", help="download and unpack what is missing")
    serve = verbs.add_parser("serve", help="run in the foreground on 127.0.0.1")
    serve.add_argument("--repository", type=Path, action="append", help="a model repository (default: models/)")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        serve.add_argument(f"--{name}-port", type=int, default=port, help="0 chooses a free one")
    serve.add_argument("--explicit", action="store_true", help="allow models to be loaded and unloaded")
    serve.add_argument("--log", type=Path, help="Triton's own log (default: a file in the cache folder)")
    arguments = parser.parse_args()
    try:
        return _serve(arguments) if arguments.verb == "serve" else _report(fetch())
    except TritonError as error:
        say(str(error))
        return 1


def _report(installation: Installation) -> int:
    say(f"Triton is in {installation.wheel}, its models' environment in {installation.venv}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    triton = Triton(
        arguments.repository or [ROOT / "models"],
        http_port=arguments.http_port,
        grpc_port=arguments.grpc_port,
        metrics_port=arguments.metrics_port,
        explicit=arguments.explicit,
        log=arguments.log,
    )
    try:
        with triton:
            addresses = f"HTTP {triton.url}, gRPC {triton.grpc_url}, metrics {triton.metrics_url}"
            say(f"Triton is ready: {addresses}, log {triton.log}")
            assert triton.process is not None
            return triton.process.wait()
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
