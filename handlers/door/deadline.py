"""A client's own deadline, X-Request-Timeout: seconds from the head of its request on, within the model's `timeout`."""

import asyncio
import re
from time import perf_counter

from handlers.door.errors import OVERDUE, InvalidRequest
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
    timer = asyncio.get_running_loop().call_later(max(left, 0.0), _over, request.whole)
    request.on_end(timer.cancel)


def _over(request: Request) -> None:
    if request.expire():
        request.connection.loop.create_task(_give_up(request))


async def _give_up(request: Request) -> None:
    """Tell the client alone: the handler goes on, for who asks again."""
    exchange = request.exchange
    if exchange.response_complete:
        return
    exchange.keep_alive = False
    if not request.started:
        await request.fail(OVERDUE)
    elif request.bytes_only or request.writing:
        request.connection.break_off()
    else:
        exchange.write(b"", await request.last_frames(OVERDUE), last=True)
    exchange.disconnected = True  # what the handler still writes is for nobody
