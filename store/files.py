"""Files that are kept for a while, and the secret that signs their URLs: scripts like ledger.py's, beside their SQL."""

from collections.abc import Sequence

from store.records import File, Full, NotFound
from store.script import Script, Statement


def keep(files: Sequence[File], *, limit: int, now: int) -> Script[None]:
    """Keeps `files` until they expire; those that have expired go. Raises Full if all would be over `limit` bytes."""
    yield Statement("DELETE FROM files WHERE expires_at <= CAST($1 AS bigint)", (now,))
    for file in files:
        kept = yield Statement(
            "INSERT INTO files (id, expires_at, size, media_type, content) "
            "SELECT $1, CAST($2 AS bigint), CAST($3 AS bigint), $4, $5 "
            "WHERE (SELECT COALESCE(SUM(size), 0) FROM files) + CAST($3 AS bigint) <= CAST($6 AS bigint) RETURNING id",
            (file.id, file.expires_at, len(file.content), file.media_type, file.content, limit),
        )
        if not kept:
            raise Full(f"The kept files would take more than {limit} bytes.")


def get(id: str, *, now: int) -> Script[File]:
    """Raises NotFound, also for one that has expired."""
    rows = yield Statement(
        "SELECT id, expires_at, media_type, content FROM files WHERE id = $1 AND expires_at > CAST($2 AS bigint)",
        (id, now),
    )
    if not rows:
        raise NotFound(f"There is no file {id!r}.")
    return File(*rows[0])


def secret(name: str, fresh: bytes) -> Script[bytes]:
    """The secret of this name, the same for every process; it is `fresh` from its first use on."""
    yield Statement("INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING", (name, fresh))
    ((value,),) = yield Statement("SELECT value FROM secrets WHERE name = $1", (name,))
    return bytes(value)
