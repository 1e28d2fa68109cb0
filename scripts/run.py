"""`make run`: a real Triton with models/, the gateway before it, a workspace with a key; Ctrl-C stops them all."""

import asyncio
import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from config import NANO, Config, ConfigError, load  # noqa: E402
from handlers.door.admission import judge  # noqa: E402
from scripts.triton import Triton, TritonError  # noqa: E402
from store import accounts, ledger, open_store  # noqa: E402
from store.records import Conflict, StoreError  # noqa: E402
from store.teller import Clock  # noqa: E402

URLS, GRPC = "CONCH_UPSTREAMS__LOCAL__URLS", "CONCH_UPSTREAMS__LOCAL__GRPC"
TOKEN = "CONCH_ADMIN_TOKEN"
KEY_FILE = ROOT / "var" / "dev.key"
WORKSPACE, BY = "dev", "make run"


class Ended(Exception):
    """The run cannot begin or go on; one sentence."""


def main() -> int:
    """Start everything, say how to use it, wait for Ctrl-C or for something to end."""
    os.chdir(ROOT)
    KEY_FILE.parent.mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run()
    except (Ended, TritonError, ConfigError, StoreError, ValueError) as error:
        print(f"make run: {error}", file=sys.stderr)
        return 1


def _run() -> int:
    known = _read_key()
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        triton = None
        if URLS not in os.environ:
            triton = Triton(
                ROOT / "models", http_port=8000, grpc_port=8001, metrics_port=8002, log=ROOT / "var/triton.log"
            )
            print("Starting Triton with models/ …", flush=True)
            os.environ[URLS] = stack.enter_context(triton).url
            os.environ[GRPC] = triton.grpc_url
        key = asyncio.run(_key(load(), known))
        _write_key(key)
        os.environ.setdefault(TOKEN, secrets.token_urlsafe(16))
        process, address = stack.enter_context(_gateway())
        print(_welcome(address, key), flush=True)
        return _wait(process, triton.process if triton else None)
    return 0


def _wait(gateway: subprocess.Popen[str], triton: subprocess.Popen[bytes] | None) -> int:
    """The gateway's exit status. Raises Ended when Triton ends before it."""
    while True:
        try:
            return gateway.wait(0.5)
        except subprocess.TimeoutExpired:
            if triton is not None and triton.poll() is not None:
                raise Ended(f"Triton ended with status {triton.returncode}; see var/triton.log.") from None


def _read_key() -> str:
    """What var/dev.key holds, of whatever kind; empty when it is not there. Raises Ended."""
    try:
        return KEY_FILE.read_bytes().decode("ascii", "replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Ended(f"{KEY_FILE} is where the key goes, and cannot be read ({error.strerror}): remove it.") from error


def _write_key(secret: str) -> None:
    """A new file, readable by its owner only, in the old one's place at once."""
    new = KEY_FILE.with_name(f"{KEY_FILE.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret + "\n")
    new.replace(KEY_FILE)


async def _key(config: Config, known: str) -> str:
    """`known`, if it is a key of this store that still works; else a new one of the workspace dev."""
    clock = Clock()
    store = open_store(config.store.url, judge(config.plans), clock=clock)
    try:
        await store.migrate()
        with contextlib.suppress(Conflict):
            await store.run(ledger.create_workspace(WORKSPACE, "enterprise", by=BY, now=clock()))
            await store.run(accounts.grant(WORKSPACE, 100 * NANO, note="to try prices with", by=BY, now=clock()))
        digest = ledger.digest(known)
        if digest is not None and (await store.teller.take(digest)).granted:
            return known
        minted = ledger.mint()
        await store.run(ledger.create_key(minted, WORKSPACE, name="make run", by=BY, now=clock()))
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
            if found := re.search(r"listening on (https?://\S+)", line):
                break
        else:
            raise Ended(f"the gateway ended with status {process.wait()}.")
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

The dashboard is at {address}/dashboard; sign in with {os.environ[TOKEN]}
"""


if __name__ == "__main__":
    sys.exit(main())
