"""Idempotency keys: claimed while a request runs, then kept with its answer until they expire."""

from collections.abc import Sequence

import msgspec

from store.records import Claim, Claimed, Closing, Recorded
from store.script import Script, Statement

SWEEP = 2
"""Expired rows that go with each claim, at most: more than come, so that they do not pile up."""

CLAIM = """
INSERT INTO claims (id, owner, process, digest, state, expires_at)
VALUES ($1, $2, $3, $4, 'running', CAST($5 AS bigint))
ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, process = excluded.process, digest = excluded.digest,
    state = excluded.state, expires_at = excluded.expires_at, head = NULL, body = NULL
WHERE claims.state <> 'running' AND claims.expires_at <= CAST($6 AS bigint)
RETURNING owner
"""
FIND = "SELECT digest, state, head, body FROM claims WHERE id = $1"
FREE = "DELETE FROM claims WHERE id = $1 AND owner = $2 AND state = 'running'"
KEEP = """
UPDATE claims SET state = $3, head = $4, body = $5, expires_at = CAST($6 AS bigint)
WHERE id = $1 AND owner = $2 AND state = 'running'
"""


class _Head(msgspec.Struct):
    headers: list[tuple[bytes, bytes]]
    streamed: bool


_read_head = msgspec.json.Decoder(_Head).decode


def claim(asks: Sequence[Claim], now: int) -> Script[list[Claimed]]:
    """Each of `asks` in its order: the first to claim has it, until it is closed or has expired."""
    answers: dict[int, Claimed] = {}
    for place, ask in sorted(enumerate(asks), key=lambda each: (each[1].id, each[0])):
        rows = yield Statement(CLAIM, (ask.id, ask.owner, ask.process, ask.digest, ask.expires_at, now))
        answers[place] = Claimed(True) if rows else (yield from _found(ask))
    yield sweep(now, SWEEP * len(asks))
    return [answers[place] for place in range(len(asks))]


def sweep(now: int, most: int) -> Statement:
    """Deletes some of those that have expired."""
    return Statement(
        "DELETE FROM claims WHERE id IN (SELECT id FROM claims WHERE state <> 'running' "
        "AND expires_at <= CAST($1 AS bigint) ORDER BY expires_at LIMIT CAST($2 AS bigint))",
        (now, most),
    )


def _found(ask: Claim) -> Script[Claimed]:
    rows = yield Statement(FIND, (ask.id,))
    if not rows:  # it became free a moment ago: whoever asks again gets it
        return Claimed(False)
    digest, state, head, body = rows[0]
    if bytes(digest) != ask.digest:
        return Claimed(False, same=False)
    if state == "running":
        return Claimed(False)
    kept = _read_head(head)
    return Claimed(False, answer=Recorded(kept.headers, None if body is None else bytes(body), kept.streamed))


def end(closings: Sequence[Closing]) -> Script[None]:
    """Keeps the answer of each, or frees its claim where there is none; one that was reaped is another's by now."""
    for closing in sorted(closings, key=lambda each: each.claim or b""):
        answer = closing.answer
        if answer is None:
            yield Statement(FREE, (closing.claim, closing.id))
        else:
            head = msgspec.json.encode(_Head(answer.headers, answer.streamed)).decode()
            yield Statement(KEEP, (closing.claim, closing.id, "done", head, answer.body, closing.expires_at))
