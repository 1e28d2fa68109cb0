"""Moves a whole store into an empty one, page by page: what has arrived stays when the copy is interrupted.

The two are then compared by count and checksum. Nothing that runs travels: a store with a gateway on it is refused.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from store import Store, processes
from store.records import Conflict
from store.script import Each, Row, Script, Statement
from store.sqlite import Table, schema

Tell = Callable[[str, int, int], None]
"""Is told the stage, how many rows are done and how many there are."""

MOST_ROWS, MOST_BYTES = 1000, 1 << 20
"""A page grows to this many rows and shrinks when it has more bytes, so that neither big nor many rows fill memory."""

RUNNING = ("processes", "holds", "slots", "sightings")
"""What only a gateway at work has: empty when the last one has ended, in good order or by the reaper."""

COPIES = "CREATE TABLE IF NOT EXISTS copies (name TEXT PRIMARY KEY, source BIGINT NOT NULL, last BYTEA, "
COPIES += "copied BIGINT NOT NULL, checksum TEXT)"
"""In the target, a row for each table: where its copy stands, and its checksum once that is the source's.
`source` is the moment at which the source was made, in µs: a store keeps it wherever its file lies."""


class Sum(msgspec.Struct, frozen=True):
    """How many rows a table has, and the sum of their SHA-256, in whatever order a database gives them."""

    rows: int
    checksum: str


class Copied(msgspec.Struct, frozen=True):
    """A table in the source and in the target."""

    name: str
    source: Sum
    target: Sum

    @property
    def same(self) -> bool:
        return self.source == self.target


class Copy(msgspec.Struct, frozen=True):
    """Every table; those of a copy that was `finished_before` are as they were then."""

    tables: list[Copied]
    finished_before: bool = False


async def copy(source: Store, target: Store, now: Callable[[], int], tell: Tell) -> Copy:
    """Copies every table and compares; goes on where an interrupted copy stopped; a finished one is only told.

    What dead processes left open in the source is ended there first, as any gateway's heartbeat would. Raises Conflict
    where a gateway runs on the source, or the target has rows of its own, and what Store.run raises.
    """
    tables = schema()
    await source.ping()  # before anything migrates it: a store that is not there is not made
    made = await source.run(_made())
    for store in (source, target):
        await store.migrate()
    if await source.run(_version()) != await target.run(_version()):
        raise Conflict("The stores have different schemas: use the newest Conch that has run on either.")
    if await target.run(_made()) == made:
        raise Conflict("The target is the source itself, or a backup of it.")
    done = await target.run(_begin(tables, made))
    if done:
        return Copy(done, finished_before=True)
    await source.run(processes.beat((), now()))
    await _refuse_running(source)
    await _move(source, target, tables, tell)
    copied = await _compare(source, target, tables, tell)
    await _refuse_running(source)
    if all(table.same for table in copied):
        await target.run(_finish(copied))
    return Copy(copied)


async def _move(source: Store, target: Store, tables: Sequence[Table], tell: Tell) -> None:
    total = sum([await source.run(_count(table)) for table in tables])
    marks = [await target.run(_mark(table)) for table in tables]
    arrived = sum(copied for _, copied in marks)
    for table, (last, copied) in zip(tables, marks, strict=True):
        stage = f"copying {table.name}"
        tell(stage, arrived, total)
        write = Each(
            f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES {{rows}}",
            f"({', '.join('?' * len(table.columns))})",
        )
        async for rows in _pages(source, table, last):
            await target.run(_arrive(table, write, rows, copied))
            copied += len(rows)
            arrived += len(rows)
            tell(stage, arrived, total)
        if table.link:
            async for rows in _pages(source, table, None, f"{table.link} IS NOT NULL"):
                await target.run(_link(table, rows))


async def _compare(source: Store, target: Store, tables: Sequence[Table], tell: Tell) -> list[Copied]:
    total = sum([await store.run(_count(table)) for store in (source, target) for table in tables])
    seen = 0

    async def summed(store: Store, table: Table) -> Sum:
        nonlocal seen
        count = checksum = 0
        async for rows in _pages(store, table, None):
            for row in rows:
                checksum += int.from_bytes(hashlib.sha256(msgspec.msgpack.encode(tuple(row))).digest(), "big")
            count += len(rows)
            seen += len(rows)
            tell(f"comparing {table.name}", seen, total)
        return Sum(count, f"{checksum % (1 << 256):064x}")

    return [Copied(table.name, *await asyncio.gather(summed(source, table), summed(target, table))) for table in tables]


async def _refuse_running(source: Store) -> None:
    for name in RUNNING:
        if await source.run(_first(name)):
            raise Conflict(
                f"A gateway is at work on the source (it has {name}): stop every gateway, then copy. "
                "What a killed one held is freed when it has been silent for 45 seconds."
            )


async def _pages(store: Store, table: Table, last: bytes | None, where: str = "") -> AsyncIterator[Sequence[Row]]:
    """The rows of a table in the order of its primary key, from the one past `last`."""
    limit = 16
    while True:
        rows = await store.run(_page(table, last, limit, where))
        if rows:
            yield rows
        if len(rows) < limit:
            return
        last = _key(table, rows[-1])
        size = sum(len(value) for row in rows for value in row if isinstance(value, str | bytes))
        limit = max(limit // 4, 1) if size > MOST_BYTES else min(limit * 2, MOST_ROWS)


def _key(table: Table, row: Row) -> bytes:
    return msgspec.msgpack.encode([row[table.columns.index(name)] for name in table.key])


# The scripts --------------------------------------------------------------------------------------


def _made() -> Script[int]:
    ((at,),) = yield Statement("SELECT at FROM migrations WHERE version = 1")
    return int(at)


def _version() -> Script[int]:
    ((version,),) = yield Statement("SELECT max(version) FROM migrations")
    return int(version)


def _count(table: Table) -> Script[int]:
    ((count,),) = yield Statement(f"SELECT count(*) FROM {table.name}")
    return int(count)


def _first(name: str) -> Script[Sequence[Row]]:
    return (yield Statement(f"SELECT 1 FROM {name} LIMIT 1"))


def _page(table: Table, last: bytes | None, limit: int, where: str) -> Script[Sequence[Row]]:
    key = ", ".join(table.key)
    after: list[Any] = [] if last is None else msgspec.msgpack.decode(last)
    wheres = [where] if where else []
    if after:
        wheres.append(f"({key}) > ({', '.join(f'${number}' for number in range(2, len(after) + 2))})")
    return (
        yield Statement(
            f"SELECT {', '.join(table.columns)} FROM {table.name} "
            f"{'WHERE ' if wheres else ''}{' AND '.join(wheres)} ORDER BY {key} LIMIT CAST($1 AS bigint)",
            (limit, *after),
        )
    )


def _begin(tables: Sequence[Table], made: int) -> Script[list[Copied]]:
    """The tables as they were when a copy from this source was finished, if it was. Raises Conflict."""
    yield Statement("UPDATE migrations SET at = at WHERE version = 1")  # one at a time: IF NOT EXISTS alone may race
    yield Statement(COPIES)
    rows = yield Statement("SELECT name, source, copied, checksum FROM copies ORDER BY name")
    if not rows:
        for table in tables:
            if (yield Statement(f"SELECT 1 FROM {table.name} LIMIT 1")):
                raise Conflict(f"The target is in use (it has {table.name}): copy into an empty store.")
            yield Statement(
                "INSERT INTO copies (name, source, copied) VALUES ($1, CAST($2 AS bigint), 0)", (table.name, made)
            )
        return []
    if {row[1] for row in rows} != {made}:
        raise Conflict("The target has a copy of another store: copy into an empty one.")
    if {row[0] for row in rows} != {table.name for table in tables}:
        raise Conflict("The target has a copy that another version of Conch began: begin again with an empty store.")
    if any(row[3] is None for row in rows):
        return []
    sums = {name: Sum(copied, checksum) for name, _, copied, checksum in rows}
    return [Copied(table.name, sums[table.name], sums[table.name]) for table in tables]


def _mark(table: Table) -> Script[tuple[bytes | None, int]]:
    ((last, copied),) = yield Statement("SELECT last, copied FROM copies WHERE name = $1", (table.name,))
    return last, copied


def _arrive(table: Table, write: Each, rows: Sequence[Row], copied: int) -> Script[None]:
    """The rows, and in the same transaction how far the copy is with them."""
    moved = yield Statement(
        "UPDATE copies SET last = $2, copied = copied + CAST($3 AS bigint) "
        "WHERE name = $1 AND copied = CAST($4 AS bigint) RETURNING name",
        (table.name, _key(table, rows[-1]), len(rows), copied),
    )
    if not moved:
        raise Conflict("Another copy into the target is under way.")
    # A row may refer to one that comes later: the clocks of two machines do not agree. So the links come last.
    columns = table.columns
    yield from write([tuple(None if columns[at] == table.link else row[at] for at in range(len(row))) for row in rows])


def _link(table: Table, rows: Sequence[Row]) -> Script[None]:
    assert table.link
    (key,) = table.key
    id, link = table.columns.index(key), table.columns.index(table.link)
    for row in rows:
        yield Statement(f"UPDATE {table.name} SET {table.link} = $2 WHERE {key} = $1", (row[id], row[link]))


def _finish(copied: Sequence[Copied]) -> Script[None]:
    for table in copied:
        yield Statement(
            "UPDATE copies SET checksum = $2, copied = CAST($3 AS bigint) WHERE name = $1",
            (table.name, table.target.checksum, table.target.rows),
        )
