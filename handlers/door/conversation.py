"""A conversation, of whichever endpoint, to a Generation and the interpreters of its answer; or the reason why not."""

import asyncio
import base64
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from handlers.door.errors import InvalidRequest
from handlers.door.guide import guide, hinted, unsupported
from handlers.door.lifetime import Request
from handlers.door.schemas.chat import (
    AudioPart,
    ChatRequest,
    ImagePart,
    UserMessage,
)
from upstream.deployment import Deployment
from upstream.fetch import FetchError, read_data_url
from upstream.inference import Generation
from upstream.interpreter import Interpreter
from upstream.media import MediaError, images
from upstream.template import TemplateError

MAX_IMAGE = 20 << 20  # bytes of one picture
MAX_IMAGES = 16

# A field that changes the answer, the source that carries it to the model, and the value that asks for nothing.
SAMPLING: tuple[tuple[str, str, Any], ...] = (
    ("temperature", "temperature", 1),
    ("top_p", "top_p", 1),
    ("stop", "stop", []),
    ("seed", "seed", None),
    ("max_tokens", "max_tokens", None),
    ("presence_penalty", "presence_penalty", 0),
    ("frequency_penalty", "frequency_penalty", 0),
    ("logit_bias", "logit_bias", {}),
    ("top_k", "top_k", -1),
    ("min_p", "min_p", 0),
    ("repetition_penalty", "repetition_penalty", 1),
)
FIELDS = (
    *SAMPLING,
    ("max_completion_tokens", "max_tokens", None),
    ("logprobs", "wants_logprobs", False),
    ("top_logprobs", "logprobs", 0),
    ("modalities", "modalities", ["text"]),
    ("verbosity", "verbosity", "medium"),
    ("audio", "audio", None),
    ("prediction", "prediction", None),
    ("web_search_options", "web_search_options", None),
    ("functions", "functions", []),
    ("function_call", "function_call", "none"),
)


class Turn(NamedTuple):
    """What goes to the model, and what makes an interpreter for each choice; None where the text is only words."""

    generation: Generation
    interpret: Callable[[], Interpreter] | None


async def converse(request: Request, body: ChatRequest, deployment: Deployment) -> Turn:
    """What the conversation asks of the model. Raises 400 for what the deployment cannot honour."""
    sources = deployment.sources
    _check_fields(body, deployment, sources)
    check_extra(request, sources)
    _check_pairs(body)
    guided = guide(body, deployment)
    pictures = await _images(request, body, deployment)
    tools = [msgspec.to_builtins(tool) for tool in body.tools or ()] if body.tool_choice != "none" else []
    prompt = _prompt(body, deployment, tools, guided.hint)
    generation = Generation(
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
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        wants_logprobs=body.logprobs or None,
        json_schema=guided.schema,
        guide="json_schema" if guided.schema is not None else None,
        images=pictures or None,
        extra=request.extra,
    )
    reasoning = deployment.settings.chat.reasoning == "think"
    if not tools and not reasoning:
        return Turn(generation, None)
    family = "guided" if guided.calls else deployment.settings.chat.tools if tools else None
    opened = reasoning and prompt.rstrip().endswith("<think>")
    single = body.parallel_tool_calls is False
    return Turn(
        generation,
        lambda: Interpreter(family, tools, reasoning=reasoning, opened=opened, forced=guided.forced, single=single),
    )


def check_extra(request: Request, sources: frozenset[str]) -> None:
    """A field beyond the schema is for the profile, or unknown. Raises 400."""
    for name in request.extra:
        if f"extra.{name}" not in sources:
            raise InvalidRequest(f"Unknown parameter: {name!r}.", param=name, code="unknown_parameter")


def _check_fields(body: ChatRequest, deployment: Deployment, sources: frozenset[str]) -> None:
    """None that the model has no way to honour asks for something. Raises 400."""
    refused, values, nothing = _refused(sources)
    if values(body) == nothing:  # as nearly always: one comparison
        return
    for field, default in refused:
        value = getattr(body, field)
        if value is not None and value != default:
            raise unsupported(field, deployment)


@cache
def _refused(sources: frozenset[str]) -> tuple[list[tuple[str, Any]], Callable[[ChatRequest], Any], tuple[None, ...]]:
    """The fields without a source, each with what asks for nothing; what reads them all, and what it usually finds.

    They are several: some are nobody's.
    """
    refused = [(field, default) for field, source, default in FIELDS if source not in sources]
    return refused, attrgetter(*(field for field, _ in refused)), (None,) * len(refused)


def _check_pairs(body: ChatRequest) -> None:
    """The rules that join two fields."""
    if body.stream_options is not None and not body.stream:
        raise _invalid("stream_options", "'stream_options' is only allowed with 'stream': true.")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise _invalid("max_tokens", "Send 'max_completion_tokens' or 'max_tokens', not both.")
    if body.top_logprobs and not body.logprobs:
        raise _invalid("top_logprobs", "'top_logprobs' needs 'logprobs': true.")
    if body.tool_choice not in (None, "none", "auto") and not body.tools:
        raise _invalid("tool_choice", "'tool_choice' asks for a call, and there are no 'tools'.")


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")


def _max_tokens(body: ChatRequest, deployment: Deployment) -> int | None:
    """The bound that the client set, else the model's own, if its profile states one."""
    asked, bound = body.max_completion_tokens or body.max_tokens, deployment.settings.max_output
    if asked is not None and bound is not None and asked > bound:
        param = "max_tokens" if body.max_tokens else "max_completion_tokens"
        raise InvalidRequest(
            f"{param!r} is {asked}; the model {deployment.id!r} makes at most {bound}.",
            param=param,
            code="invalid_value",
        )
    return asked or bound


async def _images(request: Request, body: ChatRequest, deployment: Deployment) -> list[str]:
    """The pictures of the conversation as base64, in their order; those of https: addresses are fetched."""
    pictures: list[str] = []
    for place, message in enumerate(body.messages):
        if not isinstance(message, UserMessage) or isinstance(message.content, str):
            continue
        for at, part in enumerate(message.content):
            where = f"messages[{place}].content[{at}]"
            if isinstance(part, AudioPart) or (isinstance(part, ImagePart) and "images" not in deployment.sources):
                raise unsupported(where, deployment)
            if isinstance(part, ImagePart):
                if len(pictures) == MAX_IMAGES:
                    raise InvalidRequest(
                        f"A request takes at most {MAX_IMAGES} images.", param=where, code="invalid_value"
                    )
                pictures.append(base64.b64encode(await _image(request, part.image_url.url, where)).decode())
    return pictures


async def _image(request: Request, url: str, where: str) -> bytes:
    try:
        if url[:5].lower() == "data:":
            data = read_data_url(url, limit=MAX_IMAGE).body
        else:
            data = (await request.gateway.fetcher.fetch(url, limit=MAX_IMAGE)).body
        await asyncio.to_thread(images.probe, data)
        return data
    except (FetchError, MediaError) as error:
        raise InvalidRequest(
            f"The image of {where} cannot be used: {error}", param=f"{where}.image_url", code="invalid_image"
        ) from error


def _prompt(body: ChatRequest, deployment: Deployment, tools: list[dict[str, Any]], hint: str) -> str:
    template = deployment.template
    kwargs = body.chat_template_kwargs or {}
    for name in kwargs:
        if name not in template.variables:
            where = f"chat_template_kwargs.{name}"
            raise InvalidRequest(
                f"The chat template of {deployment.id!r} has no variable {name!r}.",
                param=where,
                code="unknown_parameter",
            )
    effort = body.reasoning_effort
    if effort is not None:
        if "reasoning_effort" in template.variables:
            kwargs = {"reasoning_effort": effort, **kwargs}
        elif "enable_thinking" in template.variables:
            kwargs = {"enable_thinking": effort != "none", **kwargs}
        else:
            raise unsupported("reasoning_effort", deployment)
    messages = [msgspec.to_builtins(message) for message in body.messages]
    if hint:
        messages = hinted(messages, hint)
    try:
        return template.render(messages, tools=tools or None, kwargs=kwargs)
    except TemplateError as error:
        raise InvalidRequest(str(error), param="messages", code="template_error") from error
