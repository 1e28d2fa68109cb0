"""What a start imports before the socket listens, by name: seconds drift with the machine, a set does not."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway import CONFIG, ROOT
from tests.test_layout import ROOMS

OUTSIDE = {"httptools", "msgspec", "orjson", "uvicorn", "uvloop", "starlette"}
"""Packages. Of Starlette only its types, which are not even classes: the rest comes with the first request for it."""
STANDARD = {
    "argparse",
    "asyncio",
    "ctypes",
    "encodings.idna",
    "hashlib",
    "hmac",
    "mmap",
    "resource",
    "secrets",
    "sqlite3",
    "tomllib",
}
"""Of the standard library; whatever these and OUTSIDE import themselves is free."""
OURS = """
config config.faults config.sections config.variables
handlers handlers.ops handlers.ops.commands handlers.ops.limits handlers.ops.listening handlers.ops.server
handlers.ops.tables
handlers.door handlers.door.admission handlers.door.billing handlers.door.deadline handlers.door.entrance
handlers.door.errors handlers.door.framing
handlers.door.gateway handlers.door.ids handlers.door.later handlers.door.lifetime handlers.door.protocol
handlers.door.recent handlers.door.signals
handlers.seeing handlers.seeing.cells handlers.seeing.families handlers.seeing.metrics handlers.seeing.observer
handlers.seeing.tracing
store store.accounts store.buckets store.claims store.ledger store.processes store.records store.responses store.script
store.sqlite store.teller
upstream upstream.answer upstream.binding upstream.connection upstream.contract upstream.deployment upstream.errors
upstream.fleet upstream.health upstream.http upstream.inference upstream.loading upstream.names upstream.pool
upstream.queue upstream.replica upstream.responses upstream.sse upstream.stops upstream.tasks
upstream.template upstream.tensors upstream.text upstream.trace
"""
"""Conch's own, for a chat model over HTTP on SQLite."""


def imported(*command: str) -> set[str]:
    """The modules that a Python imports until it ends, or says that it listens."""
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", *command], cwd=ROOT, env={}, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        found, said = set(), ""
        for line in process.stderr:
            if "listening on" in line:
                process.terminate()
                break
            if line.startswith("import time:"):
                found.add(line.rpartition("|")[2].strip())
            else:
                said += line
        else:
            assert process.wait() == 0, said
        return found


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The modules of a start with one chat model."""
    folder = tmp_path_factory.mktemp("start")
    places = {"store": folder / "conch.db", "root": ROOT, "cache": folder}
    text = CONFIG.format(triton="http://127.0.0.1:1", grpc="127.0.0.1:1", **places)
    first, assistant, _ = text.split("[[models]]", 2)
    (folder / "conch.toml").write_text(f"{first}[[models]]{assistant}".replace("grpc =", "#"))
    return imported("app.py", "serve", "--config", str(folder / "conch.toml"))


def test_a_start_imports_no_more_of_conch(start: set[str]) -> None:
    more = {name for name in start if name.split(".")[0] in ROOMS} - set(OURS.split())
    assert not more, (
        f"{', '.join(sorted(more))}: imported before Conch listens, which every start waits for; import it where it is "
        f"first used, or say in {Path(__file__).name} that a start needs it"
    )


def test_a_start_imports_no_more_of_others(start: set[str]) -> None:
    free = imported("-c", f"import {', '.join(sorted(OUTSIDE | STANDARD))}, uvicorn.protocols.http.httptools_impl")
    known = {name.split(".")[0] for name in free} | {*ROOMS, "starlette"}
    more = {name.split(".")[0] for name in start} - known
    assert not more, (
        f"{', '.join(sorted(more))}: imported before Conch listens, which every start waits for; import it where it is "
        f"first used, or say in {Path(__file__).name} that a start needs it"
    )
    assert {name for name in start if name.startswith("starlette.")} == {"starlette.types"}


def test_what_is_needed_late_is_imported_late(start: set[str]) -> None:
    late = {"aiohttp", "aiosqlite", "anyio", "asyncpg", "grpc", "jinja2", "multipart", "numpy", "PIL", "tokenizers"}
    assert not late & {name.split(".")[0] for name in start}
    assert "upstream.pool" in start, "the list is that of a start"
