"""POST /chat/completions: a conversation in, one answer out, whole or as it is made."""

import time
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

import msgspec

from handlers.door.admission import reach
from handlers.door.errors import InvalidRequest
from handlers.door.ids import fresh
from handlers.door.lifetime import Request
from handlers.door.schemas import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Choice,
    ChunkChoice,
    ChunkDelta,
    TextFormat,
    TextPart,
    Usage,
    UserMessage,
)
from handlers.door.wire import EVENT_STREAM, Stream, encode
from upstream.deployment import Answer, Deployment
from upstream.inference import Generation
from upstream.inference import Usage as Counted
from upstream.template import TemplateError

# A field that changes the answer, the source that carries it to the model, and the value that asks for nothing.
FIELDS: tuple[tuple[str, str, Any], ...] = (
    ("max_tokens", "max_tokens", None),
    ("max_completion_tokens", "max_tokens", None),
    ("temperature", "temperature", 1),
    ("top_p", "top_p", 1),
    ("n", "n", 1),
    ("stop", "stop", []),
    ("seed", "seed", None),
    ("presence_penalty", "presence_penalty", 0),
    ("frequency_penalty", "frequency_penalty", 0),
    ("logit_bias", "logit_bias", {}),
    ("logprobs", "logprobs", False),
    ("top_logprobs", "logprobs", 0),
    ("tools", "tools", []),
    ("parallel_tool_calls", "tools", True),
    ("modalities", "modalities", ["text"]),
    ("reasoning_effort", "reasoning_effort", None),
    ("top_k", "top_k", -1),
    ("min_p", "min_p", 0),
    ("repetition_penalty", "repetition_penalty", 1),
)


async def create(request: Request, body: ChatRequest) -> ChatCompletion | Stream[ChatCompletionChunk]:
    """Answer a conversation with the deployment that `model` names."""
    deployment = await reach(request, body.model, "chat")
    generation = generate(request, body, deployment)
    started = time.perf_counter()
    if body.stream:
        request.keep_alive(EVENT_STREAM)  # a model may be silent for long before its first word
    try:
        answer = await deployment.open(generation)
    finally:
        request.upstream_seconds = time.perf_counter() - started
    request.on_end(answer.close)
    id, created = fresh("chatcmpl-"), int(time.time())
    if body.stream:
        include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        chunk = ChatCompletionChunk(id, created, deployment.id, [])
        return Stream(
            _frames(request, answer, started, chunk, include_usage),
            lambda: _usage_frame(chunk, answer) if include_usage else b"",
        )
    text, finish = "", "stop"
    while deltas := await answer.read():
        for delta in deltas:
            text += delta.text
            finish = delta.finish or finish
    request.upstream_seconds = time.perf_counter() - started
    choice = Choice(0, AnswerMessage(text), finish)
    return ChatCompletion(id, created, deployment.id, [choice], _usage(answer.usage))


def generate(request: Request, body: ChatRequest, deployment: Deployment) -> Generation:
    """What the conversation asks of the model. Raises 400 for what the deployment cannot honour."""
    sources = deployment.sources
    for field, default in _refused(sources):
        value = getattr(body, field)
        if value is not None and value != default:
            raise unsupported(field, deployment)
    for name in request.extra:
        if f"extra.{name}" not in sources:
            raise InvalidRequest(f"Unknown parameter: {name!r}.", param=name, code="unknown_parameter")
    _check(body, deployment)
    return Generation(
        _prompt(body, deployment),
        stream=bool(body.stream),
        max_tokens=_max_tokens(body, deployment),
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=body.logit_bias or None,
        stop=[body.stop] if isinstance(body.stop, str) else body.stop or None,
        seed=body.seed,
        extra=request.extra,
    )


def unsupported(param: str, deployment: Deployment) -> InvalidRequest:
    """400 for a field that this deployment's model has no way to honour."""
    return InvalidRequest(
        f"The model {deployment.id!r} does not support {param!r}; leave it out.",
        param=param,
        code="unsupported_parameter",
    )


@cache
def _refused(sources: frozenset[str]) -> tuple[tuple[str, Any], ...]:
    return tuple((field, default) for field, source, default in FIELDS if source not in sources)


def _check(body: ChatRequest, deployment: Deployment) -> None:
    """The rules that join two fields, or look into one."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "'stream_options' is only allowed with 'stream': true.",
            param="stream_options",
            code="invalid_value",
        )
    if body.response_format is not None and not isinstance(body.response_format, TextFormat):
        raise unsupported("response_format", deployment)
    if body.tool_choice not in (None, "none", "auto"):
        raise unsupported("tool_choice", deployment)


def _max_tokens(body: ChatRequest, deployment: Deployment) -> int | None:
    """The bound that the client set, else the model's own, if its profile states one."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidRequest(
            "Send 'max_completion_tokens' or 'max_tokens', not both.",
            param="max_tokens",
            code="invalid_value",
        )
    asked, bound = body.max_completion_tokens or body.max_tokens, deployment.settings.max_output
    if asked is not None and bound is not None and asked > bound:
        param = "max_tokens" if body.max_tokens else "max_completion_tokens"
        raise InvalidRequest(
            f"{param!r} is {asked}; the model {deployment.id!r} makes at most {bound}.",
            param=param,
            code="invalid_value",
        )
    return asked or bound


def _prompt(body: ChatRequest, deployment: Deployment) -> str:
    for place, message in enumerate(body.messages):
        if isinstance(message, UserMessage) and isinstance(message.content, list):
            for at, part in enumerate(message.content):
                if not isinstance(part, TextPart):
                    raise unsupported(f"messages[{place}].content[{at}]", deployment)
    messages = [msgspec.to_builtins(message) for message in body.messages]
    try:
        return deployment.template.render(messages, kwargs=body.chat_template_kwargs)
    except TemplateError as error:
        raise InvalidRequest(str(error), param="messages", code="template_error") from error


def _usage(counted: Counted) -> Usage | None:
    """The model's own counts; none are invented for a model that does not count."""
    if counted.prompt_tokens is None or counted.completion_tokens is None:
        return None
    return Usage(counted.prompt_tokens, counted.completion_tokens, counted.prompt_tokens + counted.completion_tokens)


async def _frames(
    request: Request, answer: Answer, started: float, chunk: ChatCompletionChunk, include_usage: bool
) -> AsyncIterator[bytes]:
    """The SSE frames: role, text, finish. Those of one arrival from the model are one piece.

    The JSON around a piece of text never changes within an answer, so it is made once and spliced.
    """
    head, tail = _skeleton(chunk, include_usage)
    frames = _frame(chunk, ChunkDelta(role="assistant", content=""), None, include_usage)
    while deltas := await answer.read():
        request.upstream_seconds = time.perf_counter() - started
        for delta in deltas:
            if delta.text:
                frames += head + encode(delta.text) + tail
            if delta.finish:
                frames += _frame(chunk, ChunkDelta(), delta.finish, include_usage)
        yield frames
        frames = b""


def _usage_frame(chunk: ChatCompletionChunk, answer: Answer) -> bytes:
    return b"data: " + encode(msgspec.structs.replace(chunk, usage=_usage(answer.usage))) + b"\n\n"


def _skeleton(chunk: ChatCompletionChunk, include_usage: bool) -> tuple[bytes, bytes]:
    mark = "\x00"
    head, tail = _frame(chunk, ChunkDelta(content=mark), None, include_usage).split(encode(mark))
    return head, tail


def _frame(chunk: ChatCompletionChunk, delta: ChunkDelta, finish: str | None, include_usage: bool) -> bytes:
    usage = None if include_usage else msgspec.UNSET
    chunk = msgspec.structs.replace(chunk, choices=[ChunkChoice(0, delta, finish_reason=finish)], usage=usage)
    return b"data: " + encode(chunk) + b"\n\n"
