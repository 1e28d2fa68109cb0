"""Stored responses: kept, recalled, chained, deleted when asked for and when their time is over.

A row belongs to a workspace and perhaps to one of its pipelines; `pipeline` None sees those of the whole workspace.
`since` (µs) is the age limit: what is older does not exist, and goes with a later write.
"""

from collections.abc import Sequence

import msgspec

from store.records import NotFound, StoredResponse
from store.script import Script, Statement

SWEEP = 100
"""Rows that one transaction deletes at most."""

STORED = "id, workspace, pipeline, previous, created_at, input, body"


def _visible(row: str = "") -> str:
    return (
        f"{row}workspace = $2 AND (CAST($3 AS text) IS NULL OR {row}pipeline = CAST($3 AS text)) "
        f"AND {row}created_at > CAST($4 AS bigint)"
    )


CHAIN = f"""
WITH RECURSIVE chain (previous, input, body, depth, size) AS (
    SELECT previous, input, body, CAST(0 AS bigint), CAST(length(input) + length(body) AS bigint)
    FROM responses WHERE id = $1 AND {_visible()}
    UNION ALL
    SELECT r.previous, r.input, r.body, chain.depth + 1, chain.size + length(r.input) + length(r.body)
    FROM responses AS r JOIN chain ON r.id = chain.previous
    WHERE {_visible("r.")} AND chain.size <= CAST($5 AS bigint)
)
SELECT previous, input, body, size FROM chain ORDER BY depth DESC
"""


def keep(asks: Sequence[tuple[StoredResponse, int]], now: int) -> Script[list[None]]:
    """Stores each response, and deletes some of those that are older than the `since` that comes with it."""
    for response, _ in asks:
        yield Statement(
            f"INSERT INTO responses ({STORED}) "
            "VALUES ($1, $2, CAST($3 AS text), CAST($4 AS text), CAST($5 AS bigint), $6, $7)",
            msgspec.structs.astuple(response),
        )
    yield Statement(
        "DELETE FROM responses WHERE id IN (SELECT id FROM responses "
        "WHERE created_at <= CAST($1 AS bigint) ORDER BY created_at LIMIT CAST($2 AS bigint))",
        (max(since for _, since in asks), SWEEP),
    )
    return [None for _ in asks]


def get(id: str, workspace: str, pipeline: str | None, *, since: int) -> Script[StoredResponse]:
    """Raises NotFound."""
    rows = yield Statement(
        f"SELECT {STORED} FROM responses WHERE id = $1 AND {_visible()}", (id, workspace, pipeline, since)
    )
    if not rows:
        raise _no_response(id)
    return StoredResponse(*rows[0])


def conversation(
    id: str, workspace: str, pipeline: str | None, *, since: int, limit: int
) -> Script[list[tuple[str, str]]]:
    """The (input, body) of each turn up to `id`, the first turn first.

    Raises NotFound where a turn is missing, ValueError where there are more than `limit` characters.
    """
    rows = yield Statement(CHAIN, (id, workspace, pipeline, since, limit))
    if not rows:
        raise _no_response(id)
    previous, _, _, size = rows[0]
    if size > limit:
        raise ValueError(f"The conversation up to {id!r} is longer than {limit} characters.")
    if previous is not None:
        raise NotFound(f"The conversation up to {id!r} begins with {previous!r}, which is deleted or has expired.")
    return [(input, body) for _, input, body, _ in rows]


def delete(id: str, workspace: str, pipeline: str | None, *, since: int) -> Script[None]:
    """Raises NotFound."""
    rows = yield Statement(
        f"DELETE FROM responses WHERE id = $1 AND {_visible()} RETURNING id", (id, workspace, pipeline, since)
    )
    if not rows:
        raise _no_response(id)


def _no_response(id: str) -> NotFound:
    return NotFound(f"There is no response {id!r}; it was never stored, or is deleted, or has expired.")
