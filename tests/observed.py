"""What is seen from outside: the requests that a model has counted, and a gateway's process as the kernel sees it."""

import contextlib
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from scripts.triton import Triton
from tests.gateway import Conch

LISTENING = "0A"  # in /proc/net/tcp


class Model:
    """What a contract model has counted: unless said otherwise, the one behind the id `vllm`."""

    def __init__(self, triton: Triton, name: str = "vllm") -> None:
        self.url = triton.metrics_url
        self.name = name
        self.before = {outcome: self._count(outcome) for outcome in ("started", "cancelled", "finished")}

    def since(self, outcome: str) -> int:
        """Requests since this object was made."""
        return self._count(outcome) - self.before[outcome]

    def _count(self, outcome: str) -> int:
        with urllib.request.urlopen(self.url, timeout=5) as reply:
            text = reply.read().decode()
        found = re.search(rf'conch_contract_requests_total{{model="{self.name}",outcome="{outcome}"}} (\S+)', text)
        return int(float(found[1])) if found else 0


class Process:
    """A gateway's process as the kernel sees it."""

    def __init__(self, conch: Conch, triton: Triton) -> None:
        self.folder = Path(f"/proc/{conch.pid}")
        self._here, self._there = (f":{urlsplit(each.url).port:04X}" for each in (conch, triton))

    @property
    def files(self) -> int:
        """Open ones, but for connections to Triton: those are kept for a while."""
        return len(list((self.folder / "fd").iterdir())) - len(self.upstream())

    @property
    def resident(self) -> int:
        """Bytes."""
        return self._count("status", r"VmRSS:\s+") * 1024

    @property
    def consumed(self) -> int:
        """Bytes that it has read so far, from wherever."""
        return self._count("io", "rchar: ")

    @property
    def busy(self) -> float:
        """Seconds of CPU so far."""
        spent = (self.folder / "stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, spent)) / os.sysconf("SC_CLK_TCK")

    def upstream(self) -> set[str]:
        """Its connections to Triton, by their local addresses."""
        return {local for local, remote in self._connections() if remote.endswith(self._there)}

    def clients(self) -> set[str]:
        """The connections of its clients, by their addresses; those that a client has closed, too."""
        return {remote for local, remote in self._connections() if local.endswith(self._here)}

    def _connections(self) -> Iterator[tuple[str, str]]:
        rows = [line.split() for line in (self.folder / "net" / "tcp").read_text().splitlines()[1:]]
        mine = self._sockets()
        for row in rows:
            if row[3] != LISTENING and row[9] in mine:
                yield row[1], row[2]

    def _sockets(self) -> set[str]:
        inodes = set()
        for entry in (self.folder / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                inodes.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
        return inodes

    def _count(self, file: str, name: str) -> int:
        found = re.search(name + r"(\d+)", (self.folder / file).read_text())
        assert found is not None
        return int(found[1])
