"""Speech recognition: a recording to windows, their tensors and texts, and these to one text as it becomes known."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from upstream.binding import Inputs, tensors_of
from upstream.contract import Contract, NotBound
from upstream.errors import BadReply, Unsupported
from upstream.inference import Transcribe
from upstream.languages import LANGUAGES
from upstream.media.recording import Recording, Window
from upstream.media.transcript import Stitcher
from upstream.tensors import Array

if TYPE_CHECKING:
    from upstream.deployment import Deployment

AT_ONCE = 4  # windows of one recording that are with the model, or wait for their turn
MAX_PROMPT = 896  # bytes: Whisper's 224 tokens, each of four letters


class TranscriptionBinding:
    """A recogniser's profile on its live contract."""

    def __init__(self, settings: Any, contract: Contract) -> None:
        self.settings = spoken = settings.transcription
        always = {"audio", "audio.len", "prefix", "task"} | ({"language"} if spoken.default_language else set())
        self.contract = contract
        self.inputs = Inputs(settings, contract, Transcribe, frozenset(always))
        self.sources = self.inputs.sources
        self.left_out = list(self.inputs.left_out)
        for tensor in tensors_of("audio", settings, contract):
            if tensor.dtype != "FP32":
                raise NotBound(f"{tensor.name!r} is {tensor.dtype}; the sound is sent as FP32")
        if "audio" not in self.sources:
            raise NotBound('no tensor takes the sound: write WAV = "audio" in [models.in]')
        if "prefix" in self.sources and not spoken.default_language:
            raise NotBound("Whisper's prefix names a language: set default_language in [models.transcription]")
        for code in (*spoken.languages, *filter(None, [spoken.default_language])):
            if code not in LANGUAGES:
                raise NotBound(f"[models.transcription]: {code!r} is not the ISO 639-1 code of a language")
        if spoken.translates and not self.sources & {"prefix", "task"}:
            raise NotBound("[models.transcription] translates, but no tensor says so: bind prefix or task")
        self._bind_text(settings.outputs.get("text"))
        if contract.transaction.decoupled and settings.transport != "grpc":
            raise NotBound('the model is decoupled: set transport = "grpc"')

    def _bind_text(self, text: Any) -> None:
        if text is None:
            raise NotBound("the profile names no tensor for text: add text to [models.out]")
        self.tensor: str = text if isinstance(text, str) else text.tensor
        self.cumulative = not isinstance(text, str) and text.mode == "cumulative"
        dtypes = {tensor.name: tensor.dtype for tensor in self.contract.outputs}
        if dtypes.get(self.tensor) != "BYTES":
            raise NotBound(f"the model has no output {self.tensor!r} of text; it has: {', '.join(sorted(dtypes))}")

    def text(self, arrays: dict[str, Array]) -> str:
        """What a response says. Raises BadReply."""
        heard = arrays.get(self.tensor)
        if heard is None or heard.dtype != "BYTES":
            raise BadReply(f"a response without a text in {self.tensor!r}")
        return "".join(item.decode("utf-8", "replace") for item in heard.items())


class Heard(NamedTuple):
    """A piece of the text that nothing will change any more, and the seconds in which it was said."""

    start: float
    end: float
    text: str


def whisper_prefix(language: str, task: str, prompt: str | None) -> str:
    """What Whisper's decoder is to continue. Source: openai/whisper, whisper/decoding.py, _get_initial_tokens.

    Raises Unsupported for a prompt that would not fit, or that holds control tokens itself.
    """
    before = ""
    if prompt and prompt.strip():
        if len(prompt.encode()) > MAX_PROMPT:
            raise Unsupported("prompt", f"this deployment takes at most {MAX_PROMPT} bytes")
        if "<|" in prompt:
            raise Unsupported("prompt", "this deployment takes words, not '<|'")
        before = f"<|startofprev|> {prompt.strip()}"
    return f"{before}<|startoftranscript|><|{language}|><|{task}|><|notimestamps|>"


class Transcript:
    """A recording on its way through the model; `pieces` make its text.

    A segment's times are those of its window, their overlaps halved: no model here tells any.
    """

    def __init__(self, deployment: "Deployment", recording: Recording, job: Transcribe) -> None:
        """`job` has all but the sound."""
        binding = deployment.binding
        assert isinstance(binding, TranscriptionBinding)
        self.upstream_seconds = self._since = 0.0
        self._asked = 0
        self._binding = binding
        self._deployment = deployment
        self.recording = recording
        self._job = job
        self._settings = binding.settings

    async def pieces(self) -> AsyncGenerator[Heard, None]:
        """In order; those of a window whose text comes in parts follow one another when it is the only one.

        Raises an UpstreamError, or MediaError where the recording cannot be decoded.
        """
        settings = self._settings
        windows = self.recording.windows(settings.window, overlap=settings.overlap, rate=settings.rate)
        window: Window | None = await asyncio.to_thread(next, windows)
        assert window is not None
        if window.last:
            async with aclosing(self._listen(window)) as parts:
                async for part in parts:
                    yield Heard(0.0, self.recording.seconds, part)
            return
        stitcher, waiting = Stitcher(), deque[tuple[Window, asyncio.Task[str]]]()
        before: Window | None = None
        try:
            while window is not None or waiting:
                while window is not None and len(waiting) < AT_ONCE:
                    waiting.append((window, asyncio.create_task(self._hear(window))))
                    window = None if window.last else await asyncio.to_thread(next, windows)
                heard, task = waiting.popleft()
                settled = stitcher.feed(await task)
                if before is not None:
                    yield self._placed(before, settled)
                before = heard
            assert before is not None
            yield self._placed(before, stitcher.finish())
        finally:
            for _, task in waiting:
                task.cancel()
            await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)

    def _placed(self, window: Window, text: str) -> Heard:
        half = self._settings.overlap / 2
        end = window.start + len(window.samples) / 4 / self._settings.rate
        start = window.start + half if window.start else 0.0
        return Heard(start, self.recording.seconds if window.last else end - half, text)

    async def _hear(self, window: Window) -> str:
        return "".join([part async for part in self._listen(window)])

    async def _listen(self, window: Window) -> AsyncGenerator[str, None]:
        """What one window says, in the parts in which the model tells it."""
        binding, count = self._binding, len(window.samples) // 4
        job = replace(self._job, audio=Array("FP32", (count,), window.samples), length=count)
        arrays, parameters = binding.inputs.arrays(job)
        with self._asking():
            if not binding.contract.transaction.decoupled:
                yield binding.text(await self._deployment.infer(arrays, [binding.tensor], parameters))
                return
            stream = self._deployment.stream(arrays, [binding.tensor], parameters)
            try:
                whole = given = ""
                while (response := await stream.read()) is not None:
                    text = binding.text(response)
                    whole = text if binding.cumulative else whole + text
                    known = whole.rstrip("\ufffd")  # half a character waits for its other half
                    if len(known) > len(given):
                        yield known[len(given) :]
                        given = known
                if len(whole) > len(given):
                    yield whole[len(given) :]
            finally:
                stream.close()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Counts the seconds in which the model has at least one window."""
        if not self._asked:
            self._since = time.perf_counter()
        self._asked += 1
        try:
            yield
        finally:
            self._asked -= 1
            if not self._asked:
                self.upstream_seconds += time.perf_counter() - self._since
