"""Credits: granted, held while a request runs, settled by what it used; beside them the usage of every request.

Money is integer nano-dollars. A request's account is opened by a Hold and ended by a Closing, which may come twice.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

from store import claims
from store.ledger import event, no_workspace
from store.records import Account, Closing, Conflict, Held, Hold
from store.script import Each, Script, Statement, identify

MOST = 1 << 62  # nano-dollars of one workspace: 4.6 billion dollars
NOTHING = (0, 0)
GRANTED = Held(True)

_spent = "(CASE WHEN month >= CAST($4 AS bigint) THEN spent ELSE 0 END)"
_held = "CAST($3 AS bigint)"
_limit = "COALESCE(spend_limit, CAST($6 AS bigint))"

MOVE = f"""
UPDATE accounts SET
    credits = credits + CAST($2 AS bigint) - {_held},
    spent = {_spent} - CAST($5 AS bigint) + {_held},
    month = CASE WHEN month > CAST($4 AS bigint) THEN month ELSE CAST($4 AS bigint) END
WHERE workspace = $1 AND ({_held} = 0 OR (
    credits + CAST($2 AS bigint) >= {_held}
    AND ({_limit} IS NULL OR {_spent} - CAST($5 AS bigint) + {_held} <= {_limit})))
RETURNING month
"""
"""Gives $2 back and takes $3, if credits and the month's limit allow that; of what comes back, $5 is of month $4.
A month that another machine has begun already goes on."""
MOVED = "SELECT month FROM accounts WHERE workspace = $1"

ACCOUNT = "SELECT credits, CASE WHEN month = CAST($2 AS bigint) THEN spent ELSE 0 END, spend_limit FROM accounts"

BALANCE = "a.credits + (SELECT COALESCE(SUM(h.amount), 0) FROM holds AS h WHERE h.workspace = a.workspace)"
"""What is held is not spent yet, so that this only falls, but for grants."""
REARM = f"""
DELETE FROM alerts WHERE type = 'credits.low' AND subject = $1
    AND level <= (SELECT {BALANCE} FROM accounts AS a WHERE a.workspace = $1)
"""
"""A balance that is no longer low may become so again."""

HOLD = Each(
    "INSERT INTO holds (id, process, workspace, amount, month) VALUES {rows}",
    "(?, ?, ?, CAST(? AS bigint), CAST(? AS bigint))",
)
LET_GO = Each(
    "DELETE FROM holds WHERE id IN ({rows}) RETURNING workspace, amount, month",
    "?",
    reads="SELECT workspace, amount, month FROM holds WHERE id IN ({rows})",
)
USE = Each(
    "INSERT INTO usage (at, id, workspace, key_id, model, input_tokens, cached_tokens, output_tokens, images, "
    "characters, milliseconds, cost, whole, duration) "
    "VALUES {rows} ON CONFLICT (at, id) DO NOTHING RETURNING workspace, cost",
    "(CAST(? AS bigint), ?, ?, ?, ?" + ", CAST(? AS bigint)" * 9 + ")",
)
FAIL = Each(
    "INSERT INTO failures (at, id, workspace, key_id, model, status) VALUES {rows} ON CONFLICT (at, id) DO NOTHING",
    "(CAST(? AS bigint), ?, ?, ?, ?, CAST(? AS bigint))",
)


def month(now: int) -> int:
    """The calendar month of a time in µs, UTC: yyyymm."""
    return _month_of_day(now // 86_400_000_000)


@lru_cache(2)
def _month_of_day(number: int) -> int:
    day = time.gmtime(number * 86_400)
    return day.tm_year * 100 + day.tm_mon


def settle(asks: Sequence[Hold | Closing], now: int) -> Script[list[Held | None]]:
    """Ends what is to be closed, then holds what is asked for, in this order.

    Every account that is touched is touched once, in the order of names, so that two machines never wait for each
    other; more often only where not all that is asked of one can be granted.
    """
    this_month = month(now)
    closings: list[Closing] = []
    wanted: dict[str, list[Hold]] = {}
    for ask in asks:
        if isinstance(ask, Hold):
            wanted.setdefault(ask.workspace, []).append(ask)
        else:
            closings += (ask, *ask.also)
    moved = (yield from _close(closings, this_month)) if closings else {}
    answers: dict[str, Held] = {}
    granted: list[tuple[object, ...]] = []
    for workspace in sorted(moved.keys() | wanted.keys()):
        holds, back = wanted.get(workspace, ()), moved.get(workspace, NOTHING)
        rows = yield _move(workspace, back, sum([hold.amount for hold in holds]), this_month, holds)
        if not rows:
            yield _move(workspace, back, 0, this_month, ())
        for hold in holds:
            own = rows or (yield _move(workspace, NOTHING, hold.amount, this_month, (hold,)))
            if own:
                granted.append((hold.id, hold.process, workspace, hold.amount, own[0][0]))
            else:
                answers[hold.id] = yield from _refusal(hold, this_month)
    if granted:
        yield from HOLD(granted)
    if claimed := [closing for closing in closings if closing.claim is not None]:
        yield from claims.end(claimed)
    return [answers.get(ask.id, GRANTED) if isinstance(ask, Hold) else None for ask in asks]


def _close(closings: Sequence[Closing], this_month: int) -> Script[dict[str, tuple[int, int]]]:
    """What each workspace gets back of its holds (less than nothing where one was reaped), and how much of that counts
    as spent this month."""
    moved: defaultdict[str, tuple[int, int]] = defaultdict(lambda: NOTHING)
    for statement in LET_GO([(closing.id,) for closing in closings if closing.held]):
        for workspace, amount, held_in in (yield statement):
            back, unspent = moved[workspace]
            moved[workspace] = back + amount, unspent + amount if held_in == this_month else unspent
    for statement in USE([_usage_row(closing) for closing in closings if closing.usage is not None]):
        for workspace, cost in (yield statement):
            if cost:
                back, unspent = moved[workspace]
                moved[workspace] = back - cost, unspent - cost
    if failed := [(each.failure, each.id) for each in closings if each.failure is not None]:
        yield from FAIL([(f.at, id, f.workspace, f.key, f.model, f.status) for f, id in failed])
    return moved


def _usage_row(closing: Closing) -> tuple[object, ...]:
    usage = closing.usage
    assert usage is not None
    units = usage.units
    return (
        usage.at, closing.id, usage.workspace, usage.key, usage.model, units.input_tokens, units.cached_tokens,
        units.output_tokens, units.images, units.characters, units.milliseconds, usage.cost, int(usage.whole),
        usage.duration,
    )  # fmt: skip


def _move(workspace: str, moved: tuple[int, int], held: int, this_month: int, holds: Sequence[Hold]) -> Statement:
    back, unspent = moved
    limit = min([hold.limit for hold in holds if hold.limit is not None], default=None) if holds else None
    return Statement(MOVE, (workspace, back, held, this_month, unspent, limit), MOVED)


def _refusal(hold: Hold, this_month: int) -> Script[Held]:
    """Why: the account as it stands."""
    rows = yield Statement(f"{ACCOUNT} WHERE workspace = $1", (hold.workspace, this_month))
    credits, spent, limit = rows[0] if rows else (0, 0, None)
    return Held(False, credits, spent, hold.limit if limit is None else limit)


def grant(
    workspace: str, amount: int, *, note: str = "", once: str | None = None, by: str, now: int
) -> Script[Account]:
    """Adds credits; of the grants with the same `once`, the first one. Raises NotFound, or Conflict for more than the
    books can hold, or another grant of that name."""
    id = identify("grant", now) if once is None else f"grant_{once}"
    for was in (yield Statement("SELECT workspace, amount FROM grants WHERE id = $1", (id,))):
        if tuple(was) != (workspace, amount):
            raise Conflict("This grant was made before, for another workspace or amount.")
        return (yield from account(workspace, now=now))
    yield Statement(  # unless an older version made the workspace, it is there
        "INSERT INTO accounts (workspace) SELECT name FROM workspaces WHERE name = $1 ON CONFLICT DO NOTHING",
        (workspace,),
    )
    granted = yield Statement(
        "UPDATE accounts SET credits = credits + CAST($2 AS bigint) "
        "WHERE workspace = $1 AND credits <= CAST($3 AS bigint) - CAST($2 AS bigint) RETURNING credits",
        (workspace, amount, MOST),
    )
    if not granted:
        yield from account(workspace, now=now)
        raise Conflict(f"Workspace {workspace!r} cannot have more than {MOST // 1_000_000_000} dollars.")
    yield Statement(
        "INSERT INTO grants (id, workspace, amount, at, actor, note) "
        "VALUES ($1, $2, CAST($3 AS bigint), CAST($4 AS bigint), $5, $6)",
        (id, workspace, amount, now, by, note),
    )
    yield Statement(REARM, (workspace,))
    yield event("credits.grant", workspace, {"amount": amount, "note": note}, by, now)
    return (yield from account(workspace, now=now))


def account(workspace: str, *, now: int) -> Script[Account]:
    """Raises NotFound."""
    this_month = month(now)
    rows = yield Statement(f"{ACCOUNT} WHERE workspace = $1", (workspace, this_month))
    if not rows:
        raise no_workspace(workspace)
    credits, spent, limit = rows[0]
    ((held,),) = yield Statement(
        "SELECT CAST(COALESCE(SUM(amount), 0) AS bigint) FROM holds WHERE workspace = $1", (workspace,)
    )
    return Account(workspace, credits, held, this_month, spent, limit)


def give_back(process: str, now: int) -> Script[None]:
    """Ends the holds of a process that is no more: nothing of them was spent."""
    rows = yield Statement("DELETE FROM holds WHERE process = $1 RETURNING workspace, amount, month", (process,))
    this_month = month(now)
    for workspace, group in groupby(sorted(rows, key=lambda row: row[0]), key=lambda row: row[0]):
        held = list(group)
        back = sum(amount for _, amount, _ in held)
        unspent = sum(amount for _, amount, held_in in held if held_in == this_month)
        yield _move(workspace, (back, unspent), 0, this_month, ())
