"""Speech, transcriptions and translations: what clients send and get."""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from handlers.door.multipart import Upload
from handlers.door.schemas.body import Body, FormBody

VoiceName = Annotated[str, Meta(min_length=1, max_length=256)]
Temperature = Annotated[float, Meta(ge=0, le=1)]
TextFormat = Literal["json", "text", "srt", "vtt", "verbose_json"]


class VoiceId(Body):
    id: VoiceName


class SpeechRequest(Body):
    """POST /audio/speech. A voice is one of the model's, or that of a recording: `ref_audio`, and what it says."""

    takes_extra: ClassVar[bool] = True

    input: Annotated[str, Meta(min_length=1, max_length=4096)]
    model: str | None = None
    voice: VoiceName | VoiceId | None = None
    ref_audio: str | None = None  # base64, or a data: URL
    ref_text: Annotated[str, Meta(max_length=4096)] | None = None
    response_format: Literal["mp3", "wav", "flac", "opus", "aac", "pcm"] | None = None
    speed: Annotated[float, Meta(ge=0.25, le=4)] | None = None
    language: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    instructions: Annotated[str, Meta(max_length=4096)] | None = None
    stream_format: Literal["audio", "sse"] | None = None


class Duration(msgspec.Struct, tag_field="type", tag="duration"):
    """Usage: the length of the sound, heard or made."""

    seconds: float


class SpeechAudioDelta(msgspec.Struct, tag_field="type", tag="speech.audio.delta"):
    audio: str  # base64


class SpeechAudioDone(msgspec.Struct, tag_field="type", tag="speech.audio.done"):
    usage: Duration


class TranslationRequest(FormBody):
    """POST /audio/translations."""

    takes_extra: ClassVar[bool] = True

    file: Upload
    model: str | None = None
    prompt: str | None = None
    temperature: Temperature | None = None
    response_format: TextFormat | None = None


class TranscriptionRequest(TranslationRequest):
    """POST /audio/transcriptions."""

    language: str | None = None
    timestamp_granularities: list[Literal["segment", "word"]] = msgspec.field(
        name="timestamp_granularities[]", default_factory=list
    )
    include: list[str] = msgspec.field(name="include[]", default_factory=list)
    stream: bool | None = None
    chunking_strategy: Literal["auto"] | None = None  # long audio is always cut


class Transcription(msgspec.Struct):
    text: str
    usage: Duration


class Translation(msgspec.Struct):
    text: str


class Segment(msgspec.Struct):
    """What was said in one window. What no model here measures is 0 or empty."""

    id: int
    seek: int  # hundredths of a second
    start: float
    end: float
    text: str
    temperature: float
    compression_ratio: float
    tokens: list[int] = []
    avg_logprob: float = 0.0
    no_speech_prob: float = 0.0


class VerboseTranscription(msgspec.Struct):
    task: Literal["transcribe", "translate"]
    language: str
    duration: float
    text: str
    segments: list[Segment]
    usage: Duration | UnsetType = UNSET


class TranscriptTextDelta(msgspec.Struct, tag_field="type", tag="transcript.text.delta"):
    delta: str


class TranscriptTextDone(msgspec.Struct, tag_field="type", tag="transcript.text.done"):
    text: str
