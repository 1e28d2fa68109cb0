"""What the ledger says against what the clients saw: nothing lost, nothing charged twice, nothing held for ever."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from scripts.load import FREE, KEYED, Seen
from store.script import Script, Statement

PRICE = 1_000, 4_000
"""Nano-dollars per token, of the prompt and of the answer: what the gateway's models cost here, if anything."""
COUNTS = re.compile(
    rb'"(?:prompt|input)_tokens":(\d+)(?:,"input_tokens_details":{[^}]*})?(?:,"(?:completion|output)_tokens":(\d+))?'
)

USAGE = "SELECT id, model, input_tokens, output_tokens, cost, whole FROM usage"
MONEY = """
SELECT workspace,
    CAST(credits + COALESCE((SELECT SUM(amount) FROM holds WHERE workspace = a.workspace), 0) AS bigint),
    CAST(COALESCE((SELECT SUM(amount) FROM grants WHERE workspace = a.workspace), 0) AS bigint),
    CAST(COALESCE((SELECT SUM(cost) FROM usage WHERE workspace = a.workspace), 0) AS bigint)
FROM accounts AS a
"""
OPEN = {
    "holds": "SELECT COUNT(*) FROM holds",
    "idempotency keys that are in progress": "SELECT COUNT(*) FROM claims WHERE state = 'running'",
    "places of a plan's concurrency": "SELECT CAST(COALESCE(SUM(running), 0) AS bigint) FROM places",
}


class Used(NamedTuple):
    """A usage row; its id is that of the answer's X-Request-Id."""

    id: str
    model: str
    input_tokens: int
    output_tokens: int
    cost: int
    whole: int


class Ledger(NamedTuple):
    """`owners`: the requests whose answers are kept; `money`: (workspace, credits + holds, grants, costs)."""

    usage: dict[str, Used]
    twice: list[str]
    owners: list[str]
    money: list[tuple[str, int, int, int]]
    open: dict[str, int]


class Extras(NamedTuple):
    """Usage that no client saw to its end: its client `left`, or it was cut off between commit and last byte."""

    left: int
    cut_off: int


def read() -> Script[Ledger]:
    """The ledger as one transaction sees it."""
    usage = [Used(*row) for row in (yield Statement(USAGE))]
    owners = [owner for (owner,) in (yield Statement("SELECT owner FROM claims WHERE state = 'done'"))]
    money = [tuple(row) for row in (yield Statement(MONEY))]
    still_open = {}
    for what, sql in OPEN.items():
        ((still_open[what],),) = yield Statement(sql)
    twice = [id for id, times in Counter(used.id for used in usage).items() if times > 1]
    return Ledger({used.id: used for used in usage}, twice, owners, money, still_open)


def extras(ledger: Ledger, seen: Sequence[Seen]) -> Extras:
    """How many there are of each."""
    complete = {each.id for each in seen if each.complete}
    left = {each.id for each in seen if each.left}
    unseen = ledger.usage.keys() - complete
    return Extras(len(unseen & left), len(unseen - left))


def faults(ledger: Ledger, seen: Sequence[Seen]) -> list[str]:
    """A sentence for each thing that is wrong, once all has ended; none, where the books are right."""
    return [*_of_answers(ledger, seen), *_of_extras(ledger, seen), *_of_keys(ledger, seen), *_of_books(ledger)]


def _of_answers(ledger: Ledger, seen: Sequence[Seen]) -> Iterator[str]:
    """What was seen complete is there once and as it was; what was refused or replayed is not."""
    for each in seen:
        used = ledger.usage.get(each.id)
        if each.hung:
            yield f"{each.id or 'a request'} got no answer in {each.seconds:.0f} s"
        if each.complete and not each.replayed:
            if used is None:
                yield f"{each.id} was seen complete and is not in the ledger"
            elif not used.whole:
                yield f"{each.id} was seen complete and is in the ledger as one that was left"
            else:
                yield from _of_counts(used, each)
        elif used is not None and (each.replayed or not (each.broken or each.left)):
            yield f"{each.id} was {'a replay' if each.replayed else f'answered {each.status}'} and is in the ledger"


def _of_counts(used: Used, seen: Seen) -> Iterator[str]:
    if seen.ask.cost is not None:
        if used.cost != seen.ask.cost:
            yield f"{used.id} cost {used.cost}, not {seen.ask.cost}"
        return
    told = COUNTS.search(seen.body)
    counted = (used.input_tokens, used.output_tokens)
    if told is None or counted != (int(told[1]), int(told[2] or 0)):
        yield f"{used.id} is in the ledger with other counts than in its answer"
    price = 0 if used.model == FREE else sum(count * each for count, each in zip(counted, PRICE, strict=True))
    if used.cost != price:
        yield f"{used.id} cost {used.cost}, not {price}"


def _of_extras(ledger: Ledger, seen: Sequence[Seen]) -> Iterator[str]:
    """Each was left by its client or ended early, or is one of those of its gateway's life that got no head even."""
    complete = {each.id for each in seen if each.complete}
    left = {each.id for each in seen if each.left}
    cut_off = {each.id for each in seen if each.broken}
    life = {_process(each.id): each.life for each in seen if each.id}
    headless = Counter(each.life for each in seen if (each.broken or each.left) and not each.id)
    unheard = {each.life for each in seen if each.left and not each.id}
    found: Counter[int | None] = Counter()
    for used in ledger.usage.values():
        if used.id in complete or used.id in left:
            continue
        if not used.whole and life.get(_process(used.id)) not in unheard:
            yield f"{used.id} is in the ledger as one that its client left, and none did"
        elif used.id not in cut_off:
            found[life.get(_process(used.id))] += 1
    for where, count in found.items():
        unknown = headless.keys() - set(life.values())
        most = headless[where] if where is not None else sum(headless[each] for each in unknown)
        if count > most:
            yield f"{count} requests of life {where} are in the ledger that nobody saw, and only {most} got no answer"


def _process(id: str) -> str:
    """What the ids of one process have in common."""
    return id[:20]


def _of_keys(ledger: Ledger, seen: Sequence[Seen]) -> Iterator[str]:
    """A key's request ran to its end once, its answer is kept, and whoever asked saw that answer."""
    ran = {used.id for used in ledger.usage.values() if used.model == KEYED and used.whole}
    for id in ran - set(ledger.owners):
        yield f"{id} is in the ledger and is not its key's answer"
    for id in set(ledger.owners) - ran:
        yield f"{id} is its key's answer and is not in the ledger"
    answers: dict[str, bytes] = {}
    for each in seen:
        if each.ask.key is not None and each.complete:
            if not each.replayed and each.id not in ledger.owners:
                yield f"{each.id} was seen complete and is not its key's answer"
            if answers.setdefault(each.ask.key, each.body) != each.body:
                yield f"{each.id} answered with other bytes than before under its key"
    for each in seen:
        kept = answers.get(each.ask.key or "")
        if each.id in ledger.owners and kept is not None and not kept.startswith(each.body):
            yield f"{each.id} was seen in part, and replayed with other bytes"


def _of_books(ledger: Ledger) -> Iterator[str]:
    for id in ledger.twice:
        yield f"{id} is in the ledger more than once"
    for workspace, has, granted, spent in ledger.money:
        if has != granted - spent:
            yield f"{workspace} has {has}, not {granted} granted - {spent} spent"
    for what, count in ledger.open.items():
        if count:
            yield f"{count} {what} are left"
