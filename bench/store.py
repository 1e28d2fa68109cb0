"""What a take costs: its latency, and its CPU with 1, 16 and 64 waiters on one key or on a key each."""

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

from store import Store, ledger, open_store
from store.records import Authority, Budget

TAKES = 20_000


def judge(authority: Authority, now: int) -> Budget:
    return Budget(100_000, 100_000)


async def serve(store: Store, digests: list[bytes], clients: int, spent: list[float]) -> None:
    async def client(digest: bytes) -> None:
        for _ in range(TAKES // clients):
            start = time.perf_counter()
            await store.teller.take(digest)
            spent.append(time.perf_counter() - start)

    await asyncio.gather(*(client(digests[place % len(digests)]) for place in range(clients)))


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:{folder}/bench.db", judge)
        await store.migrate()
        await store.run(ledger.create_workspace("bench", "pro", by="bench", now=0))
        minted = [ledger.mint() for _ in range(64)]
        for each in minted:
            await store.run(ledger.create_key(each, "bench", by="bench", now=0))
        digests = [each.digest for each in minted]
        print(f"{'keys':>5} {'waiters':>8} {'p50 µs':>8} {'p99.9 µs':>9} {'CPU µs':>7}")
        for keys, clients in ((1, 1), (1, 16), (1, 64), (64, 16), (64, 64)):
            spent: list[float] = []
            start = time.process_time()
            await serve(store, digests[:keys], clients, spent)
            cpu = (time.process_time() - start) / len(spent)
            late = sorted(spent)[len(spent) * 999 // 1000]
            print(f"{keys:5} {clients:8} {median(spent) * 1e6:8.1f} {late * 1e6:9.1f} {cpu * 1e6:7.2f}")
        await store.close()


if __name__ == "__main__":
    asyncio.run(main())
