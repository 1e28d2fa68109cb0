"""POST /completions: the legacy endpoint: text that a model goes on with, without a chat template."""

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from handlers.door.admission import reach
from handlers.door.conversation import SAMPLING, check_extra
from handlers.door.errors import ApiError, InvalidRequest
from handlers.door.guide import unsupported
from handlers.door.ids import fresh
from handlers.door.lifetime import Request
from handlers.door.reply import opened, usage
from handlers.door.schemas.completions import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from handlers.door.wire import Stream, encode
from upstream.answer import Answer
from upstream.deployment import Deployment
from upstream.inference import Delta, Generation, TokenLogprob

DEFAULT_MAX_TOKENS = 16  # OpenAI's own
MAX_CHOICES = 128
FIELDS: tuple[tuple[str, str, Any], ...] = (*SAMPLING, ("logprobs", "wants_logprobs", None), ("suffix", "suffix", ""))


async def create(request: Request, body: CompletionRequest) -> Completion | Stream[Completion]:
    """Go on with each prompt, `n` times; the choices are in the order of the prompts."""
    deployment = await reach(request, body.model, "chat")
    request.renamed = _renamed
    generations = _generations(request, body, deployment)
    started = time.perf_counter()
    answer = await opened(request, deployment, *generations)
    choices = [_Choice(index, body, generations) for index in range(len(generations) * (body.n or 1))]
    head = Completion(fresh("cmpl-"), int(time.time()), deployment.id, [])
    if body.stream:
        include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        if include_usage:
            head.usage = None
        frames = _frames(request, answer, started, head, choices)
        return Stream(frames, lambda: _frame(head, [], answer) if include_usage else b"")
    while deltas := await answer.read():
        for delta in deltas:
            choices[delta.index].gather(delta)
    request.upstream_seconds = time.perf_counter() - started
    return msgspec.structs.replace(head, choices=[each.whole for each in choices], usage=usage(answer.usage))


class _Choice:
    """One text of the answer; `whole` is what has been gathered of it."""

    def __init__(self, index: int, body: CompletionRequest, generations: list[Generation]) -> None:
        self._index = index
        self._echo = generations[index // (body.n or 1)].prompt if body.echo else ""
        self._candidates = body.logprobs
        self._offset = 0  # characters told before the next token
        self.whole = self.told(Delta())

    def told(self, delta: Delta) -> CompletionChoice:
        """What a delta adds; with the first one comes the prompt, if that is to be echoed."""
        text, self._echo = self._echo + delta.text, ""
        return CompletionChoice(text, self._index, self._logprobs(delta.logprobs), delta.finish)

    def gather(self, delta: Delta) -> None:
        """Add a delta to the whole."""
        told, whole = self.told(delta), self.whole
        whole.text += told.text
        whole.finish_reason = told.finish_reason or whole.finish_reason
        if told.logprobs is not None:
            whole.logprobs = told.logprobs if whole.logprobs is None else _joined(whole.logprobs, told.logprobs)

    def _logprobs(self, told: list[TokenLogprob] | None) -> CompletionLogprobs | None:
        if not told:
            return None
        made = CompletionLogprobs(top_logprobs=[] if self._candidates else None)
        for token in told:
            made.tokens.append(token.token)
            made.token_logprobs.append(token.logprob)
            made.text_offset.append(self._offset)
            if made.top_logprobs is not None:
                made.top_logprobs.append({each.token: each.logprob for each in (token, *token.top)})
            self._offset += len(token.token)
        return made


def _joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        None if first.top_logprobs is None else first.top_logprobs + (second.top_logprobs or []),
        first.text_offset + second.text_offset,
    )


async def _frames(
    request: Request, answer: Answer, started: float, head: Completion, choices: list[_Choice]
) -> AsyncIterator[bytes]:
    """The SSE frames, those of one arrival as one piece."""
    opening = [each.whole for each in choices if each.whole.text]  # the echoed prompts
    frames = _frame(head, opening) if opening else b""
    while deltas := await answer.read():
        request.upstream_seconds = time.perf_counter() - started
        for delta in deltas:
            frames += _frame(head, [choices[delta.index].told(delta)])
        yield frames
        frames = b""


def _frame(head: Completion, choices: list[CompletionChoice], answer: Answer | None = None) -> bytes:
    """An event; with an `answer`, the one that tells of its usage."""
    chunk = msgspec.structs.replace(head, choices=choices)
    if answer is not None:
        chunk.usage = usage(answer.usage)
    return b"data: " + encode(chunk) + b"\n\n"


def _generations(request: Request, body: CompletionRequest, deployment: Deployment) -> list[Generation]:
    """A Generation per prompt. Raises 400 for what the deployment cannot honour."""
    _check(body, deployment)
    check_extra(request, deployment.sources)
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if len(prompts) * (body.n or 1) > MAX_CHOICES:
        raise InvalidRequest(
            f"A request makes at most {MAX_CHOICES} choices; ask for fewer.", param="n", code="invalid_value"
        )
    return [
        Generation(
            prompt,
            stream=bool(body.stream),
            max_tokens=_max_tokens(body, deployment),
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=None if body.top_k == -1 else body.top_k,
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            logit_bias=body.logit_bias or None,
            stop=[body.stop] if isinstance(body.stop, str) else body.stop or None,
            seed=body.seed,
            n=body.n,
            logprobs=body.logprobs,
            wants_logprobs=body.logprobs is not None or None,
            suffix=body.suffix or None,
            extra=request.extra,
        )
        for prompt in prompts
    ]


def _check(body: CompletionRequest, deployment: Deployment) -> None:
    for field, source, default in FIELDS:
        value = getattr(body, field)
        if value is not None and value != default and source not in deployment.sources:
            raise unsupported(field, deployment)
    rules = (
        (
            body.stream_options is not None and not body.stream,
            "stream_options",
            "'stream_options' is only allowed with 'stream': true.",
            "invalid_value",
        ),
        (
            body.best_of not in (None, body.n or 1),
            "best_of",
            "'best_of' other than 'n' is not built: no choice is made among the answers.",
            "unsupported_parameter",
        ),
        (
            bool(body.echo) and body.logprobs is not None,
            "echo",
            "'echo' with 'logprobs' is not built: models behind Triton do not tell those of the prompt.",
            "unsupported_parameter",
        ),
    )
    for broken, param, message, code in rules:
        if broken:
            raise InvalidRequest(message, param=param, code=code)


def _max_tokens(body: CompletionRequest, deployment: Deployment) -> int:
    bound = deployment.settings.max_output
    asked = body.max_tokens
    if asked is not None and bound is not None and asked > bound:
        raise InvalidRequest(
            f"'max_tokens' is {asked}; the model {deployment.id!r} makes at most {bound}.",
            param="max_tokens",
            code="invalid_value",
        )
    return asked or min(DEFAULT_MAX_TOKENS, bound or DEFAULT_MAX_TOKENS)


def _renamed(error: ApiError) -> ApiError:
    """What is too long is the prompt here."""
    if error.code == "context_length_exceeded":
        error.param = "prompt"
    return error
