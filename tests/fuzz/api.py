"""Schemathesis on the real thing: each operation of /v1/openapi.json, by a gateway before a real Triton."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scripts.triton import Triton
from tests.fuzz import document, page
from tests.gateway import ROOT, Conch
from tests.raw import CRASH

TOKEN = "the operator of this run"
RULES = Path(__file__).with_name("schemathesis.toml")
STARTING = 300.0  # seconds that Triton may take, where nothing else is in a hurry
FUZZ = ROOT / "var" / "fuzz"
DONE = FUZZ / "api.json"  # of each operation, what its last run came to
SURROUNDINGS = {"COLUMNS": "160", "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(ROOT)}
STATEFUL = "(sequences)"  # not one operation: calls of all, each with what the one before answered


def run(cases: int, only: Sequence[str], jobs: int, resume: bool, write: bool) -> bool:
    """Whether every operation, or those whose id is in `only`, does as it says; what it did is in var/fuzz/.

    `jobs` of them run side by side; with `resume`, none that was fine already with so many cases. With `write`, what
    came of it goes into the docs."""
    FUZZ.mkdir(parents=True, exist_ok=True)
    done: dict[str, dict[str, Any]] = json.loads(DONE.read_text()) if DONE.exists() else {}
    with TemporaryDirectory() as folder, ExitStack() as stack:
        triton = Triton([ROOT / "models", ROOT / "tests" / "contracts"], explicit=True, log=Path(folder) / "triton.log")
        stack.callback(triton.start(STARTING).stop)
        conch = Conch(Path(folder), triton.url, document.SETTINGS, grpc=triton.grpc_url)
        conch.workspace("acme")
        stack.enter_context(conch.running(CONCH_ADMIN_TOKEN=TOKEN))
        key = conch.key("acme")
        bound = conch.key("acme", "--pipeline", next(iter(document.PIPELINES)))
        told = document.reachable(conch, key, TOKEN)
        (target := FUZZ / "openapi.json").write_text(json.dumps(told))
        every = [*document.operations(told), STATEFUL]
        if unknown := set(only) - set(every):
            sys.exit(f"fuzz: no operation {', '.join(unknown)}; there are: {', '.join(every)}")

        def one(id: str) -> None:
            found = _operation(conch, target, id, bound if id == "pipeline_create" else key, cases)
            done[id] = found
            DONE.write_text(json.dumps(done, indent=1))
            print(_line(id, found), flush=True)

        wanted = list(only or every)
        fine = {id for id, each in done.items() if each["fine"] and each["asked"] >= cases} if resume else set()
        pool = ThreadPoolExecutor(jobs)
        try:
            list(pool.map(one, [id for id in wanted if id not in fine]))
        finally:  # of those that are interrupted, no more are begun
            pool.shutdown(cancel_futures=True)
    found = {id: done[id] for id in wanted}
    print(f"{sum(each['cases'] for each in found.values())} cases, {sum(each['seconds'] for each in found.values())} s")
    if write:
        page.write(found)
    return all(each["fine"] for each in found.values())


def _operation(conch: Conch, target: Path, id: str, key: str, cases: int) -> dict[str, Any]:
    """What one came to: whether it does as it says, and the gateway has logged no crash."""
    (folder := FUZZ / id).mkdir(exist_ok=True)
    (counted := folder / "counts.json").unlink(missing_ok=True)
    began, logged = time.monotonic(), len(conch.log)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(RULES), "run", str(target)]
    options = ["--url", conch.url, "--max-examples", str(cases), "--checks", "all", "--no-color"]
    options += ["--phases", "stateful"] if id == STATEFUL else ["--include-operation-id", id]
    ran = subprocess.run(
        command + options,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, **SURROUNDINGS, "CONCH_FUZZ_KEY": key, "CONCH_FUZZ_ADMIN": TOKEN},
    )
    log = "".join(conch.log[logged:])
    (folder / "log").write_text(ran.stdout + ran.stderr + "\n" + log)
    counts: dict[str, Any] = (
        json.loads(counted.read_text()) if counted.exists() else {"phases": {}, "statuses": {}, "slowest_ms": 0}
    )
    return counts | {
        "asked": cases,
        "cases": sum(counts["phases"].values()),
        "seconds": round(time.monotonic() - began),
        "fine": ran.returncode == 0 and CRASH.search(log) is None,
    }


def _line(id: str, found: dict[str, Any]) -> str:
    statuses = ", ".join(f"{number} x {status}" for status, number in found["statuses"].items())
    fine = "ok" if found["fine"] else f"FAILED: var/fuzz/{id}/log"
    return (
        f"{id:36} {found['cases']:6} cases {found['seconds']:5} s  {statuses}; slowest {found['slowest_ms']} ms  {fine}"
    )
