"""POST /chat/completions: a conversation in, one answer out or several, whole or as they are made."""

import time
from collections.abc import AsyncIterator

import msgspec

from handlers.door.admission import reach
from handlers.door.conversation import converse
from handlers.door.ids import fresh
from handlers.door.lifetime import Request
from handlers.door.reply import finish, interpreted, logprobs, opened, usage
from handlers.door.schemas.chat import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Choice,
    ChoiceLogprobs,
    ChunkCall,
    ChunkChoice,
    ChunkDelta,
    ChunkFunction,
    FunctionCall,
    ToolCall,
)
from handlers.door.wire import Stream, encode
from upstream.answer import Answer
from upstream.inference import Delta, TokenLogprob
from upstream.interpreter import CallArguments, CallStart, Interpreter, Piece, Reasoning, Text


async def create(request: Request, body: ChatRequest) -> ChatCompletion | Stream[ChatCompletionChunk]:
    """Answer a conversation with the deployment that `model` names."""
    deployment = await reach(request, body.model, "chat")
    generation, interpret = await converse(request, body, deployment)
    started = time.perf_counter()
    answer = await opened(request, deployment, generation)
    choices = range(body.n or 1)
    interpreters = [interpret() for _ in choices] if interpret is not None else None
    id, created = fresh("chatcmpl-"), int(time.time())
    if body.stream:
        include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        chunk = ChatCompletionChunk(id, created, deployment.id, [], None if include_usage else msgspec.UNSET)
        chunks = _Chunks(chunk)
        begin = ChunkDelta(role="assistant", content=None if body.tools else "")  # a call has no content
        opening = b"".join(chunks.frame(index, begin) for index in choices)
        frames = _frames(request, answer, started, chunks, interpreters, opening)
        return Stream(frames, lambda: chunks.last + (_usage_frame(chunk, answer) if include_usage else b""))
    gathered = [_Gathered() for _ in choices]
    while deltas := await answer.read():
        for delta in deltas:
            gathered[delta.index].add(delta, interpreters)
    request.upstream_seconds = time.perf_counter() - started
    made = [each.choice(index) for index, each in enumerate(gathered)]
    return ChatCompletion(id, created, deployment.id, made, usage(answer.usage))


class _Gathered:
    """One choice of a whole answer, as it comes together."""

    def __init__(self) -> None:
        self.text = self.reasoning = ""
        self.calls: list[ToolCall] = []
        self.finish = "stop"
        self.logprobs: list[TokenLogprob] = []

    def add(self, delta: Delta, interpreters: list[Interpreter] | None) -> None:
        if delta.logprobs:
            self.logprobs += delta.logprobs
        if interpreters is None:
            self.text += delta.text
            self.finish = delta.finish or self.finish
            return
        interpreter = interpreters[delta.index]
        for piece in interpreted(interpreter, delta):
            self._add(piece)
        self.finish = finish(interpreter, delta) or self.finish

    def _add(self, piece: Piece) -> None:
        if isinstance(piece, Text):
            self.text += piece.text
        elif isinstance(piece, Reasoning):
            self.reasoning += piece.text
        elif isinstance(piece, CallStart):
            self.calls.append(ToolCall(piece.id, FunctionCall(piece.name, "")))
        else:
            self.calls[piece.index].function.arguments += piece.fragment

    def choice(self, index: int) -> Choice:
        content = self.text or (None if self.calls else "")
        message = AnswerMessage(content)
        if self.reasoning:
            message.reasoning_content = self.reasoning
        if self.calls:
            message.tool_calls = self.calls
        return Choice(index, message, self.finish, _logprobs(self.logprobs))


class _Chunks:
    """Makes the frames of one answer. The JSON around a piece of text never changes: it is made once and spliced."""

    def __init__(self, chunk: ChatCompletionChunk) -> None:
        self.last = b""  # the frames that came with the answer's end
        self._chunk = chunk
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def text(self, index: int, text: str) -> bytes:
        """A frame with words."""
        around = self._around.get(index)
        if around is None:
            head, tail = self.frame(index, ChunkDelta(content="\x00")).split(encode("\x00"))
            around = self._around[index] = head, tail
        return around[0] + encode(text) + around[1]

    def frame(
        self, index: int, delta: ChunkDelta, finish: str | None = None, logprobs: ChoiceLogprobs | None = None
    ) -> bytes:
        """Any other frame."""
        choice = ChunkChoice(index, delta, logprobs, finish)
        return b"data: " + encode(msgspec.structs.replace(self._chunk, choices=[choice])) + b"\n\n"

    def piece(self, index: int, piece: Piece) -> bytes:
        """A frame with one piece of a call, of reasoning, or of words."""
        if isinstance(piece, Text):
            return self.text(index, piece.text)
        if isinstance(piece, Reasoning):
            return self.frame(index, ChunkDelta(reasoning_content=piece.text))
        if isinstance(piece, CallArguments):
            call = ChunkCall(piece.index, ChunkFunction(piece.fragment))
        else:
            call = ChunkCall(piece.index, ChunkFunction("", piece.name), piece.id, "function")
        return self.frame(index, ChunkDelta(tool_calls=[call]))


async def _frames(
    request: Request,
    answer: Answer,
    started: float,
    chunks: _Chunks,
    interpreters: list[Interpreter] | None,
    frames: bytes,
) -> AsyncIterator[bytes]:
    """The SSE frames, those of one arrival as one piece. `frames` are the first ones, which name the role."""
    while deltas := await answer.read():
        request.upstream_seconds = time.perf_counter() - started
        frames += b"".join(
            [
                chunks.text(delta.index, delta.text)
                if interpreters is None and delta.finish is None and delta.logprobs is None
                else _framed(chunks, delta, interpreters)
                for delta in deltas
            ]
        )
        if frames and not answer.complete:  # half a tag may be all that came
            yield frames
            frames = b""
    chunks.last = frames


def _framed(chunks: _Chunks, delta: Delta, interpreters: list[Interpreter] | None) -> bytes:
    """The frames of a delta that is more than words."""
    index = delta.index
    interpreter = interpreters[index] if interpreters is not None else None
    pieces = interpreted(interpreter, delta) if interpreter else [Text(delta.text)] if delta.text else []
    frames = b""
    if delta.logprobs:  # they belong to the tokens, which a piece may hold back: a chunk of their own, with plain text
        text = delta.text if interpreter is None else None
        pieces = pieces if interpreter else []
        frames += chunks.frame(index, ChunkDelta(content=text), None, _logprobs(delta.logprobs))
    for piece in pieces:
        frames += chunks.piece(index, piece)
    if delta.finish:
        frames += chunks.frame(index, ChunkDelta(), finish(interpreter, delta) if interpreter else delta.finish)
    return frames


def _usage_frame(chunk: ChatCompletionChunk, answer: Answer) -> bytes:
    return b"data: " + encode(msgspec.structs.replace(chunk, usage=usage(answer.usage))) + b"\n\n"


def _logprobs(told: list[TokenLogprob]) -> ChoiceLogprobs | None:
    return ChoiceLogprobs(logprobs(told)) if told else None
