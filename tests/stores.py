"""What the tests of the store share: a fresh database of either kind, a clock that a test sets, a judge of plans."""

import asyncio
from pathlib import Path

import pytest

from store import Store, ledger
from store.ledger import Minted
from store.records import Authority, Budget, Key, Take
from tests.postgres_fixture import Postgres

START = 1_800_000_000_000_000
SECOND = 1_000_000


class Hands:
    """A clock that a test sets."""

    now = START

    def __call__(self) -> int:
        return self.now


def judge(authority: Authority, now: int) -> Budget | None:
    """A plan "N/M" is N per minute and a burst of M; one that is neither is a bug of the judge."""
    key = authority.key
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        return None
    per_minute, burst = authority.workspace.plan.split("/")
    return Budget(int(per_minute), int(burst))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """A database that is new and empty."""
    return new_database(request.param, request)


def new_database(scheme: str, request: pytest.FixtureRequest) -> str:
    """The URL of a database of that scheme; SQLite's file and its folder are not there yet."""
    if scheme == "sqlite":
        folders: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
        return f"sqlite:{folders.mktemp('store')}/new/conch.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()


def written(url: str, request: pytest.FixtureRequest) -> bytes:
    """All that the database at `url` has put on the disk."""
    scheme, _, path = url.partition(":")
    if scheme == "sqlite":
        return b"".join(file.read_bytes() for file in Path(path).parent.iterdir())
    server: Postgres = request.getfixturevalue("postgres")
    return server.written()


async def new_key(store: Store, workspace: str = "acme") -> tuple[Minted, Key]:
    minted = ledger.mint()
    return minted, await store.run(ledger.create_key(minted, workspace, by="test", now=START))


async def take(store: Store, minted: Minted, times: int = 1) -> list[Take]:
    """So many takes in one tick."""
    return await asyncio.gather(*(store.teller.take(minted.digest) for _ in range(times)))


async def set_plan(store: Store, plan: str, workspace: str = "acme") -> None:
    await store.run(ledger.set_workspace(workspace, plan=plan, by="test", now=START))
