"""The real PostgreSQL that the tests run on: Debian's server with a cluster of its own, a fresh database per test."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import IO

import pytest

from scripts.setup import postgres_programs

# The kernel ends the server when our thread does, even by kill -9; as root, we become who it may run as.
TIED = ["setpriv", "--pdeathsig", "INT"]
DEMOTED = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
READY = "ready to accept connections"
# Nothing that these tests look at survives the machine, so that nothing waits for its disk.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "log_line_prefix": "%t ",
}
ENVIRONMENT = {"PATH": f"{os.defpath}:/usr/sbin:/sbin", "LC_ALL": "C"}


class Postgres:
    """One server on 127.0.0.1. It may be stopped and started again: port and data stay, and `log` goes on."""

    def __init__(self, folder: Path) -> None:
        programs = postgres_programs()
        assert programs, "scripts/setup.py test installs PostgreSQL"
        self._programs, self._folder, self._data = programs, folder, folder / "data"
        self._as_whom: list[str] = []
        if os.geteuid() == 0:
            self._as_whom = DEMOTED
            shutil.chown(folder, "postgres")
        self._process: subprocess.Popen[str] | None = None
        self._numbers = itertools.count()
        self.log: list[str] = []
        self.port = _free_port()
        self._call("initdb", "-D", str(self._data), "-U", "conch", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self._call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "conch", name)
        return f"postgresql://conch@127.0.0.1:{self.port}/{name}"

    def written(self) -> bytes:
        """What is in the files of all its databases, up to now."""
        self._call("psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "conch", "-c", "CHECKPOINT", "postgres")
        return b"".join(file.read_bytes() for file in (self._data / "base").rglob("*") if file.is_file())

    def start(self) -> None:
        """Returns when connections are accepted."""
        settings = itertools.chain.from_iterable(("-c", f"{name}={value}") for name, value in SETTINGS.items())
        command = [str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self.port), *settings]
        self._process = subprocess.Popen(
            [*self._as_whom, *TIED, *command],
            cwd=self._folder,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stderr is not None
        self._await_readiness(self._process.stderr)

    def stop(self, signal_number: int = signal.SIGINT) -> None:
        """Ends every connection and the server; SIGQUIT does so as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal_number)
            process.wait(timeout=20)
            self._follower.join()

    def signal(self, number: int) -> None:
        """Sends `number` to the server and all its processes: SIGSTOP makes it hang, SIGCONT goes on."""
        assert self._process is not None
        for process in (self._process.pid, *_children(self._process.pid)):
            os.kill(process, number)

    def _call(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as_whom, str(self._programs / program), *arguments],
            cwd=self._folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def _await_readiness(self, stderr: IO[str]) -> None:
        for line in stderr:
            self.log.append(line)
            if READY in line:
                self._follower = Thread(target=self._follow, args=(stderr,), daemon=True)
                self._follower.start()
                return
        raise AssertionError("PostgreSQL did not start:\n" + "".join(self.log))

    def _follow(self, stderr: IO[str]) -> None:
        with stderr:
            self.log.extend(stderr)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL on a free port."""
    with tempfile.TemporaryDirectory(prefix="conch-postgres-") as folder:
        server = Postgres(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()
