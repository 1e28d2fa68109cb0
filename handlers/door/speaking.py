"""A text to the speech of a model, on credit: for whichever endpoint has one spoken."""

import asyncio
import binascii
import io
from typing import Literal

from handlers.door.billing import Units, hold
from handlers.door.conversation import check_extra
from handlers.door.errors import InvalidRequest
from handlers.door.guide import unsupported
from handlers.door.lifetime import Request
from handlers.door.schemas.audio import SpeechRequest, VoiceId
from upstream.deployment import Deployment
from upstream.fetch import FetchError, read_data_url
from upstream.inference import Speak
from upstream.media import MediaError, check_codecs
from upstream.speaking import Speech, SpeechBinding, Voice, read_voice

MAX_RECORDING = 10 << 20  # bytes of ref_audio
LISTED = 8  # voices that an error names
ONLY = "default"  # the name of a model's only voice
FORMAT: Literal["mp3"] = "mp3"  # of who asks for none


def check(request: Request, body: SpeechRequest, deployment: Deployment) -> None:
    """What a model cannot honour, but for the voice. Raises 400."""
    sources = deployment.sources
    check_extra(request, sources)
    for field in ("language", "instructions"):
        if getattr(body, field) and field not in sources:
            raise unsupported(field, deployment)
    try:
        check_codecs(f"make {body.response_format or FORMAT}")
    except MediaError as error:
        raise InvalidRequest(str(error), param="response_format", code="unsupported_format") from error


async def speak(request: Request, body: SpeechRequest, deployment: Deployment, voice: Voice) -> Speech:
    """The speech, held, closed when the request ends. Raises 400, 402, 403 or StoreUnavailable."""
    if not body.input.strip():
        raise _invalid("input", "it has no words")
    speed = body.speed if body.speed != 1 else None
    bound = "speed" in deployment.sources
    job = Speak(
        body.input,
        wav=voice.wav,
        wav_length=None if voice.wav is None else voice.wav.size,
        wav_text=voice.text,
        voice=voice.name,
        speed=speed if bound else None,
        language=body.language,
        instructions=body.instructions or None,
        extra=request.extra,
    )
    speech = Speech(deployment, job, body.response_format or FORMAT, tempo=1.0 if bound else speed or 1.0)
    request.on_end(speech.close)
    spoken = Units(characters=len(body.input))
    await hold(request, deployment.id, spoken, stoppable=deployment.stops_inferences)
    request.used = lambda: spoken if speech.seconds else Units()
    return speech


async def voice_of(request: Request, body: SpeechRequest, deployment: Deployment) -> Voice:
    """The voice that is asked for, as the model takes it. Raises 400."""
    binding = deployment.binding
    assert isinstance(binding, SpeechBinding)
    settings = request.gateway.models[deployment.id].speech
    name = body.voice.id if isinstance(body.voice, VoiceId) else body.voice
    if body.ref_audio is None:
        if body.ref_text is not None:
            raise _invalid("ref_text", "it says what 'ref_audio' says, which is missing")
        return _stored(name or settings.default_voice, deployment, binding)
    if not binding.imitates:
        raise unsupported("ref_audio", deployment)
    if name is not None:
        raise _invalid("voice", "the voice is either this one or that of 'ref_audio'; send one of them")
    if body.ref_text is not None and "voice.text" not in binding.sources:
        raise unsupported("ref_text", deployment)
    if not (body.ref_text or "").strip() and "voice.text" in binding.needs:
        raise _invalid("ref_text", "this model needs the words that 'ref_audio' says")
    data = _decoded(body.ref_audio)
    try:
        wav = await asyncio.to_thread(read_voice, io.BytesIO(data), settings.rate, settings.longest)
    except MediaError as error:
        raise InvalidRequest(f"Invalid 'ref_audio': {error}", param="ref_audio", code="invalid_audio") from error
    return Voice(wav=wav, text=body.ref_text)


def _stored(name: str | None, deployment: Deployment, binding: SpeechBinding) -> Voice:
    voices: dict[str, Voice] = deployment.prepared
    named = not voices and "voice.name" in binding.sources  # the profile lists none: the model knows them
    if name is None:
        if binding.needs & {"voice.wav", "voice.text", "voice.name"}:
            listed = f": {_listed(voices)}" if voices else " or 'ref_audio'" if binding.imitates else ""
            raise InvalidRequest(
                f"Missing required parameter: 'voice'; the model {deployment.id!r} needs one{listed}.",
                param="voice",
                code="missing_required_parameter",
            )
        return Voice()
    if named or name in voices:
        return voices.get(name, Voice(name))
    if not voices and name == ONLY and not binding.needs & {"voice.wav", "voice.text"}:
        return Voice()
    there = _listed(voices) if voices else "one, 'default'" if not binding.needs else "none; send 'ref_audio'"
    raise _invalid("voice", f"the model {deployment.id!r} has no voice of this name; it has {there}")


def _listed(voices: dict[str, Voice]) -> str:
    names = list(voices)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _decoded(text: str) -> bytes:
    """The bytes of base64, or of a data: URL. Raises 400."""
    try:
        if text[:5].lower() == "data:":
            return read_data_url(text, limit=MAX_RECORDING).body
        if len(text) > MAX_RECORDING // 3 * 4 + 4:
            raise FetchError(f"It has more than {MAX_RECORDING} bytes.")
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except FetchError as error:
        raise InvalidRequest(f"Invalid 'ref_audio': {error}", param="ref_audio", code="invalid_audio") from error
    except ValueError:
        raise _invalid("ref_audio", "it is neither base64 nor a data: URL") from None


def _invalid(param: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid {param!r}: {why}.", param=param, code="invalid_value")
