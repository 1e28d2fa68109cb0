"""What ran, what it cost, and how every workspace stands: scripts that only read, each beside its SQL."""

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from store.ledger import no_workspace
from store.records import Units
from store.script import Row, Script, Statement

DAY = 86_400_000_000
"""µs in a day, UTC."""
GROUPS = {"day": f"at / {DAY}", "workspace": "workspace", "key": "key_id", "model": "model"}

_UNITS = Units.__struct_fields__
_SUMS = ", ".join(f"CAST(COALESCE(SUM({unit}), 0) AS bigint)" for unit in (*_UNITS, "cost"))
_COUNTS = ", ".join(f"CAST(COALESCE(SUM({each}), 0) AS bigint)" for each in ("ran", "failed"))
_RAN = (
    f"SELECT at, workspace, key_id, model, 1 AS ran, 0 AS failed, {', '.join(_UNITS)}, cost FROM usage {{where}} "
    f"UNION ALL SELECT at, workspace, key_id, model, 0, 1{', 0' * (len(_UNITS) + 1)} FROM failures {{where}}"
)


class Window(msgspec.Struct, frozen=True):
    """Which requests to look at: those of a workspace, key and model, from `since` until before `until` (µs)."""

    workspace: str | None = None
    key: str | None = None
    model: str | None = None
    since: int | None = None
    until: int | None = None

    def conditions(self) -> list[tuple[str, Any]]:
        """What is asked for, each with its one value; ? is the value's place."""
        asked = (
            ("workspace = ?", self.workspace),
            ("key_id = ?", self.key),
            ("model = ?", self.model),
            ("at >= CAST(? AS bigint)", self.since),
            ("at < CAST(? AS bigint)", self.until),
        )
        return [(sql, value) for sql, value in asked if value is not None]


class UsageLine(msgspec.Struct, frozen=True):
    """The requests of one group, summed. `group` has its values in the order asked for; a day counts from 1970.

    `errors`: those that reached a model and failed, beside the `requests` that ran.
    """

    group: tuple[Any, ...]
    requests: int
    errors: int
    units: Units
    cost: int


class Latency(msgspec.Struct, frozen=True):
    """How long the requests of a group took, in µs: half of them at most `p50`, 19 of 20 at most `p95`."""

    p50: int
    p95: int


class UsageRow(msgspec.Struct, frozen=True):
    """One request that ran, `id` as in its X-Request-Id; not `whole` if its client left before the end."""

    id: str
    at: int
    workspace: str
    key: str
    model: str
    units: Units
    cost: int
    whole: bool
    duration: int | None


class Tenant(msgspec.Struct, frozen=True):
    """A workspace and its money, in nano-dollars."""

    name: str
    plan: str
    ceiling: int | None
    spend_limit: int | None
    credits_low: int | None
    credits: int
    created_at: int


class Granted(msgspec.Struct, frozen=True):
    """Credits that were added, in nano-dollars; `at` in µs, `by` whom."""

    id: str
    at: int
    amount: int
    note: str
    by: str


def usage(
    window: Window, by: Collection[str] = (), *, after: Sequence[Any] | None = None, limit: int = 100
) -> Script[list[UsageLine]]:
    """Sums for each group of `by` (of GROUPS), in the order of the groups, from the first one past `after`.

    Without `by`, one line for all there is.
    """
    where, values = _where(_conditions(window, by, after))
    named, width = ", ".join(GROUPS[name] for name in by), len(by)
    rows = yield Statement(
        f"SELECT {named}{',' if by else ''} {_COUNTS}, {_SUMS} FROM ({_RAN.format(where=where)}) AS asked "
        + (f"GROUP BY {named} ORDER BY {named} LIMIT CAST(${len(values) + 1} AS bigint)" if by else ""),
        (*values, limit) if by else values,
    )
    return [
        UsageLine(tuple(row[:width]), row[width], row[width + 1], Units(*row[width + 2 : -1]), row[-1]) for row in rows
    ]


def latencies(
    window: Window, by: Collection[str] = (), *, after: Sequence[Any] | None = None, limit: int = 100
) -> Script[dict[tuple[Any, ...], Latency]]:
    """By group, as `usage` gives them; only of groups in which something ran whose time is known."""
    where, values = _where([("duration > CAST(? AS bigint)", -1), *_conditions(window, by, after)])
    named = [GROUPS[name] for name in by]
    groups = [f"group_{number}" for number in range(len(named))]
    parted = f"PARTITION BY {', '.join(named)}" if by else ""
    listed = "".join(f"{column} AS {group}, " for column, group in zip(named, groups, strict=True))
    said = ", ".join(groups)
    rows = yield Statement(
        f"SELECT {said}{',' if by else ''} MAX(CASE WHEN place = (many + 1) / 2 THEN duration END), "
        "MAX(CASE WHEN place = (many * 19 + 19) / 20 THEN duration END) FROM "
        f"(SELECT {listed}duration, ROW_NUMBER() OVER ({parted} ORDER BY duration) AS place, "
        f"COUNT(*) OVER ({parted}) AS many FROM usage {where}) AS ranked "
        + (f"GROUP BY {said} ORDER BY {said} LIMIT CAST(${len(values) + 1} AS bigint)" if by else ""),
        (*values, limit) if by else values,
    )
    return {tuple(row[:-2]): Latency(*row[-2:]) for row in rows if row[-1] is not None}


def requests(window: Window, *, before: tuple[int, str] | None = None, limit: int = 100) -> Script[list[UsageRow]]:
    """One by one, newest first, from the first one older than `before`, the time and id of another."""
    conditions = window.conditions()
    if before is not None:
        conditions.append(("(at, id) < (CAST(? AS bigint), ?)", before))
    where, values = _where(conditions)
    rows = yield Statement(
        f"SELECT id, at, workspace, key_id, model, {', '.join(_UNITS)}, cost, whole, duration FROM usage {where} "
        f"ORDER BY at DESC, id DESC LIMIT CAST(${len(values) + 1} AS bigint)",
        (*values, limit),
    )
    return [
        UsageRow(id, at, workspace, key, model, Units(*units), cost, bool(whole), duration)
        for id, at, workspace, key, model, *units, cost, whole, duration in rows
    ]


_TENANT = (
    "SELECT w.name, w.plan, w.ceiling, a.spend_limit, a.low_at, a.credits, w.created_at "
    "FROM workspaces AS w JOIN accounts AS a ON a.workspace = w.name"
)


def tenant(name: str) -> Script[Tenant]:
    """Raises NotFound."""
    rows = yield Statement(f"{_TENANT} WHERE w.name = $1", (name,))
    if not rows:
        raise no_workspace(name)
    return Tenant(*rows[0])


def tenants(*, after: str = "", limit: int = 100) -> Script[list[Tenant]]:
    """By name, from the first one past `after`."""
    rows: Sequence[Row] = yield Statement(
        f"{_TENANT} WHERE w.name > $1 ORDER BY w.name LIMIT CAST($2 AS bigint)", (after, limit)
    )
    return [Tenant(*row) for row in rows]


def _conditions(window: Window, by: Collection[str], after: Sequence[Any] | None) -> list[tuple[str, Any]]:
    past = (f"({', '.join(GROUPS[name] for name in by)}) > ({_places(by)})", tuple(after or ()))
    return window.conditions() if after is None else [*window.conditions(), past]


def grants(workspace: str, *, before: str | None = None, limit: int = 100) -> Script[list[Granted]]:
    """The newest first, from the first one older than the id `before`."""
    condition = "" if before is None else "AND (at, id) < (SELECT at, id FROM grants WHERE id = $3)"
    rows = yield Statement(
        f"SELECT id, at, amount, note, actor FROM grants WHERE workspace = $1 {condition} "
        "ORDER BY at DESC, id DESC LIMIT CAST($2 AS bigint)",
        (workspace, limit) if before is None else (workspace, limit, before),
    )
    return [Granted(*row) for row in rows]


def _places(by: Collection[str]) -> str:
    return ", ".join("CAST(? AS bigint)" if name == "day" else "?" for name in by)


def _where(conditions: Sequence[tuple[str, Any]]) -> tuple[str, tuple[Any, ...]]:
    """The conditions as a clause with its numbered values; one with a tuple has a place for each of its values."""
    values: list[Any] = []
    clauses: list[str] = []
    for sql, given in conditions:
        for value in given if isinstance(given, tuple) else (given,):
            values.append(value)
            sql = sql.replace("?", f"${len(values)}", 1)
        clauses.append(sql)
    return f"WHERE {' AND '.join(clauses)}" if clauses else "", tuple(values)
