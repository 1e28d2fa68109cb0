"""A recording to the words of a model, on credit: for whichever endpoint has one heard."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial

from handlers.door.billing import Units, hold
from handlers.door.conversation import check_extra
from handlers.door.errors import InvalidRequest
from handlers.door.guide import unsupported
from handlers.door.lifetime import Request
from handlers.door.schemas.audio import TranslationRequest
from upstream.deployment import Deployment
from upstream.inference import Transcribe
from upstream.languages import LANGUAGES
from upstream.media import MediaError
from upstream.media.recording import Recording
from upstream.tensors import Array
from upstream.transcribing import Heard, Transcript, whisper_prefix

NO_SOUND = Array("FP32", (0,), b"")


def language_of(asked: str | None, request: Request, deployment: Deployment) -> str | None:
    """The code of the language, as asked for or by default. Raises 400 for one that the model does not know."""
    settings = request.gateway.models[deployment.id].transcription
    if asked is None:
        return settings.default_language
    code = asked.lower()
    if code not in LANGUAGES:
        raise _invalid("language", "it must be an ISO 639-1 code, such as 'en'")
    if settings.languages and code not in settings.languages:
        known = ", ".join(settings.languages)
        raise _invalid("language", f"the model {deployment.id!r} knows {known}, and not {code!r}")
    if not deployment.sources & {"language", "prefix"} and code != settings.default_language:
        raise unsupported("language", deployment)
    return code


async def hear(
    request: Request, body: TranslationRequest, deployment: Deployment, task: str, language: str | None
) -> tuple[Transcript, float]:
    """The recording, read through and ready to be heard, and its length in seconds. Raises 400."""
    sources = deployment.sources
    check_extra(request, sources)
    if body.prompt and not sources & {"prefix", "prompt"}:
        raise unsupported("prompt", deployment)
    if body.temperature and "temperature" not in sources:
        raise unsupported("temperature", deployment)
    job = Transcribe(
        NO_SOUND,
        language=language,
        task=task,
        prefix=whisper_prefix(language, task, body.prompt) if language and "prefix" in sources else None,
        prompt=body.prompt or None,
        temperature=body.temperature,
        extra=request.extra,
    )
    try:
        recording = await asyncio.to_thread(lambda: Recording(body.file.open()))
    except MediaError as error:
        raise _unreadable(error) from error
    windowed = recording.seconds > request.gateway.models[deployment.id].transcription.window
    await hold(request, deployment.id, _sound(recording.most)(), stoppable=windowed or deployment.stops_inferences)
    return Transcript(deployment, recording, job), round(recording.seconds, 3)


async def pieces(request: Request, transcript: Transcript) -> AsyncGenerator[Heard, None]:
    """What is heard, as it is heard; paid for as far as that. Raises 400 or an UpstreamError."""
    try:
        async with aclosing(transcript.pieces()) as heard:
            async for piece in heard:
                request.upstream_seconds = transcript.upstream_seconds
                request.used = _sound(piece.end)
                yield piece
    except MediaError as error:
        raise _unreadable(error) from error
    request.upstream_seconds = transcript.upstream_seconds
    request.used = _sound(transcript.recording.heard)  # silence has no pieces


def _sound(seconds: float) -> Callable[[], Units]:
    return partial(Units, milliseconds=round(seconds * 1000))


def text_of(heard: list[Heard]) -> str:
    """All of it."""
    return "".join(piece.text for piece in heard).strip()


def _unreadable(error: MediaError) -> InvalidRequest:
    return InvalidRequest(f"Invalid 'file': {error}", param="file", code="invalid_audio")


def _invalid(param: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid {param!r}: {why}.", param=param, code="invalid_value")
