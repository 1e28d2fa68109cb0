"""A client's own deadline, X-Request-Timeout: seconds from the head of its request on, within the model's `timeout`."""

import asyncio
import re
from time import perf_counter

from handlers.door.errors import InvalidRequest
from handlers.door.lifetime import Request

HEADER = b"x-request-timeout"
_SECONDS = re.compile(rb"\d{1,9}(\.\d{1,9})?")


def heed(request: Request) -> None:
    """Have the request end when the time is over that its client gives it, if it gives one. Raises 400."""
    given = request.header(HEADER)
    if given is None:
        return
    if _SECONDS.fullmatch(given) is None or not float(given):
        raise InvalidRequest(
            "Invalid 'X-Request-Timeout': send seconds, more than 0, such as 20 or 2.5.",
            param="X-Request-Timeout",
            code="invalid_value",
        )
    left = float(given) - (perf_counter() - request.started_at)
    timer = asyncio.get_running_loop().call_later(max(left, 0.0), request.expire)
    request.on_end(timer.cancel)
