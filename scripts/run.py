"""`make run`: a real Triton with models/, the gateway before it, a workspace with a key; Ctrl-C stops them all."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from config import Config, load  # noqa: E402
from handlers.door.admission import judge  # noqa: E402
from scripts.triton import Triton  # noqa: E402
from store import ledger, open_store  # noqa: E402
from store.records import Conflict  # noqa: E402
from store.teller import Clock  # noqa: E402

URLS, GRPC = "CONCH_UPSTREAMS__LOCAL__URLS", "CONCH_UPSTREAMS__LOCAL__GRPC"
KEY_FILE = ROOT / "var" / "dev.key"
WORKSPACE, BY = "dev", "make run"


def main() -> int:
    """Start everything, say how to use it, wait for Ctrl-C or for something to end."""
    os.chdir(ROOT)
    KEY_FILE.parent.mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        if URLS not in os.environ:
            triton = Triton(
                ROOT / "models", http_port=8000, grpc_port=8001, metrics_port=8002, log=ROOT / "var/triton.log"
            )
            print("Starting Triton with models/ …", flush=True)
            os.environ[URLS] = stack.enter_context(triton).url
            os.environ[GRPC] = triton.grpc_url
        key = asyncio.run(_key(load()))
        process, address = stack.enter_context(_gateway())
        print(_welcome(address, key), flush=True)
        return process.wait()
    return 0


async def _key(config: Config) -> str:
    """The key in var/dev.key, if the store still knows it; else a new one of the workspace dev, written there."""
    clock = Clock()
    store = open_store(config.store.url, judge(config.plans), clock=clock)
    try:
        await store.migrate()
        with contextlib.suppress(Conflict):
            await store.run(ledger.create_workspace(WORKSPACE, "enterprise", by=BY, now=clock()))
        if KEY_FILE.exists():
            secret = KEY_FILE.read_text().strip()
            digest = ledger.digest(secret)
            if digest is not None and (await store.teller.take(digest)).granted:
                return secret
        minted = ledger.mint()
        await store.run(ledger.create_key(minted, WORKSPACE, name="make run", by=BY, now=clock()))
        KEY_FILE.touch(0o600)
        KEY_FILE.write_text(minted.secret + "\n")
        return minted.secret
    finally:
        await store.close()


@contextlib.contextmanager
def _gateway() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`app.py serve`, listening; what it logs goes to our stderr."""
    process = subprocess.Popen([sys.executable, "app.py", "serve"], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            sys.stderr.write(line)
            if found := re.search(r"listening on (http://\S+)", line):
                break
        else:
            raise SystemExit(f"The gateway ended with status {process.wait()}.")
        Thread(target=sys.stderr.writelines, args=(process.stderr,), daemon=True).start()
        yield process, found[1]
    finally:
        process.terminate()
        process.wait()


def _welcome(address: str, key: str) -> str:
    return f"""
Conch is ready at {address}/v1 (Ctrl-C stops it). The key is also in var/dev.key. Try:

  curl -N {address}/v1/chat/completions -H "Authorization: Bearer {key}" \\
    -H "Content-Type: application/json" \\
    -d '{{"model": "assistant", "stream": true, "messages": [{{"role": "user", "content": "What is Conch?"}}]}}'
"""


if __name__ == "__main__":
    sys.exit(main())
