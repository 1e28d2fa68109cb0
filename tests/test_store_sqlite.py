"""The store in its SQLite file: locks, a disk that fails, checkpoints, the file itself."""

import asyncio
import resource
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from store import Store, ledger, open_store, sqlite
from store.buckets import TOKEN
from store.records import StoreUnavailable
from tests.stores import START, Hands, judge, new_key, take


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "conch.db"


@pytest.fixture(params=["normal", "full"])
async def store(path: Path, clock: Hands, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    store = open_store(f"sqlite:{path}", judge, clock=clock, synchronous=request.param)
    await store.migrate()
    await store.run(ledger.create_workspace("acme", "60/5", by="test", now=START))
    yield store
    await store.close()


# Trouble


async def test_it_waits_for_the_lock_without_holding_the_loop(store: Store, path: Path) -> None:
    minted, _ = await new_key(store)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        early = store.teller.take(minted.digest)
        for _ in range(20):
            await asyncio.sleep(0)
        late = store.teller.take(minted.digest)
        assert not early.done()
        other.execute("ROLLBACK")
        assert [(await early).remaining, (await late).remaining] == [4, 3]


async def test_it_does_not_wait_for_ever(path: Path, clock: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PATIENCE", 0.05)
    for synchronous in ("normal", "full"):
        store = open_store(f"sqlite:{path}", judge, clock=clock, synchronous=synchronous)
        await store.migrate()
        digest = ledger.mint().digest
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = [store.teller.take(digest) for _ in range(3)]
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(each, StoreUnavailable) for each in outcomes)
            with pytest.raises(StoreUnavailable):
                await store.ping()
            with pytest.raises(StoreUnavailable):
                await store.run(ledger.create_workspace("late", "1/1", by="test", now=START))
        await store.ping()
        await store.close()


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def lost_file(path: Path) -> Iterator[None]:
    path.rename(path.with_suffix(".away"))
    yield
    assert not path.exists()
    path.with_suffix(".away").rename(path)


@contextmanager
def damaged_file(path: Path) -> Iterator[None]:
    content = path.read_bytes()
    path.write_bytes(b"not a database, by any reading" * 200)
    yield
    path.write_bytes(content)


@pytest.mark.parametrize("trouble", [full_disk, lost_file, damaged_file])
async def test_it_recovers_when_the_cause_goes(
    store: Store, path: Path, clock: Hands, trouble: Callable[[Path], AbstractContextManager[None]]
) -> None:
    minted, _ = await new_key(store)
    await take(store, minted)
    await store.close()
    again = open_store(f"sqlite:{path}", judge, clock=clock)
    with trouble(path):
        for outcome in await asyncio.gather(
            *(again.teller.take(minted.digest) for _ in range(2)), return_exceptions=True
        ):
            assert isinstance(outcome, StoreUnavailable)
    assert (await take(again, minted))[0].remaining == 3
    await again.close()


# The file


async def test_checkpoints_reach_the_database_file(path: Path, clock: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "STALE_SECONDS", 3600)
    monkeypatch.setattr(sqlite, "LONG_PAGES", 0)
    store = open_store(f"sqlite:{path}", judge, clock=clock)
    await store.migrate()
    await store.run(ledger.create_workspace("acme", "60/5", by="test", now=START))
    minted, _ = await new_key(store)
    with closing(sqlite3.connect(path)) as other:  # As long as it is open, closing the store checkpoints nothing.
        other.execute("SELECT * FROM buckets").fetchall()
        monkeypatch.setattr(sqlite, "STALE_ROWS", 1)
        await take(store, minted)
        await store.close()
        assert size(path.with_name(f"{path.name}-wal")) == 0
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as file:
        assert file.execute("SELECT tokens FROM buckets").fetchall() == [(4 * TOKEN,)]


def size(path: Path) -> int:
    return path.stat().st_size


def mode(path: Path) -> int | None:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


async def test_a_new_file_is_private_and_migrated_once(path: Path, clock: Hands) -> None:
    store = open_store(f"sqlite:{path}", judge, clock=clock)
    with pytest.raises(StoreUnavailable):
        await store.ping()
    assert mode(path) is None
    assert (await store.migrate())[0] == 1
    assert await store.migrate() == []
    assert mode(path) == 0o600
    await store.ping()
    await store.close()
