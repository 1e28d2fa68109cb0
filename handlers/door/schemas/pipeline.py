"""The voice pipeline: a recording in; what was said, what is replied, and that as sound, out."""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from handlers.door.multipart import Upload
from handlers.door.schemas.audio import Duration, VoiceName
from handlers.door.schemas.body import FormBody
from handlers.door.schemas.chat import Message, TokenCount, Usage

Format = Literal["mp3", "wav", "flac", "opus", "aac", "pcm"]


class PipelineRequest(FormBody):
    """POST /{pipeline}/pipeline: a form with a `file`, or JSON with its base64 as `audio`.

    `messages`: what was said before, as in chat; in a form as JSON text. `language` and `prompt` are of what is heard,
    `max_tokens` and `temperature` of the reply, `voice`, `response_format` and `speed` of the sound.
    """

    or_json: ClassVar[bool] = True

    file: Upload | None = None
    audio: str | None = None  # base64, or a data: URL
    messages: list[Message] | str | None = None
    language: str | None = None
    prompt: str | None = None
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    speech: bool | None = None  # false: no sound; it is made where the pipeline has a model for it
    voice: VoiceName | None = None
    response_format: Format | None = None
    speed: Annotated[float, Meta(ge=0.25, le=4)] | None = None
    stream: bool | None = None


class PipelineModels(msgspec.Struct):
    """The model of each stage that ran."""

    transcription: str
    chat: str
    speech: str | None


class PipelineAudio(msgspec.Struct):
    """The reply as sound."""

    data: str  # base64
    format: Format


class SpokenUsage(msgspec.Struct):
    """What was spoken, and how long that lasts."""

    characters: int
    seconds: float


class PipelineUsage(msgspec.Struct):
    """Of each stage, as its own endpoint tells it."""

    transcription: Duration
    chat: Usage | None
    speech: SpokenUsage | None


class PipelineAnswer(msgspec.Struct, tag_field="object", tag="pipeline"):
    """The answer, whole."""

    id: str
    created: int
    pipeline: str
    models: PipelineModels
    transcript: str
    reply: str
    finish_reason: str
    audio: PipelineAudio | None
    usage: PipelineUsage


class TranscriptDelta(msgspec.Struct, tag_field="type", tag="pipeline.transcript.delta"):
    delta: str


class TranscriptDone(msgspec.Struct, tag_field="type", tag="pipeline.transcript.done"):
    text: str


class ReplyDelta(msgspec.Struct, tag_field="type", tag="pipeline.reply.delta"):
    delta: str


class ReplyDone(msgspec.Struct, tag_field="type", tag="pipeline.reply.done"):
    text: str
    finish_reason: str


class AudioDelta(msgspec.Struct, tag_field="type", tag="pipeline.audio.delta"):
    """The next bytes of one file: those of all deltas, joined, are it."""

    audio: str  # base64
    format: Format


class PipelineDone(msgspec.Struct, tag_field="type", tag="pipeline.done"):
    """The end: what each stage took."""

    id: str
    pipeline: str
    models: PipelineModels
    usage: PipelineUsage


PipelineEvent = TranscriptDelta | TranscriptDone | ReplyDelta | ReplyDone | AudioDelta | PipelineDone
