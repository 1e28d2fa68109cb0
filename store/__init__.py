"""The store: exact, durable, fast. What it can be asked is in ledger.py, what it answers in records.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from store.buckets import Judge
from store.script import Script
from store.teller import Clock, Teller

__all__ = ["Clock", "Store", "open_store"]

T = TypeVar("T")


class Store(Protocol):
    """What every database offers. Each process opens its own."""

    teller: Teller

    async def migrate(self) -> list[int]:
        """Brings the schema up to date, also from several processes at once; returns the numbers applied."""

    async def run(self, script: Script[T]) -> T:
        """Runs a script of the ledger as one transaction. Raises what it raises, or StoreUnavailable."""

    async def ping(self) -> None:
        """Returns when a transaction can be had. Raises StoreUnavailable."""

    async def close(self) -> None:
        """Answers who is waiting, then lets go of the database."""


def open_store(url: str, judge: Judge, *, clock: Callable[[], int] | None = None, synchronous: str = "normal") -> Store:
    """The store at `sqlite:PATH` or `postgresql://…`; a `clock` that is a Clock follows that of PostgreSQL's server.

    "full" makes each take survive a power loss, on SQLite; PostgreSQL has its own setting. Raises ValueError.
    """
    scheme, _, rest = url.partition(":")
    if synchronous not in ("normal", "full"):
        raise ValueError(f"Unsupported synchronous setting {synchronous!r}: use normal or full.")
    if scheme == "sqlite" and (path := rest.removeprefix("//")):
        from store.sqlite import SqliteStore

        return SqliteStore(Path(path), judge, clock or Clock(), synchronous)
    if scheme in ("postgresql", "postgres") and rest.startswith("//"):
        from store.postgres import PostgresStore

        return PostgresStore(url, judge, clock or Clock())
    raise ValueError("Unsupported store URL: use sqlite:PATH or postgresql://USER:PASSWORD@HOST:PORT/DATABASE.")
