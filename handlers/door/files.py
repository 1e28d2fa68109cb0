"""Files that Conch keeps for a while behind signed URLs: whoever has the URL has the right, no key is asked for.

The signature is HMAC-SHA256, in hex, over "id.expires" with a secret that the store holds for all processes.
"""

import hmac
import secrets
from collections.abc import Callable, Sequence
from urllib.parse import parse_qsl

from handlers.door.errors import ApiError, Forbidden, NotFound
from handlers.door.ids import fresh
from handlers.door.lifetime import Request
from store import Store, files, records

KEPT = 3600  # seconds
SECRET = "file urls"


class Files:
    """The files of one store. `limit` is in bytes, `clock` in µs."""

    def __init__(self, store: Store, limit: int, clock: Callable[[], int]) -> None:
        self._store = store
        self._limit = limit
        self._clock = clock
        self._secret: bytes | None = None

    async def keep(self, contents: Sequence[bytes], media_type: str) -> list[str]:
        """Keep them for an hour: "ID?expires=…&signature=…" of each. Raises 503 when there is no room."""
        now = self._clock()
        expires = now // 1_000_000 + KEPT
        kept = [records.File(fresh("file-"), expires * 1_000_000, media_type, content) for content in contents]
        try:
            await self._store.run(files.keep(kept, limit=self._limit, now=now))
        except records.Full:
            raise ApiError(
                "The store has no room for more files behind URLs; ask for 'response_format': 'b64_json'.",
                status=503,
                code="storage_full",
                headers=((b"x-should-retry", b"false"),),
            ) from None
        return [f"{file.id}?expires={expires}&signature={await self._signature(file.id, expires)}" for file in kept]

    async def find(self, id: str, query: bytes) -> records.File:
        """The file of this id, if the query is signed for it and has not expired. Raises 403 or 404."""
        given = dict(parse_qsl(query.decode("latin-1")))
        expires = given.get("expires", "")
        right = await self._signature(id, expires)
        if not hmac.compare_digest(right.encode(), given.get("signature", "").encode()):
            raise Forbidden(
                "The signature of this URL is not valid; use the URL as the API gave it.", code="invalid_signature"
            )
        try:
            return await self._store.run(files.get(id, now=self._clock()))
        except records.NotFound:
            raise NotFound("This file has expired; it was kept for an hour.", code="file_expired") from None

    async def _signature(self, id: str, expires: int | str) -> str:
        if self._secret is None:
            self._secret = await self._store.run(files.secret(SECRET, secrets.token_bytes(32)))
        return hmac.digest(self._secret, f"{id}.{expires}".encode(), "sha256").hex()


def origin(request: Request) -> str:
    """Where the client reached us: "https://host:port", or what [server] public_url says."""
    public = request.gateway.config.server.public_url
    if public is not None:
        return public.rstrip("/")
    host = request.header(b"host")
    if host is None:  # HTTP/1.0
        name, port = request.scope["server"]
        return f"{request.scope['scheme']}://{name}:{port}"
    return f"{request.scope['scheme']}://{host.decode('latin-1')}"
