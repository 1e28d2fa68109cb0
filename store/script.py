"""What the store's scripts are made of: a generator yields Statements, is sent their rows, and returns its result.

A driver runs a script as one transaction and rolls back what raised. A change writes first and reads after, so
that it holds its lock or row from the start. The SQL is the same for every database.
"""

import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")
Row: TypeAlias = Sequence[Any]

MOST = 16
"""Rows that one statement writes: few texts, so that every database keeps them prepared."""


class Statement(NamedTuple):
    """SQL and the values of its $1, $2, …

    `reads`, of the hot ones: the SELECT by which SQLite learns what the change returns, before a DELETE, and after an
    UPDATE that found its row. For RETURNING it makes a table in memory each time, which takes longer than the change.
    """

    sql: str
    params: tuple[Any, ...] = ()
    reads: str = ""


Script: TypeAlias = Generator[Statement, Sequence[Row], T]


def identify(kind: str, now: int) -> str:
    """A unique id; ids sort by the time they were made (µs)."""
    return f"{kind}_{now:014x}{secrets.token_hex(5)}"


class Each:
    """SQL for many rows: `{rows}` in it stands for ($1, $2), ($3, $4) … of `row`, such as "(?, CAST(? AS bigint))"."""

    def __init__(self, sql: str, row: str, reads: str = "") -> None:
        def texts(times: int) -> tuple[str, str]:
            rows = _numbered(row, times)
            return sql.replace("{rows}", rows), reads.replace("{rows}", rows)

        self._texts = lru_cache(MOST)(texts)

    def __call__(self, rows: Sequence[tuple[Any, ...]]) -> Iterator[Statement]:
        """The statements that together are for all of `rows`."""
        for start in range(0, len(rows), MOST):
            part = rows[start : start + MOST]
            sql, reads = self._texts(len(part))
            yield Statement(sql, tuple(chain.from_iterable(part)), reads)


def _numbered(row: str, times: int) -> str:
    numbers = iter(range(1, row.count("?") * times + 1))
    fill: Callable[[str], str] = lambda part: part if part != "?" else f"${next(numbers)}"  # noqa: E731
    return ", ".join("".join(map(fill, row)) for _ in range(times))
