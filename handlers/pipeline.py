"""POST /{pipeline}/pipeline: a recording in; what was said, a reply to it, and that as sound, out: one voice turn."""

import base64
import binascii
import time
from collections.abc import AsyncIterator

import msgspec

from config import Pipeline
from handlers.door.admission import entry, reach
from handlers.door.conversation import converse
from handlers.door.errors import InvalidRequest
from handlers.door.hearing import hear, language_of, pieces
from handlers.door.ids import fresh
from handlers.door.lifetime import Request
from handlers.door.multipart import Upload
from handlers.door.reply import finish, interpreted, opened, usage
from handlers.door.schemas.audio import Duration, SpeechRequest, TranscriptionRequest
from handlers.door.schemas.chat import ChatRequest, Message, SystemMessage, UserMessage
from handlers.door.schemas.pipeline import (
    AudioDelta,
    Format,
    PipelineAnswer,
    PipelineAudio,
    PipelineDone,
    PipelineEvent,
    PipelineModels,
    PipelineRequest,
    PipelineUsage,
    ReplyDelta,
    ReplyDone,
    SpokenUsage,
    TranscriptDelta,
    TranscriptDone,
)
from handlers.door.speaking import FORMAT, check, speak, voice_of
from handlers.door.stages import Stage
from handlers.door.wire import Stream, event
from upstream.deployment import Deployment
from upstream.fetch import FetchError, read_data_url
from upstream.interpreter import Text
from upstream.speaking import Voice

_read_messages = msgspec.json.Decoder(list[Message]).decode


async def create(request: Request, body: PipelineRequest) -> PipelineAnswer | Stream[PipelineEvent]:
    """One turn of a spoken conversation, with the models of the pipeline that the path or the key names. Raises 402,
    403, 404, 502, 503, 504."""
    turn = await _turn(request, body)
    if body.stream:
        return Stream(_frames(turn), lambda: event(turn.done()))
    audio = bytearray()
    async for each in turn.events():
        if isinstance(each, bytes):
            audio += each
    made = PipelineAudio(base64.b64encode(audio).decode(), turn.format) if turn.speaker is not None and audio else None
    return PipelineAnswer(
        turn.id,
        int(time.time()),
        turn.pipeline.id,
        turn.models,
        turn.transcript,
        turn.reply,
        turn.finish,
        made,
        turn.usage,
    )


async def _frames(turn: "Turn") -> AsyncIterator[bytes]:
    async for each in turn.events():
        if isinstance(each, bytes):
            yield event(AudioDelta(base64.b64encode(each).decode(), turn.format))
        else:
            yield event(each)


async def _turn(request: Request, body: PipelineRequest) -> "Turn":
    """All of it looked at before any model is asked. Raises 400, 403, 404 or 503."""
    pipeline = entry(request)
    if pipeline is None:
        raise InvalidRequest(
            "Name the pipeline: POST /v1/{pipelineId}/pipeline, or send a key that is bound to one.",
            param="pipeline",
            code="missing_required_parameter",
        )
    hearing, chatting, speaking = (Stage(request, name) for name in ("transcription", "chat", "speech"))
    listener = await reach(hearing, None, "transcription")
    chatter = await reach(chatting, None, "chat")
    wanted = body.speech if body.speech is not None else "speech" in pipeline.models
    speaker = await reach(speaking, None, "speech") if wanted else None
    turn = Turn(body, pipeline, (hearing, chatting, speaking), listener, chatter, speaker)
    turn.upload, turn.said = await _upload(request, body), _messages(body)
    turn.language = language_of(body.language, hearing, listener)
    if speaker is not None:
        check(speaking, turn.asked(""), speaker)
        turn.voice = await voice_of(speaking, turn.asked(""), speaker)
    return turn


class Turn:
    """One turn, as it comes together."""

    upload: Upload
    said: list[Message]
    language: str | None
    voice: Voice

    def __init__(
        self,
        body: PipelineRequest,
        pipeline: Pipeline,
        stages: tuple[Stage, Stage, Stage],
        listener: Deployment,
        chatter: Deployment,
        speaker: Deployment | None,
    ) -> None:
        self.id = fresh("turn-")
        self.format: Format = body.response_format or FORMAT
        self.pipeline, self.speaker = pipeline, speaker
        self.models = PipelineModels(listener.id, chatter.id, speaker.id if speaker is not None else None)
        self.usage = PipelineUsage(Duration(0.0), None, None)
        self.transcript = self.reply = ""
        self.finish = "stop"
        self._body, self._listener, self._chatter = body, listener, chatter
        self._hearing, self._chatting, self._speaking = stages

    async def events(self) -> AsyncIterator[PipelineEvent | bytes]:
        """What is told, in its order; bytes are of the sound. Raises what a stage of its raises."""
        async for heard in self._hear():
            yield heard
        async for written in self._answer():
            yield written
        if self.speaker is not None and self.reply.strip():
            async for piece in self._speak(self.speaker):
                yield piece

    def asked(self, text: str) -> SpeechRequest:
        """What is asked of the speech model."""
        body = self._body
        voice = body.voice or self.pipeline.voice
        return SpeechRequest(text, voice=voice, response_format=self.format, speed=body.speed)

    def done(self) -> PipelineDone:
        """The last event."""
        return PipelineDone(self.id, self.pipeline.id, self.models, self.usage)

    async def _hear(self) -> AsyncIterator[PipelineEvent]:
        stage, body = self._hearing, self._body
        stage.begin()
        asked = TranscriptionRequest(self.upload, prompt=body.prompt, language=self.language)
        transcript, seconds = await hear(stage, asked, self._listener, "transcribe", self.language)
        async for heard in pieces(stage, transcript):
            delta = heard.text if self.transcript else heard.text.lstrip()
            self.transcript += delta
            if delta:
                yield TranscriptDelta(delta)
        self.transcript = self.transcript.strip()
        if not self.transcript:
            raise InvalidRequest("There are no words in the recording.", param="file", code="no_speech")
        self.usage.transcription = Duration(seconds)
        yield TranscriptDone(self.transcript)
        await stage.end(kept=bool(body.stream))

    async def _answer(self) -> AsyncIterator[PipelineEvent]:
        stage, body = self._chatting, self._body
        stage.begin()
        system: list[Message] = [SystemMessage(self.pipeline.system)] if self.pipeline.system is not None else []
        asked = ChatRequest(
            [*system, *self.said, UserMessage(self.transcript)],
            stream=body.stream,
            max_tokens=body.max_tokens,
            temperature=body.temperature,
        )
        generation, interpret = await converse(stage, asked, self._chatter)
        answer = await opened(stage, self._chatter, generation)
        began = time.perf_counter() - stage.upstream_seconds
        interpreter = interpret() if interpret is not None else None
        while deltas := await answer.read():
            stage.upstream_seconds = time.perf_counter() - began
            for delta in deltas:
                found = interpreted(interpreter, delta) if interpreter else [Text(delta.text)]
                text = "".join(piece.text for piece in found if isinstance(piece, Text))  # thoughts are not spoken
                self.reply += text
                self.finish = (finish(interpreter, delta) if interpreter else delta.finish) or self.finish
                if text:
                    if body.stream and not stage.first_at:
                        stage.first_at = time.perf_counter()
                    yield ReplyDelta(text)
        self.usage.chat = usage(answer.usage)
        yield ReplyDone(self.reply, self.finish)
        await stage.end(kept=bool(body.stream))

    async def _speak(self, speaker: Deployment) -> AsyncIterator[bytes]:
        stage = self._speaking
        stage.begin()
        speech = await speak(stage, self.asked(self.reply), speaker, self.voice)
        async for piece in speech.pieces():
            stage.upstream_seconds = speech.upstream_seconds
            yield piece
        self.usage.speech = SpokenUsage(len(self.reply), round(speech.seconds, 3))
        await stage.end(kept=bool(self._body.stream))


async def _upload(request: Request, body: PipelineRequest) -> Upload:
    """The recording. Raises 400."""
    if (body.file is None) == (body.audio is None):
        raise InvalidRequest(
            "Send the recording: as 'file' in multipart/form-data, or as base64 in 'audio'; one of them.",
            param="file",
            code="missing_required_parameter",
        )
    if body.file is not None:
        return body.file
    assert body.audio is not None
    try:
        if body.audio[:5].lower() == "data:":
            data = read_data_url(body.audio, limit=request.gateway.config.server.max_body).body
        else:
            data = binascii.a2b_base64(body.audio.encode("ascii"), strict_mode=True)
    except (FetchError, ValueError) as error:
        raise InvalidRequest(
            "Invalid 'audio': it is neither base64 nor a data: URL.", param="audio", code="invalid_audio"
        ) from error
    upload = Upload("audio")
    request.on_end(upload.close)
    await upload.write(data)
    return upload


def _messages(body: PipelineRequest) -> list[Message]:
    """What was said before. Raises 400."""
    if not isinstance(body.messages, str):
        return body.messages or []
    try:
        return _read_messages(body.messages)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(
            f"Invalid 'messages': in a form it is JSON text of a list of messages ({error}).",
            param="messages",
            code="invalid_value",
        ) from error
