"""GET /metrics: what Prometheus scrapes, of all workers together whichever of them answers."""

import asyncio
import os
import platform
import resource
from functools import cache
from pathlib import Path
from typing import Annotated

from handlers.door.errors import Forbidden
from handlers.door.lifetime import Request
from handlers.door.wire import Bytes, Gate
from handlers.ops.admin import gatekeeper
from handlers.ops.version import build
from handlers.seeing import families
from handlers.seeing.cells import Cells, Row
from handlers.seeing.exposition import CONTENT_TYPE, added_up, text
from handlers.seeing.families import Family, series

HEADERS = [(b"content-type", CONTENT_TYPE), (b"cache-control", b"no-store")]
TICKS, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
UTIME, STIME, START, RESIDENT = 11, 12, 19, 21  # of /proc/PID/stat, counted from what follows the program's name


def gate(*tokens: str | None) -> Gate:
    """Those of `tokens` that are set open it; where none is, nobody may pass."""
    known = [token for token in tokens if token is not None]
    return gatekeeper(*known, what="metrics") if known else _closed


async def _closed(_: Request) -> None:
    raise Forbidden(
        "The metrics are closed: set CONCH_METRICS_TOKEN in Conch's environment, or [metrics] public = true.",
        code="metrics_closed",
    )


async def show(request: Request) -> Annotated[Bytes, "text/plain"]:
    """Everything that is counted, in Prometheus's text format."""
    cells = request.gateway.cells
    assert isinstance(cells, Cells), "else there is no such route"
    processes = [_process(row) for row in cells.rows]
    found: dict[str, list[float]] = added_up(zip(cells.rows, map(bool, processes), strict=True))
    for number, process in enumerate(processes):
        for family, value in process.items():
            found[series(family, worker=str(number))] = [value]
    found[series(families.WORKERS)] = [sum(map(bool, processes))]
    found[series(families.BUILD, **await asyncio.to_thread(_build))] = [1]
    for deployment in request.gateway.pool.deployments.values():
        servers = sum(replica.binding is not None for replica in deployment.replicas)
        found[series(families.READY, model=deployment.id)] = [deployment.verified]
        found[series(families.SERVERS, model=deployment.id)] = [servers]
    return Bytes(text(found), HEADERS)


@cache
def _build() -> dict[str, str]:
    told = build()
    return {"version": told["version"], "commit": told["commit"], "python": platform.python_version()}


def _process(row: Row) -> dict[Family, float]:
    """What the kernel says of a row's process; nothing where it does not live."""
    folder = Path(f"/proc/{row.pid}")
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        fds = len(os.listdir(folder / "fd"))  # noqa: PTH208 - 2 µs instead of 40
    except OSError:
        return {}
    return {
        families.CPU: (int(fields[UTIME]) + int(fields[STIME])) / TICKS,
        families.RESIDENT: int(fields[RESIDENT]) * PAGE,
        families.STARTED: _boot() + int(fields[START]) / TICKS,
        families.FDS: fds,
        families.MAX_FDS: resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


@cache
def _boot() -> float:
    """When the machine was started, in unix time."""
    lines = Path("/proc/stat").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("btime "))
