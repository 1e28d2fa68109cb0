"""conch backup: one whole, consistent file while others write, which a gateway serves from; or no file at all."""

import asyncio
import json
import multiprocessing
import os
import sqlite3
import stat
import urllib.request
from contextlib import closing
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from config import Config, Store
from handlers.ops import backup
from handlers.ops.progress import Progress
from store import open_store, sqlite
from store.records import Authority, Budget, Closing, Conflict, Hold, StoreUnavailable, Units, Usage
from store.sqlite import SqliteStore
from tests.gateway import Conch

spawn = multiprocessing.get_context("spawn")
DOLLAR = 1_000_000_000

BALANCE = """
SELECT workspace, credits + (SELECT COALESCE(SUM(amount), 0) FROM holds AS h WHERE h.workspace = a.workspace),
    (SELECT COALESCE(SUM(amount), 0) FROM grants AS g WHERE g.workspace = a.workspace)
    - (SELECT COALESCE(SUM(cost), 0) FROM usage AS u WHERE u.workspace = a.workspace)
FROM accounts AS a
"""


def judge(authority: Authority, now: int) -> Budget:
    return Budget(1000, 1000)


def spend(url: str, told: Connection, enough: Event) -> None:
    """Requests one after the other: each holds, and is settled for less."""

    async def main() -> None:
        teller = open_store(url, judge).teller
        for number in count():
            if enough.is_set():
                break
            id = f"req_{os.getpid()}_{number:09}"
            assert (await teller.hold(Hold(id, teller.process, "acme", 900))).granted
            usage = Usage(number, "acme", "key_1", "m", Units(output_tokens=7), 100)
            await teller.settle(Closing(id, held=True, usage=usage))
            if number % 100 == 0:
                told.send(number)
        await teller.close()

    asyncio.run(main())


@pytest.fixture
def shop(tmp_path: Path) -> Conch:
    """A store with a workspace that has credits, and a gateway's configuration whose Triton is away."""
    shop = Conch(tmp_path, "http://127.0.0.1:1")
    shop.workspace("acme")
    shop.command("credits", "grant", "acme", "1000")
    return shop


def configured(shop: Conch) -> Config:
    return Config(store=Store(url=f"sqlite:{shop.store}"))


def test_under_writes_each_backup_is_consistent(shop: Conch, tmp_path: Path) -> None:
    enough = spawn.Event()
    children = []
    for _ in range(2):
        here, there = spawn.Pipe(duplex=False)
        process = spawn.Process(target=spend, args=(f"sqlite:{shop.store}", there, enough), daemon=True)
        process.start()
        there.close()
        children.append((process, here))
    used = [0]
    for turn in range(3):
        for _, told in children:
            told.recv()  # another hundred requests of this process
        file = tmp_path / f"backup{turn}.db"
        made = shop.command("backup", str(file))
        assert made["size"] == file.stat().st_size
        with closing(sqlite3.connect(file)) as database:
            ((workspace, has, due),) = database.execute(BALANCE)
            assert (workspace, has) == ("acme", due)
            used.append(database.execute("SELECT count(*) FROM usage").fetchone()[0])
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert made["rows"]["usage"] == used[-1] > used[-2]
    enough.set()
    for process, _ in children:
        process.join(30)
        assert process.exitcode == 0


def test_writers_go_on_while_it_is_made(shop: Conch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PAGES", 4)
    store = open_store(f"sqlite:{shop.store}", judge)
    assert isinstance(store, SqliteStore)
    pages = []
    with closing(sqlite3.connect(shop.store, timeout=0, isolation_level=None)) as other:

        def tell(done: int, total: int) -> None:
            pages.append((done, total))
            assert len(pages) < 1000, "one commit of another makes no new beginning"
            other.execute("INSERT INTO secrets VALUES (?, x'00')", (f"{done}",))

        rows = store.backup(tmp_path / "backup.db", tell)
        assert len(pages) > 5
        assert len({total for _, total in pages}) == 1
        assert pages[-1][0] == pages[-1][1]
        assert rows["secrets"] == 0
        assert other.execute("SELECT count(*) FROM secrets").fetchone()[0] == len(pages)


def test_a_gateway_serves_from_it(shop: Conch, tmp_path: Path) -> None:
    key = shop.key("acme")
    with shop.running():
        shop.command("backup", str(tmp_path / "backup.db"))
    restored = Conch(tmp_path / "restored", "http://127.0.0.1:1")
    (tmp_path / "backup.db").rename(restored.store)
    assert restored.command("credits", "show", "acme")["credits_usd"] == "1000.00"
    with restored.running():
        asked = urllib.request.Request(f"{restored.url}/v1/models", headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(asked) as answer:
            assert json.load(answer)["object"] == "list"
            assert answer.headers["X-RateLimit-Tier"] == "enterprise"


def test_it_is_one_private_file_and_replaces_none(shop: Conch, tmp_path: Path) -> None:
    file = tmp_path / "there" / "backup.db"
    assert "cannot be written: No such file or directory" in shop.command("backup", str(file), status=1)
    file.parent.mkdir()
    shop.command("backup", str(file))
    assert [path.name for path in file.parent.iterdir()] == ["backup.db"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = file.read_bytes()
    shop.key("acme")
    assert "--force to replace it" in shop.command("backup", str(file), status=1)
    assert file.read_bytes() == first
    assert shop.command("backup", str(file), "--force")["rows"]["keys"] == 1
    assert "is the store itself" in shop.command("backup", str(shop.store), "--force", status=1)
    (tmp_path / "link.db").symlink_to(shop.store)
    assert "is the store itself" in shop.command("backup", str(tmp_path / "link.db"), "--force", status=1)


def test_one_that_is_broken_off_leaves_nothing(shop: Conch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "backup.db"

    def interrupted(*_: object) -> None:
        assert stat.S_IMODE((tmp_path / "backup.db.partial").stat().st_mode) == 0o600
        with pytest.raises(Conflict, match="Another backup is writing"):
            backup.write(configured(shop), file)
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        backup.write(configured(shop), file)
    assert not list(tmp_path.glob("backup.db*"))
    monkeypatch.undo()
    (tmp_path / "backup.db.partial").write_bytes(b"what a killed one left" * 1000)
    assert backup.write(configured(shop), file).rows["workspaces"] == 1


def test_a_damaged_store_gives_no_backup(shop: Conch, tmp_path: Path) -> None:
    with closing(sqlite3.connect(shop.store)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'keys_by_workspace'").fetchone()
    with shop.store.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\x55" * 4096)
    with pytest.raises(StoreUnavailable, match=r"damaged|malformed"):
        backup.write(configured(shop), tmp_path / "backup.db")
    assert not list(tmp_path.glob("backup.db*"))


def test_what_cannot_be_backed_up(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PostgreSQL store with pg_dump"):
        backup.write(Config(store=Store(url="postgresql://conch@127.0.0.1:1/conch")), tmp_path / "backup.db")
    with pytest.raises(StoreUnavailable, match="unable to open database file"):
        backup.write(Config(store=Store(url=f"sqlite:{tmp_path}/absent.db")), tmp_path / "backup.db")
    assert list(tmp_path.iterdir()) == []


def test_people_read_what_it_holds(shop: Conch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from app import build, serve
    from handlers.ops import commands

    file = tmp_path / "backup.db"
    assert commands.run(("backup", str(file), "--config", str(shop.config)), build, serve) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [["file", str(file)], ["size", f"{file.stat().st_size:,} bytes"], ["workspaces", "1 rows"]]
