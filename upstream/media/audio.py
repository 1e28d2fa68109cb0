"""Speech on its way out: samples as the model makes them, to the bytes of the format that the client asked for."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from upstream.media import MediaError

if TYPE_CHECKING:
    from av import AudioFrame
    from av.filter import Graph

SampleType = Literal["FP32", "INT16"]

_NUMPY: Final = {"FP32": "<f4", "INT16": "<i2"}
_FFMPEG: Final = {"FP32": "flt", "INT16": "s16"}
_MPEG_RATES: Final = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
RATES: Final = range(4_000, 192_001)
_SPEEDS: Final = (0.25, 4.0)
_MUXER: Final = {"flush_packets": "1", "fflags": "bitexact"}  # bytes leave at once; no tags, no random serials
_OGG_PAGE: Final = "100000"  # µs of sound to a page; the default of a second delays the first bytes by as much


class Format(NamedTuple):
    """How one `response_format` is made, in FFmpeg's names; no `rates` means: any."""

    content_type: str
    container: str
    codec: str
    samples: str
    bit_rate: int | None = None
    rates: tuple[int, ...] = ()
    options: Mapping[str, str] = MappingProxyType({})


FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        "mp3": Format(
            "audio/mpeg",
            "mp3",
            "libmp3lame",
            "s16p",
            64_000,
            _MPEG_RATES,
            {"write_xing": "0", "id3v2_version": "0"},
        ),
        "wav": Format("audio/wav", "wav", "pcm_s16le", "s16"),
        "flac": Format("audio/flac", "flac", "flac", "s16"),
        "opus": Format(
            "audio/ogg",
            "ogg",
            "libopus",
            "s16",
            48_000,
            (8_000, 12_000, 16_000, 24_000, 48_000),
            {"page_duration": _OGG_PAGE},
        ),
        "aac": Format(
            "audio/aac",
            "adts",
            "aac",
            "fltp",
            64_000,
            _MPEG_RATES,
        ),
        "pcm": Format("audio/pcm", "s16le", "pcm_s16le", "s16", None, (24_000,)),
    }
)


class Encoder:
    """Mono samples in, encoded bytes out as soon as they exist. CPU work: one thread at a time, not the event loop's.

    The sound keeps the model's rate where the format can carry it, else takes the next higher one that it can;
    `pcm` is always 24 kHz, s16le. A WAV's length is unknown when its header leaves, so both of its sizes are
    0xFFFFFFFF, which players take for "until the end", as they do with OpenAI's own.
    """

    _container: Any = None

    def __init__(self, format: str, rate: int, *, dtype: SampleType = "FP32", speed: float = 1.0) -> None:
        """`rate` is that of the samples, in Hz; `speed` is 0.25 to 4 and keeps the pitch. Raises MediaError."""
        if format not in FORMATS:
            raise MediaError(f"Sound is made as one of {', '.join(FORMATS)}, not as {format!r}.")
        if rate not in RATES:
            raise MediaError(f"A sample rate is {RATES.start} to {RATES.stop - 1} Hz, not {rate}.")
        if not _SPEEDS[0] <= speed <= _SPEEDS[1]:
            raise MediaError(f"A speed is {_SPEEDS[0]} to {_SPEEDS[1]:g}, not {speed}.")
        import av

        form = FORMATS[format]
        self.content_type = form.content_type
        self.rate = _carried(rate, form.rates)
        self._rate_in = rate
        self._dtype: SampleType = dtype
        self._sink = _Sink()
        self._container = av.open(self._sink, "w", format=form.container, container_options={**_MUXER, **form.options})
        stream: Any = self._container.add_stream(form.codec, rate=self.rate, layout="mono", format=form.samples)
        if form.bit_rate is not None:
            stream.bit_rate = form.bit_rate
        self._container.start_encoding()  # the header leaves first, whatever follows
        self._stream = stream
        self._tempo = _tempo(rate, dtype, speed) if speed != 1.0 else None

    def feed(self, samples: bytes | memoryview) -> bytes:
        """The encoded bytes that these little-endian samples complete, perhaps none.

        Raises MediaError for a part of a sample, or one that is not a finite number.
        """
        import numpy

        wave = _wave(samples, self._dtype)
        if not numpy.isfinite(wave).all():
            raise MediaError("The model's sound holds values that are not numbers.")
        if self._tempo is None:
            self._write([self._frame(wave)] if wave.size else [])
        else:
            # atempo keeps a frame's output until the next frame comes, so frames are small: 20 ms.
            step = self._rate_in // 50
            for start in range(0, wave.size, step):
                self._tempo.push(self._frame(wave[start : start + step]))
                self._write(_pulled(self._tempo))
        return self._sink.take()

    def finish(self) -> bytes:
        """The rest: what the codec held back, and the trailer. The encoder is then used up."""
        if self._tempo is not None:
            self._tempo.push(None)
            self._write(_pulled(self._tempo))
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._sink.take()

    def __del__(self) -> None:
        """The client has left before `finish`, perhaps while a thread was within `feed`: container and stream, which
        refer to one another, would wait for the collector, with all that FFmpeg has for them."""
        if self._container is not None:
            self._container.close()

    def _frame(self, wave: Any) -> "AudioFrame":
        from av import AudioFrame

        frame = AudioFrame(_FFMPEG[self._dtype], "mono", wave.size)
        frame.sample_rate = self._rate_in
        frame.planes[0].update(wave.tobytes())
        return frame

    def _write(self, frames: "Iterator[AudioFrame] | list[AudioFrame]") -> None:
        for frame in frames:
            frame.pts = None  # the muxer counts samples; a filter's own clock would only disagree
            self._container.mux(self._stream.encode(frame))


class Crossfade:
    """Joins chunks of which each begins with a new rendering of the last `overlap` samples before it.

    The overlap-add of Spark-TTS's client: the old fades out while the new fades in, their weights summing to one.
    """

    def __init__(
        self, overlap: int, *, dtype: SampleType = "FP32", curve: Literal["linear", "cosine"] = "linear"
    ) -> None:
        """`overlap` is in samples; 0 passes every chunk through."""
        self._overlap = overlap
        self._dtype: SampleType = dtype
        self._curve = curve
        self._held: Any = None  # the tail that the next chunk will be faded into

    def feed(self, samples: bytes | memoryview) -> bytes:
        """The samples that no later chunk can change any more, little-endian. Raises MediaError for a part of one."""
        import numpy

        wave = _wave(samples, self._dtype)
        if self._held is not None and wave.size:
            count = min(self._held.size, wave.size)
            rise = (numpy.arange(count, dtype="f4") + 0.5) / max(count, 1)
            if self._curve == "cosine":
                rise = (1 - numpy.cos(numpy.pi * rise)) / 2
            mixed = self._held[:count] * (1 - rise) + wave[:count] * rise
            wave = numpy.concatenate([mixed.astype(wave.dtype), wave[count:]])
        elif self._held is not None:
            return b""
        cut = max(wave.size - self._overlap, 0)
        self._held = wave[cut:].copy()
        return bytes(wave[:cut].tobytes())

    def finish(self) -> bytes:
        """The tail of the last chunk."""
        held, self._held = self._held, None
        return b"" if held is None else bytes(held.tobytes())


class _Sink:
    """What the muxer writes to: no seeking, so every format is made as a stream."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        self._bytes += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._bytes)
        self._bytes.clear()
        return taken


def _wave(samples: bytes | memoryview, dtype: SampleType) -> Any:
    import numpy

    try:
        return numpy.frombuffer(samples, dtype=_NUMPY[dtype])
    except ValueError:
        raise MediaError(f"The model's sound is not a whole number of {dtype} samples.") from None


def _carried(rate: int, rates: tuple[int, ...]) -> int:
    if not rates or rate in rates:
        return rate
    return min((known for known in rates if known > rate), default=rates[-1])


def _tempo(rate: int, dtype: SampleType, speed: float) -> "Graph":
    """FFmpeg's atempo; above 2 one instance drops samples, so several share a larger change."""
    from fractions import Fraction

    from av.filter import Graph

    graph = Graph()
    source = graph.add_abuffer(sample_rate=rate, format=_FFMPEG[dtype], layout="mono", time_base=Fraction(1, rate))
    steps = 1 if 0.5 <= speed <= 2 else 2
    tempos = [graph.add("atempo", f"{speed ** (1 / steps):.6f}") for _ in range(steps)]
    graph.link_nodes(source, *tempos, graph.add("abuffersink")).configure()
    return graph


def _pulled(graph: "Graph") -> "Iterator[AudioFrame]":
    from av import AudioFrame

    while True:
        try:
            frame = graph.pull()
        except (BlockingIOError, EOFError):
            return
        assert isinstance(frame, AudioFrame)
        yield frame
