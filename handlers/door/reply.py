"""What a model tells, as every text endpoint reads it: its pieces, why it stopped, how likely its tokens were."""

import time
from collections.abc import Awaitable

from handlers.door.lifetime import Request
from handlers.door.schemas.chat import Logprob, TopLogprob, Usage
from handlers.door.wire import EVENT_STREAM
from upstream.answer import Answer
from upstream.inference import Delta, TokenLogprob
from upstream.inference import Usage as Counted
from upstream.interpreter import Interpreter, Piece


async def opened(request: Request, opening: Awaitable[Answer], *, stream: bool) -> Answer:
    """The answer that `opening` gives, closed when the request ends. Raises an UpstreamError."""
    started = time.perf_counter()
    if stream:
        request.keep_alive(EVENT_STREAM)  # a model may be silent for long before its first word
    try:
        answer = await opening
    finally:
        request.upstream_seconds = time.perf_counter() - started
    request.on_end(answer.close)
    return answer


def interpreted(interpreter: Interpreter, delta: Delta) -> list[Piece]:
    """What a delta means, and at the end of its choice what is still owed."""
    pieces = interpreter.feed(delta.text) if delta.text else []
    return pieces + interpreter.finish() if delta.finish else pieces


def finish(interpreter: Interpreter, delta: Delta) -> str | None:
    """The finish reason: a model that called a function stopped for that."""
    return "tool_calls" if delta.finish == "stop" and interpreter.called_whole else delta.finish


def logprobs(told: list[TokenLogprob] | None) -> list[Logprob]:
    """Log probabilities as chat and Responses write them."""
    return [
        Logprob(
            each.token,
            each.logprob,
            _bytes(each.token),
            [TopLogprob(top.token, top.logprob, _bytes(top.token)) for top in each.top],
        )
        for each in told or ()
    ]


def usage(counted: Counted) -> Usage | None:
    """The model's own counts; none are invented for a model that does not count."""
    if counted.prompt_tokens is None or counted.completion_tokens is None:
        return None
    return Usage(counted.prompt_tokens, counted.completion_tokens, counted.prompt_tokens + counted.completion_tokens)


def _bytes(token: str) -> list[int]:
    return list(token.encode())
