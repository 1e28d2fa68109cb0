"""conch copy: a whole shop in another database, page by page, the same to the last byte, also after interruptions."""

import asyncio
import io
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from config import Config
from handlers.ops.progress import Progress
from handlers.ops.webhooks.events import describe
from store import Clock, Store, accounts, alerts, claims, files, ledger, open_store, responses, webhooks
from store.alerts import Look
from store.copying import Copied, copy
from store.records import (
    Authority,
    Budget,
    Claim,
    Closing,
    Conflict,
    Failure,
    File,
    Hold,
    Recorded,
    StoredResponse,
    StoreUnavailable,
    Units,
    Usage,
)
from store.script import Script, Statement
from store.sqlite import schema
from tests.gateway import Conch
from tests.postgres_fixture import Postgres, postgres

__all__ = ["postgres"]

NOW = 1_800_000_000_000_000
DOLLAR = 1_000_000_000


def judge(authority: Authority, now: int) -> Budget:
    return Budget(100, 100)


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def rows(sql: str, *params: Any) -> Script[list[tuple[Any, ...]]]:
    return [tuple(row) for row in (yield Statement(sql, params))]


async def everything(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, in an order that does not depend on the database."""
    return {
        table.name: sorted(await store.run(rows(f"SELECT {', '.join(table.columns)} FROM {table.name}")), key=repr)
        for table in schema()
    }


async def balance(store: Store) -> dict[str, tuple[int, int]]:
    """Of each workspace, what it has (credits and holds) and what it is to have (grants less usage)."""
    has, due = "credits + held", "granted - used"
    found = await store.run(
        rows(
            f"SELECT workspace, {has}, {due} FROM (SELECT workspace, credits, "
            "(SELECT COALESCE(SUM(amount), 0) FROM holds AS h WHERE h.workspace = a.workspace) AS held, "
            "(SELECT COALESCE(SUM(amount), 0) FROM grants AS g WHERE g.workspace = a.workspace) AS granted, "
            "(SELECT COALESCE(SUM(cost), 0) FROM usage AS u WHERE u.workspace = a.workspace) AS used "
            "FROM accounts AS a) AS sums"
        )
    )
    return {workspace: (int(has), int(due)) for workspace, has, due in found}


async def fill(store: Store, requests: int = 1200) -> ledger.Minted:
    """A shop with rows in every table that a stopped gateway leaves rows in; the secret of a key that works."""
    minted = ledger.mint()
    for name in ("acme", "zeta"):
        await store.run(ledger.create_workspace(name, "pro", by="test", now=NOW))
        await store.run(accounts.grant(name, 50 * DOLLAR, by="test", now=NOW))
    first = await store.run(ledger.create_key(ledger.mint(), "acme", models=["a", "b"], by="test", now=NOW + 5))
    # Made by a machine whose clock is behind: its id comes before the one that it refers to.
    await store.run(ledger.rotate_key(first.id, minted, grace=10, by="test", now=NOW - 5))
    await store.run(files.secret("files", b"\x00\xff" * 16))
    pictures = [File(f"file_{number}", NOW + number, "image/png", b"\x89PNG" * 300_000) for number in range(3)]
    await store.run(files.keep(pictures, limit=1 << 30, now=NOW))
    secret, events = webhooks.mint(), ("credits.low", "deployment.up")
    await store.run(webhooks.create(secret, None, "https://example.com/", events, "", by="test", now=NOW))
    await store.run(ledger.set_workspace("acme", credits_low=99 * DOLLAR, by="test", now=NOW))
    low = Look("proc", {}, False, 1, 0, 0, 1, 0, NOW, describe(Config()))
    await store.run(alerts.turn(low, NOW))
    turn = StoredResponse("resp_1", "acme", None, None, NOW, '[{"text": "Grüße 🐚"}]', "{}")
    await store.run(responses.keep([(turn, 0)], NOW))
    for start in range(0, requests, 500):
        used = [
            Closing(
                f"req_{number}",
                usage=Usage(NOW, "acme", first.id, "m", Units(output_tokens=number), cost=number, duration=number),
                failure=Failure(NOW, "acme", first.id, "m", 502),
            )
            for number in range(start, min(start + 500, requests))
        ]
        await store.run(accounts.settle(used, NOW))
    claim = Claim(b"\x00claim", "req_1", "proc_1", b"\xffdigest", NOW + 10**12)
    await store.run(claims.claim([claim], NOW))
    answer = Recorded([(b"a", b"b")], b"\x00\x01 body", streamed=False)
    await store.run(claims.end([Closing("req_1", claim=claim.id, answer=answer, expires_at=NOW + 10**12)]))
    return minted


@pytest.fixture(params=["sqlite to sqlite", "sqlite to postgres", "postgres to sqlite", "postgres to postgres"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Of the source and of the target."""

    def url(kind: str, name: str) -> str:
        if kind == "sqlite":
            return f"sqlite:{tmp_path}/{name}.db"
        server: Postgres = request.getfixturevalue("postgres")
        return server.database()

    source, target = request.param.split(" to ")
    return url(source, "source"), url(target, "target")


@pytest.fixture
async def source(urls: tuple[str, str]) -> AsyncIterator[Store]:
    store = open_store(urls[0], judge)
    await store.migrate()
    yield store
    await store.close()


@pytest.fixture
async def target(urls: tuple[str, str]) -> AsyncIterator[Store]:
    store = open_store(urls[1], judge)
    yield store
    await store.close()


async def copied(source: Store, target: Store, tell: Callable[[str, int, int], None] = silent) -> list[Copied]:
    return (await copy(source, target, Clock(), tell)).tables


async def test_the_schema_is_what_the_migrations_make(tmp_path: Path) -> None:
    tables = schema()
    store = open_store(f"sqlite:{tmp_path}/conch.db", judge)
    await store.migrate()
    with closing(sqlite3.connect(tmp_path / "conch.db")) as database:
        made = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert {table.name for table in tables} | {"migrations"} == made
        seen = set[str]()
        for table in tables:
            assert table.key, table.name
            found = database.execute(f"SELECT * FROM {table.name}")
            assert table.columns == tuple(column[0] for column in found.description)
            refers = {row[2] for row in database.execute(f"PRAGMA foreign_key_list({table.name})")}
            assert refers <= seen | {table.name}
            assert (table.name in refers) == (table.link is not None)
            seen.add(table.name)
    assert {table.link for table in tables} == {None, "rotated_from_id"}


async def test_a_copy_has_every_row_and_serves(source: Store, target: Store) -> None:
    minted = await fill(source)
    told: list[tuple[str, int, int]] = []
    tables = await copied(source, target, lambda *state: told.append(state))
    assert all(table.same for table in tables)
    there, here = await everything(target), await everything(source)
    assert there == here
    assert {name for name, found in here.items() if not found} == {"processes", "holds", "slots", "sightings"}
    assert {table.name: table.source.rows for table in tables} == {name: len(found) for name, found in here.items()}
    assert [(done, total) for stage, done, total in told if stage.startswith("copying")][-1][0] == told[0][2]
    assert told[-1][1] == told[-1][2]
    taken = await target.teller.take(minted.digest)
    assert taken.granted
    assert taken.authority is not None
    assert taken.authority.key.rotated_from_id is not None
    assert await target.run(files.secret("files", b"other")) == b"\x00\xff" * 16
    assert await balance(target) == await balance(source)
    assert all(has == due for has, due in (await balance(target)).values())


async def test_an_interrupted_copy_goes_on_where_it_stopped(source: Store, target: Store) -> None:
    await fill(source, 2500)
    begun: list[int] = []

    def stumbling(stage: str, done: int, total: int) -> None:
        if stage.startswith("copying") and done >= begun[-1] + 400:
            raise InterruptedError

    def starting(stage: str, done: int, total: int) -> None:
        begun.append(done)
        raise InterruptedError

    while True:
        with pytest.raises(InterruptedError):
            await copied(source, target, starting)
        try:
            tables = await copied(source, target, stumbling)
        except InterruptedError:
            continue
        break
    assert all(later >= earlier + 400 for earlier, later in pairwise(begun))
    assert len(begun) > 4
    assert all(table.same for table in tables)
    assert await everything(target) == await everything(source)


async def test_a_finished_copy_says_so(source: Store, target: Store) -> None:
    await fill(source, 10)
    first = await copy(source, target, Clock(), silent)
    await target.run(ledger.create_workspace("later", "pro", by="test", now=NOW))
    again = await copy(source, target, Clock(), silent)
    assert (first.finished_before, again.finished_before) == (False, True)
    assert again.tables == first.tables


async def test_a_source_that_changed_meanwhile_is_found(source: Store, target: Store) -> None:
    await fill(source, 600)

    def once_copied(stage: str, done: int, total: int) -> None:
        if stage == "copying claims":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await copied(source, target, once_copied)
    await source.run(rows("UPDATE usage SET cost = cost + 1 WHERE id = 'req_77' RETURNING id"))
    await source.run(rows("DELETE FROM responses RETURNING id"))
    for _ in range(2):  # a copy that differs is never finished
        tables = await copied(source, target)
        assert {table.name for table in tables if not table.same} == {"usage", "responses"}
        (usage,) = (table for table in tables if table.name == "usage")
        assert usage.source.rows == usage.target.rows == 600


async def test_what_is_refused(source: Store, target: Store, tmp_path: Path) -> None:
    await fill(source, 1)
    await target.migrate()
    await target.run(files.secret("files", b"its own"))
    with pytest.raises(Conflict, match=r"The target is in use \(it has secrets\)"):
        await copied(source, target)
    with pytest.raises(Conflict, match="The target is the source itself"):
        await copied(source, source)
    absent = open_store(f"sqlite:{tmp_path}/absent.db", judge)
    with pytest.raises(StoreUnavailable, match="unable to open"):
        await copied(absent, target)
    assert not (tmp_path / "absent.db").exists()
    third = open_store(f"sqlite:{tmp_path}/third.db", judge)
    await copied(source, third)
    await target.run(rows("DELETE FROM secrets RETURNING name"))
    with pytest.raises(Conflict, match="a copy of another store"):
        await copied(target, third)
    for store in (absent, third):
        await store.close()


async def test_two_copies_at_once_are_one(source: Store, target: Store) -> None:
    await fill(source)
    await target.migrate()
    ended = await asyncio.gather(copied(source, target), copied(source, target), return_exceptions=True)
    assert all(isinstance(each, list | Conflict) for each in ended), ended
    assert all(table.same for table in await copied(source, target))
    assert await everything(target) == await everything(source)


async def test_a_gateway_at_work_on_the_source_is_refused(source: Store, target: Store, urls: tuple[str, str]) -> None:
    await fill(source, 1)
    gateway = open_store(urls[0], judge)
    await gateway.teller.live()
    with pytest.raises(Conflict, match="A gateway is at work on the source"):
        await copied(source, target)
    await gateway.close()
    assert all(table.same for table in await copied(source, target))


async def test_what_a_killed_gateway_held_goes_back_first(source: Store, target: Store) -> None:
    await fill(source, 1)
    await source.run(accounts.settle([Hold("req_x", "proc_dead", "acme", 7 * DOLLAR)], NOW))
    await source.run(claims.claim([Claim(b"running", "req_x", "proc_dead", b"", NOW + 10**12)], NOW))
    killed = Clock()() - 30_000_000  # silent for 30 s: not yet dead
    insert = "INSERT INTO processes VALUES ('proc_dead', CAST($1 AS bigint), CAST($1 AS bigint)) RETURNING id"
    await source.run(rows(insert, killed))
    with pytest.raises(Conflict, match="45 seconds"):
        await copied(source, target)
    await source.run(rows("UPDATE processes SET seen_at = seen_at - 16000000 RETURNING id"))
    assert all(table.same for table in await copied(source, target))
    assert await balance(target) == {"acme": (50 * DOLLAR, 50 * DOLLAR), "zeta": (50 * DOLLAR, 50 * DOLLAR)}
    assert await target.run(rows("SELECT id FROM claims")) == [(b"\x00claim",)]


async def test_a_database_that_sorts_in_another_order(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.database()
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE DATABASE sorted TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'")
    await connection.close()
    source = open_store(f"{url.rpartition('/')[0]}/sorted", judge)
    await source.migrate()
    names = [f"{letter}{number}" for letter in "aBcDeF.-_" for number in range(5)]
    for name in names:
        await source.run(ledger.create_workspace(name, "pro", by="test", now=NOW))
    assert [name for (name,) in await source.run(rows("SELECT name FROM workspaces ORDER BY name"))] != sorted(names)
    third = open_store(f"sqlite:{tmp_path}/third.db", judge)

    def stumbling(stage: str, done: int, total: int) -> None:
        if 0 < done < total:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await copied(source, third, stumbling)
    tables = await copied(source, third)
    assert [table.source.rows for table in tables if table.name == "workspaces"] == [len(names)]
    assert all(table.same for table in tables)
    for store in (source, third):
        await store.close()


async def test_the_command(tmp_path: Path) -> None:
    shop = Conch(tmp_path, "http://127.0.0.1:1")
    shop.workspace("acme")
    key = shop.key("acme")
    urls = ("--from", f"sqlite:{shop.store}", "--to", f"sqlite:{tmp_path}/new/conch.db")
    tables = shop.command("copy", *urls)
    assert {"table": "keys", "rows": 1, "copied": 1, "same": True}.items() <= tables[2].items()
    assert all(table["checksum"] == table["checksum_of_copy"] for table in tables)
    assert shop.command("copy", *urls) == tables
    assert "The target is the source" in shop.command("copy", *urls[:2], "--to", urls[1], status=1)
    shop.store = tmp_path / "new" / "conch.db"
    shop.config.write_text(shop.config.read_text().replace(urls[1], f"sqlite:{shop.store}"))
    assert [row["prefix"] for row in shop.command("keys", "list")] == [key[:16]]
    with closing(sqlite3.connect(urls[1].removeprefix("sqlite:"))) as database:
        database.execute("UPDATE workspaces SET plan = 'team'")
        database.commit()
    with closing(sqlite3.connect(shop.store)) as database:
        database.execute("UPDATE copies SET checksum = NULL")
        database.commit()
    assert "the copy differs" in shop.command("copy", *urls, status=1)


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    now = [100.0]
    monkeypatch.setattr("handlers.ops.progress.monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "100")
    for stream, after in ((Terminal(), 0.125), (io.StringIO(), 5.0)):
        with Progress("rows", stream) as progress:
            progress("copying usage", 1000, 4000)
            assert stream.getvalue() == ""
            now[0] += after
            progress("copying usage", 2000, 4000)
            shown = stream.getvalue()
            assert f"copying usage   50%  2,000 of 4,000 rows, {1000 / after:,.0f}/s" in shown
            assert (f"[{'#' * 15}{'-' * 15}] " in shown, "\r" in shown) == (stream.isatty(), stream.isatty())
        after_all = stream.getvalue().removeprefix(shown)
        assert (after_all, shown.count("\n")) == (("\r\x1b[K", 0) if stream.isatty() else ("", 1))
