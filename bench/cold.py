"""`make bench-cold`: from exec to the first answer, beside `python -c pass`; memory when idle, and size.

    python -m bench.cold [--rounds 11] [--only NAME]

Every start is a new process with a warm page cache; each round takes every program once, so that drift of the machine
meets all alike. The ratios to `python -c pass`, of the interpreter that runs app.py, are the figures to trust.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.cold_targets import ANSWER, BINARY, PEERS, ROOT, BenchError, Program, environment, programs, static_upstream

RESULTS = ROOT / "bench" / "results"
PATIENCE = 60.0  # seconds that a start may take
SETTLED = 1.0  # seconds after the first answer: what a program does in the background is done
SLOW_ROUNDS = 3  # for programs that take seconds
BODY = b'{"model":"assistant","messages":[{"role":"user","content":"What does a gateway do?"}],"max_tokens":64}'


@dataclass(frozen=True)
class Start:
    """Seconds from exec to the first answer to a GET of its health, and to a chat; MiB of RSS when idle after each."""

    health: float
    chat: float
    idle: float
    after_chat: float


@dataclass(frozen=True)
class Results:
    """Seconds of `python -c pass` and the starts of every program, one of each per round."""

    passes: list[float]
    starts: dict[str, list[Start]]


def main() -> None:
    """Run, print the table, keep the samples in bench/results/."""
    parser = argparse.ArgumentParser(prog="python -m bench.cold")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", metavar="NAME", help="this program alone, beside python -c pass")
    options = parser.parse_args()
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: sys.exit("bench: stopped"))
    try:
        results = run(options.rounds, options.only)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    print(report(results))
    print(f"\nkept in {keep(results).relative_to(ROOT)}")


def run(rounds: int, only: str | None) -> Results:
    """Every program in turn, `rounds` times. Raises BenchError where one gives no answer or a wrong one."""
    with tempfile.TemporaryDirectory(prefix="conch-cold-") as folder, static_upstream() as upstream:
        chosen = [each for each in programs(Path(folder), upstream) if only in (None, each.name)]
        if not chosen:
            raise BenchError(f"there is no {only!r} here.")
        results = Results([], {program.name: [] for program in chosen})
        for number in range(-1, rounds):  # the first round only warms
            passed = median(_pass() for _ in range(5))
            if number >= 0:
                results.passes.append(passed)
            for program in chosen:
                if not program.slow or number < SLOW_ROUNDS:
                    taken = start(program)
                    if number >= 0:
                        results.starts[program.name].append(taken)
        return results


def start(program: Program) -> Start:
    """Start it twice: once for its health, once for its first chat."""
    health, idle = _first(program, _request("GET", program.health), b" 200 ")
    heads = {"Content-Type": "application/json", **program.headers}
    chat, after = _first(program, _request("POST", "/v1/chat/completions", heads, BODY), ANSWER.encode())
    return Start(health, chat, idle, after)


def _request(method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> bytes:
    heads = {"Host": "127.0.0.1", **(headers or {}), "Content-Length": str(len(body))}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in heads.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def _first(program: Program, request: bytes, expected: bytes) -> tuple[float, float]:
    """Seconds from exec to an answer with `expected` in it; MiB of RSS a moment later."""
    if program.cache is not None:
        shutil.rmtree(program.cache)
        program.cache.mkdir()
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        with subprocess.Popen(
            program.command, cwd=ROOT, env=environment(program.settings), stdout=log, stderr=log
        ) as process:
            try:
                answer = _exchange(process, program.port, request, expected, began + PATIENCE)
                seconds = time.perf_counter() - began
                if expected not in answer:
                    log.seek(0)
                    said = log.read()[-1000:].decode(errors="replace")
                    raise BenchError(f"{program.name}: {answer[:300]!r} {said}")
                time.sleep(SETTLED)
                memory = _memory(process.pid)
            finally:
                process.terminate()
        return seconds, memory


def _exchange(process: subprocess.Popen[bytes], port: int, request: bytes, expected: bytes, until: float) -> bytes:
    """The answer to `request`, which is sent as soon as the port takes a connection, and again until it is right."""
    answer = b"no answer"
    while process.poll() is None and time.perf_counter() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.settimeout(until - time.perf_counter())
            connection.sendall(request)
            answer = b""
            while expected not in answer and (piece := connection.recv(1 << 16)):
                answer += piece
                if b" 200 " not in answer:
                    break  # it says that it is not ready
            if expected in answer:
                return answer
        time.sleep(0.0005)
    return answer


def _pass() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True, cwd=ROOT, env=environment({}))
    return time.perf_counter() - began


def _memory(pid: int) -> float:
    """MiB of RSS of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024 + sum(_memory(int(child)) for child in children)


def report(results: Results) -> str:
    """Medians, and the medians over the rounds of the ratios to that round's `python -c pass`."""
    lines = [
        f"python -c pass: {median(results.passes) * 1000:.1f} ms",
        "",
        f"{'':18}  /healthz ms  ÷ pass   first chat ms  ÷ pass   idle MiB   after it",
    ]
    for name, taken in results.starts.items():
        health, chat, idle, after = (median(each) for each in zip(*map(dataclasses.astuple, taken), strict=True))
        ratios = [
            median(getattr(each, what) / passed for each, passed in zip(taken, results.passes, strict=False))
            for what in ("health", "chat")
        ]
        lines.append(
            f"{name:18}  {health * 1000:11.0f} {ratios[0]:7.1f}  {chat * 1000:14.0f} {ratios[1]:7.1f}"
            f"  {idle:9.1f}  {after:9.1f}"
        )
    lines.append("")
    if BINARY.exists():
        lines.append(f"{BINARY.relative_to(ROOT)}: {BINARY.stat().st_size / 1e6:.1f} MB")
    else:
        lines.append("Without the binary, which `make binary` builds.")
    if not PEERS.exists():
        lines.append("Without LiteLLM and Portkey, which `make bench-peers` installs.")
    return "\n".join(lines)


def keep(results: Results) -> Path:
    """Write every sample with what is needed to compare it later."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    record = {
        "revision": subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "binary": BINARY.stat().st_size if BINARY.exists() else None,
        **dataclasses.asdict(results),
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"cold-{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False))
    return file


if __name__ == "__main__":
    main()
