"""POST /audio/speech: a text in, sound out, as it is made."""

import base64
from collections.abc import AsyncIterator
from typing import Annotated

from handlers.door.admission import reach
from handlers.door.lifetime import Request
from handlers.door.schemas.audio import Duration, SpeechAudioDelta, SpeechAudioDone, SpeechRequest
from handlers.door.speaking import FORMAT, check, speak, voice_of
from handlers.door.wire import ByteStream, Stream, encode
from upstream.media.audio import FORMATS
from upstream.speaking import Speech


async def create(
    request: Request, body: SpeechRequest
) -> Annotated[ByteStream, "audio/*"] | Stream[SpeechAudioDelta | SpeechAudioDone]:
    """Speak with the deployment that `model` names."""
    deployment = await reach(request, body.model, "speech")
    check(request, body, deployment)
    speech = await speak(request, body, deployment, await voice_of(request, body, deployment))
    if body.stream_format == "sse":
        return Stream(_frames(request, speech), lambda: _frame(SpeechAudioDone(Duration(round(speech.seconds, 3)))))
    content_type = FORMATS[body.response_format or FORMAT].content_type
    return ByteStream(_pieces(request, speech), [(b"content-type", content_type.encode())])


async def _pieces(request: Request, speech: Speech) -> AsyncIterator[bytes]:
    async for piece in speech.pieces():
        request.upstream_seconds = speech.upstream_seconds
        yield piece


async def _frames(request: Request, speech: Speech) -> AsyncIterator[bytes]:
    async for piece in _pieces(request, speech):
        yield _frame(SpeechAudioDelta(base64.b64encode(piece).decode()))


def _frame(event: SpeechAudioDelta | SpeechAudioDone) -> bytes:
    return b"data: " + encode(event) + b"\n\n"
