"""The take: a key's authority, a place for its request where the plan limits those, and one token of its bucket."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from typing import TypeAlias

from store.ledger import KEY, read_key
from store.records import Authority, Budget, Take, Workspace
from store.script import Script, Statement

Judge: TypeAlias = Callable[[Authority, int], Budget | None]

TOKEN = 60_000_000
"""Parts of a token, as many as a minute has µs: a budget of b per minute refills b parts each µs, exactly."""

AUTHORITY = f"""
SELECT {KEY}, w.name, w.plan, w.ceiling, w.created_at
FROM keys AS k JOIN workspaces AS w ON w.name = k.workspace WHERE k.digest = $1
"""

_now, _capacity, _rate, _wanted = (f"CAST(${n} AS bigint)" for n in (2, 3, 4, 5))
_raised = f"CASE WHEN {_capacity} > capacity THEN {_capacity} - capacity ELSE 0 END"
_refilled = f"""CASE WHEN {_now} <= at THEN 0
    WHEN {_now} - at > {_capacity} / {_rate} THEN {_capacity} ELSE ({_now} - at) * {_rate} END"""
_grown = f"tokens + ({_raised}) + ({_refilled})"
_held = f"(CASE WHEN {_grown} > {_capacity} THEN {_capacity} ELSE {_grown} END)"
_cost = f"{_wanted} * {TOKEN}"
_order = itemgetter(0, 1)

TAKE = f"""
UPDATE buckets SET
    granted = CASE WHEN {_held} >= {_cost} THEN {_wanted} ELSE {_held} / {TOKEN} END,
    tokens = CASE WHEN {_held} >= {_cost} THEN {_held} - {_cost} ELSE {_held} % {TOKEN} END,
    capacity = {_capacity},
    at = CASE WHEN {_now} > at THEN {_now} ELSE at END
WHERE id = $1 RETURNING granted, tokens, at
"""
"""A new bucket has capacity 0: its first take raises it to its budget, which fills it. Dividing before
multiplying keeps a long idle time within 64 bits. The repetition is the price of exactness: PostgreSQL's READ
COMMITTED looks again at the row that an UPDATE waited for, but not at a subquery."""
TAKEN = "SELECT granted, tokens, at FROM buckets WHERE id = $1"


ENTER = """
UPDATE places SET
    admitted = CASE WHEN running + CAST($3 AS bigint) <= CAST($2 AS bigint) THEN CAST($3 AS bigint)
        WHEN running >= CAST($2 AS bigint) THEN 0 ELSE CAST($2 AS bigint) - running END,
    running = CASE WHEN running + CAST($3 AS bigint) <= CAST($2 AS bigint) THEN running + CAST($3 AS bigint)
        WHEN running >= CAST($2 AS bigint) THEN running ELSE CAST($2 AS bigint) END
WHERE workspace = $1 RETURNING admitted
"""
GIVE_BACK = """
UPDATE slots SET taken = taken - CAST($3 AS bigint)
WHERE process = $1 AND workspace = $2 AND taken >= CAST($3 AS bigint) RETURNING taken
"""
PLACES = """
INSERT INTO slots (process, workspace, taken) VALUES ($1, $2, CAST($3 AS bigint))
ON CONFLICT (process, workspace) DO UPDATE SET taken = slots.taken + CAST($3 AS bigint)
"""
SET = "UPDATE slots SET taken = CAST($3 AS bigint) WHERE process = $1 AND workspace = $2"
LEAVE = "UPDATE places SET running = running - CAST($2 AS bigint) WHERE workspace = $1"


def take(judge: Judge, process: str, asks: Sequence[bytes | str], now: int) -> Script[list[Take | None]]:
    """One token for each key of a digest (bytes), those for one key as if one after the other; and a place given back
    for each workspace (str), unless it was reaped. Answered in their order, the latter by None.

    `judge` says what the authority, as it stands in this transaction, may use, or None to refuse it. Places
    are those of `process`.
    """
    answers: dict[bytes, Iterator[Take]] = {}
    admitted: list[tuple[str, bytes, Authority, Budget]] = []
    waiting: dict[bytes, int] = {}
    leaving: dict[str, int] = {}
    for ask in asks:
        if isinstance(ask, bytes):
            waiting[ask] = waiting.get(ask, 0) + 1
        else:
            leaving[ask] = leaving.get(ask, 0) + 1
    limited = bool(leaving)
    for digest in waiting:
        authority = None
        for row in (yield Statement(AUTHORITY, (digest,))):
            authority = Authority(read_key(row), Workspace(*row[13:]))
        budget = authority and judge(authority, now)
        if authority and budget:
            admitted.append((authority.key.bucket, digest, authority, budget))
            limited = limited or budget.concurrency is not None
        else:
            answers[digest] = repeat(Take(authority))
    # Places in the order of workspaces and then tokens in that of buckets, each row for the first time where its turn
    # is: so that two machines never wait for each other's rows.
    admitted.sort(key=_order)
    rooms = (yield from _move_in(process, leaving, admitted, waiting)) if limited else {}
    for bucket, digest, authority, budget in admitted:
        wanted = waiting[digest]
        room = rooms.get(digest, wanted)
        capacity = budget.burst * TOKEN
        ((granted, tokens, at),) = yield Statement(TAKE, (bucket, now, capacity, budget.per_minute, room), TAKEN)
        if digest in rooms and room:
            if room > granted:
                yield Statement(LEAVE, (authority.workspace.name, room - granted))
            yield Statement(PLACES, (process, authority.workspace.name, granted))
        answers[digest] = _takes(authority, budget, (granted, room, wanted), tokens, at, now)
    return [next(answers[ask]) if isinstance(ask, bytes) else None for ask in asks]


def _move_in(
    process: str,
    leaving: Mapping[str, int],
    admitted: Sequence[tuple[str, bytes, Authority, Budget]],
    waiting: Mapping[bytes, int],
) -> Script[dict[bytes, int]]:
    """Gives places back, then takes what there is for those whose plan limits them: how many, by digest."""
    entering: dict[str, list[tuple[bytes, int]]] = {}
    for _, digest, authority, budget in admitted:
        if budget.concurrency is not None:
            entering.setdefault(authority.workspace.name, []).append((digest, budget.concurrency))
    rooms: dict[bytes, int] = {}
    for workspace in sorted(leaving.keys() | entering.keys()):
        count = leaving.get(workspace, 0)
        while count and not (yield Statement(GIVE_BACK, (process, workspace, count))):
            count -= 1  # one of them was reaped
        if count:
            yield Statement(LEAVE, (workspace, count))
        for digest, concurrency in entering.get(workspace, ()):
            rows = yield Statement(ENTER, (workspace, concurrency, waiting[digest]))
            if not rows:  # an older version made the workspace
                yield Statement("INSERT INTO places (workspace) VALUES ($1) ON CONFLICT DO NOTHING", (workspace,))
                rows = yield Statement(ENTER, (workspace, concurrency, waiting[digest]))
            rooms[digest] = rows[0][0]
    return rooms


def recount(asks: Sequence[tuple[str, dict[str, int]]], now: int) -> Script[list[None]]:
    """A process's places by workspace, as it knows them: what became of a take or a leaving was in doubt."""
    for process, known in asks:
        rows = yield Statement("SELECT workspace, taken FROM slots WHERE process = $1", (process,))
        taken: dict[str, int] = dict(rows)  # type: ignore[arg-type]
        for workspace in sorted(taken.keys() | known.keys()):
            more = known.get(workspace, 0) - taken.get(workspace, 0)
            if more:
                yield Statement(LEAVE, (workspace, -more))
                yield Statement(SET if workspace in taken else PLACES, (process, workspace, known.get(workspace, 0)))
    return [None for _ in asks]


def _takes(
    authority: Authority, budget: Budget, counts: tuple[int, int, int], tokens: int, at: int, now: int
) -> Iterator[Take]:
    """The answers to those who wanted: `counts` of who was granted, had room, asked; `tokens` are left at time `at`."""
    granted, room, wanted = counts
    capacity, rate = budget.burst * TOKEN, budget.per_minute
    for turn in range(1, wanted + 1):
        left = tokens + max(granted - turn, 0) * TOKEN
        reset = _ceil(at + _ceil(capacity - left, rate), 1_000_000)
        crowded = turn > room
        wait = (
            0 if turn <= granted else 1 if crowded else max(1, _ceil(at - now + _ceil(TOKEN - left, rate), 1_000_000))
        )
        yield Take(authority, budget, turn <= granted, left // TOKEN, reset, wait, crowded)


def _ceil(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
