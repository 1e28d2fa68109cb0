"""Speech models: a text in a voice to tensors, and the waveforms that come back to the bytes of a format."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from upstream.binding import Inputs, tensors_of
from upstream.contract import Contract, NotBound
from upstream.errors import BadReply, ModelFailed
from upstream.inference import Speak
from upstream.media import MediaError
from upstream.media.audio import RATES, Crossfade, Encoder, SampleType
from upstream.media.recording import Recording
from upstream.tensors import Array

if TYPE_CHECKING:
    from upstream.deployment import Deployment
    from upstream.responses import Responses

VOICE = frozenset({"voice.wav", "voice.len", "voice.text", "voice.name"})
WIDTHS: Mapping[str, int] = {"FP32": 4, "INT16": 2}  # bytes of a sample
SLICE = 1.0  # seconds: what is encoded at a time, so that bytes flow from a model that makes all at once


class Voice(NamedTuple):
    """A voice as a model takes it: its own name for it, or a recording (FP32 mono) and what that says."""

    name: str | None = None
    wav: Array | None = None
    text: str | None = None


class SpeechBinding:
    """A speech model's profile on its live contract. `needs` are the sources that no request may lack.

    The handler gives every request a voice with all that is needed, so the voice's sources count as always there.
    """

    def __init__(self, settings: Any, contract: Contract) -> None:
        self.contract = contract
        self.inputs = Inputs(settings, contract, Speak, frozenset({"text", *VOICE}))
        self.sources = self.inputs.sources
        self.left_out = list(self.inputs.left_out)
        self.needs = frozenset(
            source
            for source in self.sources
            if any(not tensor.optional for tensor in tensors_of(source, settings, contract))
        )
        for tensor in tensors_of("voice.wav", settings, contract):
            if tensor.dtype != "FP32":
                raise NotBound(f"{tensor.name!r} is {tensor.dtype}; a recording is sent as FP32")
        self._check_voices(settings)
        self._bind_audio(settings.outputs.get("audio"))
        if contract.transaction.decoupled and settings.transport != "grpc":
            raise NotBound('the model is decoupled: set transport = "grpc"')

    @property
    def imitates(self) -> bool:
        """Whether the model speaks like a recording."""
        return "voice.wav" in self.sources

    def _check_voices(self, settings: Any) -> None:
        for name, voice in settings.speech.voices.items():
            for source, key in (("voice.wav", "wav"), ("voice.text", "text")):
                if source in self.needs and getattr(voice, key) is None:
                    raise NotBound(f"the model needs {source!r}: add {key} to [models.speech.voices.{name}]")

    def _bind_audio(self, audio: Any) -> None:
        if audio is None or isinstance(audio, str) or audio.rate is None:
            raise NotBound("no tensor tells its sample rate: write audio = { tensor = …, rate = … } in [models.out]")
        if audio.rate not in RATES:
            raise NotBound(f"audio in [models.out]: a rate is {RATES.start} to {RATES.stop - 1} Hz")
        dtypes = {tensor.name: tensor.dtype for tensor in self.contract.outputs}
        if audio.tensor not in dtypes:
            raise NotBound(f"the model has no output {audio.tensor!r}; it has: {', '.join(sorted(dtypes))}")
        if dtypes[audio.tensor] not in WIDTHS:
            raise NotBound(f"{audio.tensor!r} is {dtypes[audio.tensor]}; a waveform is {' or '.join(WIDTHS)}")
        self.tensor: str = audio.tensor
        self.rate: int = audio.rate
        self.overlap = round(audio.overlap * audio.rate)
        self.dtype = cast(SampleType, dtypes[audio.tensor])


def prepare_voices(settings: Any) -> dict[str, Voice]:
    """The configured voices, their recordings read. Raises ValueError. Slow where there are any."""
    speech, voices = settings.speech, {}
    for name, voice in speech.voices.items():
        wav = None
        if voice.wav is not None:
            try:
                with Path(voice.wav).open("rb") as file:
                    wav = read_voice(file, speech.rate, speech.longest)
            except OSError as error:
                raise ValueError(f"the voice {name!r}: {voice.wav} cannot be read ({error.strerror})") from error
            except MediaError as error:
                raise ValueError(f"the voice {name!r}: {voice.wav}: {error}") from error
        voices[name] = Voice(voice.name or name, wav, voice.text)
    if speech.default_voice is not None and speech.default_voice not in voices:
        raise ValueError(f"default_voice {speech.default_voice!r} is none of [models.speech.voices]")
    return voices


def read_voice(file: BinaryIO, rate: int, longest: float) -> Array:
    """A recording of at most `longest` seconds as samples [n]. CPU work. Raises MediaError."""
    recording = Recording(file, longest=longest)
    samples = b"".join(window.samples for window in recording.windows(longest, rate=rate))
    return Array("FP32", (len(samples) // 4,), samples)


class Speech:
    """One text being spoken. `pieces` are encoded bytes, each as soon as it is made; `seconds` how long they last."""

    def __init__(self, deployment: "Deployment", job: Speak, format: str, tempo: float = 1.0) -> None:
        """`tempo` is what the encoder does for a model that cannot change its speed itself."""
        binding = deployment.binding
        assert isinstance(binding, SpeechBinding)
        self.upstream_seconds = self.seconds = 0.0
        self._binding = binding
        self._deployment = deployment
        self._inputs = binding.inputs.arrays(job)
        self._format = format
        self._tempo = tempo
        self._stream: Responses | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises an UpstreamError: before the first bytes, or after some, when the model breaks off."""
        binding = self._binding
        fade = Crossfade(binding.overlap, dtype=binding.dtype) if binding.overlap else None
        try:
            encoder = None
            async for samples in self._waves():
                if encoder is None:
                    encoder = await asyncio.to_thread(self._encoder)
                for part in self._sliced(fade.feed(samples) if fade else samples):
                    if data := await asyncio.to_thread(encoder.feed, part):
                        yield data
            if encoder is None:
                raise ModelFailed("the model made no sound")
            for part in self._sliced(fade.finish() if fade else b""):
                if data := await asyncio.to_thread(encoder.feed, part):
                    yield data
            if data := await asyncio.to_thread(encoder.finish):
                yield data
        except MediaError as error:
            raise BadReply(str(error)) from error

    def close(self) -> None:
        """Cancel at Triton what is not complete."""
        if self._stream is not None:
            self._stream.close()

    def _encoder(self) -> Encoder:
        return Encoder(self._format, self._binding.rate, dtype=self._binding.dtype, speed=self._tempo)

    async def _waves(self) -> AsyncIterator[bytes | memoryview]:
        """The waveforms that are not empty, in their order."""
        (arrays, parameters), outputs = self._inputs, [self._binding.tensor]
        if not self._binding.contract.transaction.decoupled:
            asked = time.perf_counter()
            made: dict[str, Array] | None = await self._deployment.infer(arrays, outputs, parameters)
            self.upstream_seconds += time.perf_counter() - asked
        else:
            self._stream = self._deployment.stream(arrays, outputs, parameters)
            made = await self._next()
        while made is not None:
            wave = made.get(self._binding.tensor)
            if wave is not None and wave.dtype != self._binding.dtype:
                raise BadReply(f"{self._binding.tensor!r} came as {wave.dtype}")
            if wave is not None and wave.data:
                yield wave.data
            made = await self._next() if self._stream is not None else None

    async def _next(self) -> dict[str, Array] | None:
        assert self._stream is not None
        asked = time.perf_counter()
        made = await self._stream.read()
        self.upstream_seconds += time.perf_counter() - asked
        return made

    def _sliced(self, samples: bytes | memoryview) -> Iterator[memoryview]:
        binding, view = self._binding, memoryview(samples)
        size = round(SLICE * binding.rate) * WIDTHS[binding.dtype]
        self.seconds += len(view) / WIDTHS[binding.dtype] / binding.rate / self._tempo
        for start in range(0, len(view), size):
            yield view[start : start + size]
