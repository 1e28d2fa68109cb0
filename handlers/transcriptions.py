"""POST /audio/transcriptions and /audio/translations: a recording in, what is said in it out, also as it is heard."""

import zlib
from collections.abc import AsyncIterator
from typing import Annotated

from handlers.door.admission import reach
from handlers.door.errors import InvalidRequest
from handlers.door.guide import unsupported
from handlers.door.hearing import hear, language_of, pieces, text_of
from handlers.door.lifetime import Request
from handlers.door.schemas.audio import (
    Duration,
    Segment,
    Transcription,
    TranscriptionRequest,
    TranscriptTextDelta,
    TranscriptTextDone,
    Translation,
    TranslationRequest,
    VerboseTranscription,
)
from handlers.door.wire import Bytes, Stream, encode
from upstream.deployment import Deployment
from upstream.languages import LANGUAGES
from upstream.transcribing import Heard, Transcript

PLAIN, VTT = "text/plain; charset=utf-8", "text/vtt; charset=utf-8"

Written = Annotated[Bytes, "text/plain", "text/vtt"]


async def create(
    request: Request, body: TranscriptionRequest
) -> Transcription | VerboseTranscription | Written | Stream[TranscriptTextDelta | TranscriptTextDone]:
    """Transcribe with the deployment that `model` names."""
    deployment = await reach(request, body.model, "transcription")
    _check_answer(body, deployment)
    language = language_of(body.language, request, deployment)
    transcript, seconds = await hear(request, body, deployment, "transcribe", language)
    if body.stream:
        return _Deltas(request, transcript).stream()
    heard = [piece async for piece in pieces(request, transcript)]
    text, usage = text_of(heard), Duration(seconds)
    if body.response_format in (None, "json"):
        return Transcription(text, usage)
    if body.response_format == "verbose_json":
        name = LANGUAGES[language] if language else "unknown"
        segments = _segments(heard, body.temperature)
        return VerboseTranscription("transcribe", name, seconds, text, segments, usage)
    return _written(heard, body.response_format)


async def translate(request: Request, body: TranslationRequest) -> Translation | VerboseTranscription | Written:
    """The same into English, for models that do."""
    deployment = await reach(request, body.model, "transcription")
    settings = request.gateway.models[deployment.id].transcription
    if not settings.translates:
        raise InvalidRequest(
            f"The model {deployment.id!r} does not translate; use /audio/transcriptions, or another model.",
            param="model",
            code="model_not_supported",
        )
    transcript, seconds = await hear(request, body, deployment, "translate", settings.default_language)
    heard = [piece async for piece in pieces(request, transcript)]
    if body.response_format in (None, "json"):
        return Translation(text_of(heard))
    if body.response_format == "verbose_json":
        segments = _segments(heard, body.temperature)
        return VerboseTranscription("translate", "english", seconds, text_of(heard), segments)
    return _written(heard, body.response_format)


def _check_answer(body: TranscriptionRequest, deployment: Deployment) -> None:
    """The form of the answer. Raises 400."""
    if body.include:
        raise unsupported("include[]", deployment)
    if "word" in body.timestamp_granularities:
        raise InvalidRequest(
            f"The model {deployment.id!r} gives no times of words; ask for 'segment'.",
            param="timestamp_granularities[]",
            code="unsupported_parameter",
        )
    if body.timestamp_granularities and body.response_format != "verbose_json":
        raise _invalid("timestamp_granularities[]", "it needs 'response_format': 'verbose_json'")
    if body.stream and body.response_format not in (None, "json", "text"):
        raise _invalid("response_format", f"{body.response_format!r} cannot be streamed")


class _Deltas:
    """A transcript as events; the last one tells it whole."""

    def __init__(self, request: Request, transcript: Transcript) -> None:
        self._request = request
        self._transcript = transcript
        self._text = ""

    def stream(self) -> Stream[TranscriptTextDelta | TranscriptTextDone]:
        return Stream(self._frames(), lambda: _frame(TranscriptTextDone(self._text)))

    async def _frames(self) -> AsyncIterator[bytes]:
        async for heard in pieces(self._request, self._transcript):
            delta = heard.text if self._text else heard.text.lstrip()
            self._text += delta
            if delta:
                yield _frame(TranscriptTextDelta(delta))


def _frame(event: TranscriptTextDelta | TranscriptTextDone) -> bytes:
    return b"data: " + encode(event) + b"\n\n"


def _segments(heard: list[Heard], temperature: float | None) -> list[Segment]:
    """Each window as a segment, those without words left out."""
    segments: list[Segment] = []
    for start, end, text in _cues(heard):
        data = text.encode()
        ratio = len(data) / len(zlib.compress(data))  # openai/whisper, whisper/utils.py, compression_ratio
        seek = round(start * 100)
        segments.append(
            Segment(len(segments), seek, round(start, 3), round(end, 3), text, temperature or 0.0, round(ratio, 3))
        )
    return segments


def _cues(heard: list[Heard]) -> list[Heard]:
    """The pieces of each window joined."""
    cues: list[Heard] = []
    for piece in heard:
        if cues and cues[-1].start == piece.start:
            cues[-1] = cues[-1]._replace(text=cues[-1].text + piece.text)
        else:
            cues.append(piece)
    return [cue._replace(text=cue.text.strip()) for cue in cues if cue.text.strip()]


def _written(heard: list[Heard], format: str | None) -> Bytes:
    """Plain text, SubRip, or WebVTT."""
    cues = _cues(heard)
    if format == "srt":
        blocks = [f"{number}\n{_times(cue, ',')}\n{_line(cue)}\n\n" for number, cue in enumerate(cues, 1)]
        return _bytes(PLAIN, "".join(blocks))
    if format == "vtt":
        escaped = [_line(cue).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for cue in cues]
        blocks = [f"{_times(cue, '.')}\n{line}\n\n" for cue, line in zip(cues, escaped, strict=True)]
        return _bytes(VTT, "WEBVTT\n\n" + "".join(blocks))
    return _bytes(PLAIN, text_of(heard) + "\n")


def _bytes(content_type: str, text: str) -> Bytes:
    return Bytes(text.encode(), [(b"content-type", content_type.encode())])


def _line(cue: Heard) -> str:
    """The words of a cue on one line: an empty one would end it."""
    return " ".join(cue.text.split())


def _times(cue: Heard, mark: str) -> str:
    return f"{_clock(cue.start, mark)} --> {_clock(cue.end, mark)}"


def _clock(seconds: float, mark: str) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, second = divmod(whole, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}{mark}{milliseconds:03}"


def _invalid(param: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid {param!r}: {why}.", param=param, code="invalid_value")
