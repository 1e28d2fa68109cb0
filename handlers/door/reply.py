"""What a model tells, as every text endpoint reads it: its pieces, why it stopped, how likely its tokens were."""

import time

from handlers.door.billing import hold
from handlers.door.lifetime import Request
from handlers.door.schemas.chat import Logprob, PromptTokensDetails, TopLogprob, Usage
from handlers.door.wire import EVENT_STREAM
from store.records import Units
from upstream.answer import Answer
from upstream.deployment import Deployment
from upstream.inference import Delta, Generation, TokenLogprob
from upstream.inference import Usage as Counted
from upstream.interpreter import Interpreter, Piece
from upstream.replica import Settings

IMAGE = 16_384
"""Tokens that a picture may have beyond the bytes of its file: what Qwen2-VL's default of max_pixels comes to."""


async def opened(request: Request, deployment: Deployment, *generations: Generation) -> Answer:
    """The answer to one generation or several, on credit, closed when the request ends.

    Raises 402, 403 or an UpstreamError.
    """
    stoppable = all(map(deployment.stops, generations))
    await hold(request, deployment.id, _most(deployment.settings, generations), stoppable=stoppable)
    started = time.perf_counter()
    if generations[0].stream:
        request.keep_alive(EVENT_STREAM)  # a model may be silent for long before its first word
    try:
        answer = await deployment.open_each(generations)
    finally:
        request.upstream_seconds = time.perf_counter() - started
    request.on_end(answer.close)
    request.used = lambda: _used(answer.usage)
    request.kept = lambda: _used(answer.kept)
    return answer


def _most(settings: Settings, generations: tuple[Generation, ...]) -> Units:
    """What they can take at most: a token has a byte or more, a picture no more tokens than its file bytes."""
    if settings.price is None:
        return Units()
    units = Units()
    for generation in generations:
        images = sum(IMAGE + len(image) for image in generation.images or ())
        input = len(generation.prompt.encode()) + images
        units.input_tokens += input if settings.context is None else min(input, settings.context)
        units.output_tokens += (generation.max_tokens or settings.max_output or 0) * (generation.n or 1)
    return units


def _used(counted: Counted) -> Units:
    """What it has taken so far, as the model counts: a count that cannot be is no reason to pay anybody."""
    input, cached = max(counted.prompt_tokens or 0, 0), max(counted.cached_tokens or 0, 0)
    return Units(input, min(cached, input), max(counted.completion_tokens or 0, 0))


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
    total = counted.prompt_tokens + counted.completion_tokens
    told = Usage(counted.prompt_tokens, counted.completion_tokens, total)
    if counted.cached_tokens is not None:
        told.prompt_tokens_details = PromptTokensDetails(counted.cached_tokens)
    return told


def _bytes(token: str) -> list[int]:
    return list(token.encode())
