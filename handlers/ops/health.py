"""GET /healthz: this process runs; GET /readyz: it can serve."""

from handlers.door.errors import ApiError, retry_after
from handlers.door.lifetime import Request
from handlers.door.schemas.models import Health


async def healthz(request: Request) -> Health:
    """Answers as long as the process does."""
    return Health("ok")


async def readyz(request: Request) -> Health:
    """Needs the store and at least one verified model, and not to be stopping. Raises 503 that says what is wrong."""
    gateway = request.gateway
    if gateway.draining:
        raise ApiError("Conch is stopping; ask another one.", status=503, code="draining", headers=retry_after(1))
    await gateway.store.teller.ping()
    if not await gateway.pool.has_one():
        raise ApiError(
            "No model is verified; `conch check` says why.", status=503, code="no_model", headers=retry_after(5)
        )
    return Health("ok")
