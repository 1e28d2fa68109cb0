"""A gateway whose Triton can be spoilt: two proxies before the session's Triton, and the books of its customers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from scripts.triton import Triton
from tests.chaos.endpoints import settings
from tests.chaos.proxy import Proxy
from tests.chaos.stand import ADMIN, Stand
from tests.gateway import Conch
from tests.priced import open_books


@pytest.fixture(scope="module")
async def stand(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stand]:
    """All of it, ready."""
    http, grpc = Proxy(triton.url.removeprefix("http://")), Proxy(triton.grpc_url, grpc=True)
    await http.allow()
    await grpc.allow()
    config = settings(f"http://{http.address}", grpc.address, triton.url)
    conch = Conch(tmp_path_factory.mktemp("chaos"), triton.url, config)
    try:
        with conch.running(CONCH_ADMIN_TOKEN=ADMIN):
            async with open_books(conch) as books:
                made = Stand(conch, books, http, grpc)
                await made.serving()
                yield made
    finally:
        await http.close()
        await grpc.close()
