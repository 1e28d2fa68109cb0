"""Schemathesis on the real thing: each operation of /v1/openapi.json, by a gateway before a real Triton."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from scripts.triton import Triton
from tests.gateway import ROOT, Conch
from tests.raw import CRASH, Wire, bearer

TOKEN = "the operator of this run"
RULES = Path(__file__).with_name("schemathesis.toml")
STARTING = 300.0  # seconds that Triton may take, where nothing else is in a hurry
FUZZ = ROOT / "var" / "fuzz"
ACCESS = FUZZ / "access.jsonl"
SETTINGS = {"CONCH_ADMIN_TOKEN": TOKEN, "CONCH_SERVER__ACCESS_LOG": "true"}
PIPELINES = ["pipe_support", "pipe_sales", "pipe_audio"]


def run(cases: int, only: Sequence[str]) -> bool:
    """Whether every operation, or those whose id is in `only`, does as it says; what it did is in var/fuzz/."""
    FUZZ.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        triton = Triton([ROOT / "models", ROOT / "tests" / "contracts"], explicit=True, log=Path(folder) / "triton.log")
        with ExitStack() as stack:
            stack.callback(triton.start(STARTING).stop)
            conch = Conch(Path(folder), triton.url, grpc=triton.grpc_url)
            conch.workspace("acme")
            conch.workspace("spare")
            with open(ACCESS, "wb") as conch.stdout, conch.running(**SETTINGS):
                key = conch.key("acme")
                document = _reachable(conch, key)
                (target := FUZZ / "openapi.json").write_text(json.dumps(document))
                every = dict(_operations(document))
                if unknown := set(only) - every.keys():
                    sys.exit(f"fuzz: no operation {', '.join(unknown)}; there are: {', '.join(every)}")
                done = [_operation(conch, target, id, every[id], key, cases) for id in only or every]
    return all(done)


def _operation(conch: Conch, document: Path, id: str, operation: dict[str, Any], key: str, cases: int) -> bool:
    """Whether one operation does as it says, and the gateway has logged no crash."""
    began, logged, answered = time.monotonic(), len(conch.log), ACCESS.stat().st_size
    tokens = [{"key": key, "admin": TOKEN}[name] for each in operation["security"] for name in each]
    options = ["--url", conch.url, "--include-operation-id", id, "--max-examples", str(cases), "--checks", "all"]
    options += [f"--header=Authorization: Bearer {token}" for token in tokens[:1]]
    options += ["--generation-database", "none", "--no-color"]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "--config-file", str(RULES), "run", str(document), *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=FUZZ,
        env={**os.environ, "COLUMNS": "160"},
    )
    said = done.stdout + done.stderr
    crash = CRASH.search("".join(conch.log[logged:]))
    (FUZZ / f"{id}.log").write_text(said + "\n" + "".join(conch.log[logged:]))
    fine = done.returncode == 0 and crash is None
    print(
        f"{id:40} {time.monotonic() - began:5.0f} s  {_statuses(answered)}"
        f"  {'ok' if fine else f'FAILED: var/fuzz/{id}.log'}",
        flush=True,
    )
    return fine


def _statuses(since: int) -> str:
    """How many answers there were of each status, by the access log from this byte on, and how long one took."""
    with open(ACCESS, "rb") as file:
        file.seek(since)
        lines = [json.loads(line) for line in file]
    counted = sorted(Counter(line["status"] for line in lines).items())
    slowest = max((line["total_ms"] for line in lines), default=0)
    return ", ".join(f"{number} x {status}" for status, number in counted) + f"; slowest {slowest:.0f} ms"


def _reachable(conch: Conch, key: str) -> dict[str, Any]:
    """The document, told which models, pipelines and objects there are: else hardly a request would reach a model."""
    with urlopen(f"{conch.url}/v1/openapi.json", timeout=30) as reply:
        document: dict[str, Any] = json.load(reply)
    with Wire(conch.url) as wire:
        wire.request("GET", "/v1/models", **bearer(key))
        ids = [each["id"] for each in wire.answer().json["data"]]
        body = json.dumps({"model": "assistant", "input": "Hello"}).encode()
        wire.request("POST", "/v1/responses", body, **bearer(key))
        kept = wire.answer().json["id"]
    by_task = {task: [id for id in ids if id in of] for task, of in _tasks(conch).items()}
    for name, schema in document["components"]["schemas"].items():
        for task, start in STARTS.items():
            if name.startswith(start) and name.endswith("Request"):
                schema["properties"]["model"] = {"enum": by_task[task]}
                schema["required"] = [*schema["required"], "model"]
    document["components"]["parameters"]["RequestTimeout"]["schema"] = {"enum": ["60", "120.5"]}  # else many are a 504
    spare = conch.command("keys", "create", "--workspace", "spare")["id"]
    known = {"responses": kept, "models": "assistant", "keys": spare, "workspaces": "spare"}
    for path, item in document["paths"].items():
        for operation in (item[method] for method in item.keys() - {"servers"}):
            parameters = operation.get("parameters", [])
            if operation["operationId"] not in RETRIED and RETRY in parameters:
                parameters.remove(RETRY)
            for parameter in parameters:
                if parameter.get("in") != "path":
                    continue
                if parameter["name"] == "pipeline":
                    parameter["schema"] = {"enum": PIPELINES}
                elif found := [id for segment, id in known.items() if f"/{segment}/" in path]:
                    parameter["schema"] = {"anyOf": [{"enum": found}, parameter["schema"]]}
    return document


RETRY = {"$ref": "#/components/parameters/IdempotencyKey"}
RETRIED = ("embeddings_create", "rerank_create")
"""The operations that are sent idempotency keys: most are the same, and what follows the first is a 409."""

STARTS = {
    "chat": ("Chat", "Completion", "Response"),
    "image": ("Image",),
    "embedding": ("Embedding",),
    "rerank": ("Rerank",),
    "speech": ("Speech",),
    "transcription": ("Transcription", "Translation"),
}


def _tasks(conch: Conch) -> dict[str, list[str]]:
    """The ids of each task's models."""
    import tomllib

    found: dict[str, list[str]] = {}
    for model in tomllib.loads(conch.config.read_text())["models"]:
        found.setdefault(model["task"], []).append(model["id"])
    return found


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """By their ids, in the document's order."""
    for item in document["paths"].values():
        for method in item.keys() - {"servers"}:
            yield item[method]["operationId"], item[method]
