"""Speech on its way in: a listed audio file decoded to mono, in windows, so that its length never is in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import SEEK_END
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, NoReturn

from upstream.media import MediaError, check_codecs

if TYPE_CHECKING:
    from av import AudioFrame, AudioResampler
    from av.audio.stream import AudioStream
    from av.container import InputContainer

_CONTAINERS: Final = "wav,mp3,mov,flac,ogg,matroska"  # FFmpeg's demuxers; mov reads mp4 and m4a, matroska webm
_CODECS: Final = (
    "aac,alac,flac,mp3,mp3float,opus,libopus,vorbis,libvorbis,adpcm_ms,adpcm_ima_wav,pcm_alaw,pcm_mulaw,pcm_u8,pcm_s8,"
    "pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,pcm_f64le,pcm_f64be"
)
_LISTED: Final = "wav, mp3, m4a, mp4, flac, ogg or webm"
_NO_SOUND: Final = "The audio file holds no sound."
_RATES: Final = range(4_000, 384_001)
_CHANNELS: Final = 16
_PACKET: Final = 1024 * 1024  # bytes; a sane packet holds a fraction of a second
PADDING: Final = 0.25  # seconds that a codec may add
_SAMPLE: Final = 4  # bytes of a float32
_OPEN_ENDED: Final = 0x7FFF_0000  # programs that stream a WAV state this size or more; espeak-ng 0x7FFFF024


class Window(NamedTuple):
    """A stretch of the recording: `start` in seconds from its beginning, `samples` mono little-endian float32."""

    start: float
    samples: bytes
    last: bool


class Recording:
    """An audio file that has been read through once without decoding, and so is known to be whole.

    CPU work and blocking reads: use it from a worker thread, one at a time. Only the given file is ever read:
    playlists, references to other files and every network protocol of FFmpeg are refused.
    """

    def __init__(self, file: BinaryIO, *, longest: float = 4 * 3600.0) -> None:
        """`file` is seekable and stays the caller's. `longest` is in seconds.

        Raises MediaError for what is empty, not audio, cut short, without sound, or too long.
        """
        self._file = file
        self._longest = longest
        self.decoded = 0.0  # seconds, of the windows so far
        self.seconds = self._survey()

    @property
    def most(self) -> float:
        """Seconds that are decoded at most: the times of packets are not exact, and may lie."""
        return self.seconds * 1.1 + 1

    @property
    def heard(self) -> float:
        """Seconds to be paid for: as the file says, unless more was decoded than its codec adds."""
        return max(self.seconds, self.decoded - PADDING)

    def windows(self, seconds: float, *, overlap: float = 0.0, rate: int = 16_000) -> Iterator[Window]:
        """Windows of `seconds`, each beginning `overlap` seconds before its predecessor's end, at `rate` Hz.

        The last is as long as what is left. Raises MediaError where the file's packets cannot be decoded.
        """
        size = round(seconds * rate) * _SAMPLE
        step = size - round(overlap * rate) * _SAMPLE
        if not 0 < step <= size:
            raise ValueError("an overlap is shorter than its window")
        most = self.most * rate * _SAMPLE  # what is decoded is what was counted, and paid for
        held = bytearray()
        start = 0
        for samples in self._decoded(rate):
            held += samples
            self.decoded = (start + len(held)) / _SAMPLE / rate
            if start + len(held) > most:
                raise MediaError("The audio file holds more sound than its times say.")
            while len(held) > size:  # not >=: the last window must be known as such
                yield Window(start / _SAMPLE / rate, bytes(held[:size]), False)
                del held[:step]
                start += step
        if not held:
            raise MediaError(_NO_SOUND)
        yield Window(start / _SAMPLE / rate, bytes(held), True)

    def _survey(self) -> float:
        """The length in seconds, by the packets' own times: a header may lie, or not know."""
        with self._opened() as (container, stream):
            unit = float(stream.time_base or 0)
            first: int | None = None
            position = end = 0
            last = None
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.size > _PACKET:
                    raise MediaError("The audio file's packets are too large.")
                position = position if packet.pts is None else packet.pts
                first = position if first is None else first
                position += packet.duration or 0
                end = max(end, position)
                last = packet
                if (end - first) * unit > self._longest:
                    raise MediaError(f"The audio is longer than the {self._longest:g} seconds allowed.")
            if last is None or first is None:
                raise MediaError(_NO_SOUND)
            seconds = (end - first) * unit
            declared = _declared(container, stream)
            missing = declared is not None and declared - seconds > max(0.25, declared / 50)
            if container.format.name == "mp3":
                missing = _cut_frame(bytes(last))  # the length is mostly an estimate
            elif container.format.name == "wav":
                missing = self._cut_riff()  # FFmpeg believes the file's size before the header's
            if missing:
                raise MediaError("The audio file is cut short: its end is missing.")
            return seconds

    def _cut_riff(self) -> bool:
        self._file.seek(4)
        stated = int.from_bytes(self._file.read(4), "little") + 8
        return self._file.seek(0, SEEK_END) < stated < _OPEN_ENDED

    def _decoded(self, rate: int) -> Iterator[bytes]:
        from av.error import FFmpegError

        good = broken = 0
        shape: tuple[int, str, str] | None = None
        resampler: AudioResampler | None = None
        with self._opened() as (container, stream):
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except FFmpegError:
                    broken += 1
                    if broken > 10 + good // 10:
                        raise
                    continue
                good += 1
                for frame in frames:
                    seen = (frame.sample_rate, frame.layout.name, frame.format.name)
                    if resampler is None or seen != shape:
                        yield from _flushed(resampler)
                        shape, resampler = seen, _resampler(frame, rate)
                    for piece in resampler.resample(frame):
                        yield _bytes(piece)
            yield from _flushed(resampler)

    @contextmanager
    def _opened(self) -> "Iterator[tuple[InputContainer, AudioStream]]":
        check_codecs(f"read {_LISTED}")
        import av
        from av.error import FFmpegError

        self._file.seek(0)
        if not self._file.read(1):
            raise MediaError("The audio file is empty.")
        self._file.seek(0)
        options = {
            "format_whitelist": _CONTAINERS,
            "codec_whitelist": _CODECS,
            "protocol_whitelist": "",
        }
        try:
            with av.open(
                _Source(self._file), "r", container_options=options, metadata_errors="replace", io_open=_refuse
            ) as container:
                yield container, _sound(container)
        except FFmpegError:
            raise MediaError(f"The file cannot be read as audio; send {_LISTED}.") from None


class _Source:
    """The caller's file without its name, which FFmpeg would otherwise take for a location."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.seek = file.seek
        self.tell = file.tell


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise MediaError("The audio file refers to another file.")


def _sound(container: "InputContainer") -> "AudioStream":
    from av.stream import Discard

    if not container.streams.audio:
        raise MediaError(_NO_SOUND)
    chosen = container.streams.audio[0]
    if getattr(chosen.codec_context, "name", None) not in _CODECS.split(
        ","
    ):  # it is None where FFmpeg knows no decoder
        raise MediaError("The audio file's codec is not supported; use AAC, ALAC, FLAC, MP3, Opus, PCM or Vorbis.")
    for stream in container.streams:
        if stream.index != chosen.index:
            stream.discard = Discard.all
    return chosen


def _declared(container: "InputContainer", stream: "AudioStream") -> float | None:
    """The length that the header states, in seconds, if it does and means the sound alone."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / 1_000_000
    return None


def _resampler(frame: "AudioFrame", rate: int) -> "AudioResampler":
    from av import AudioResampler

    if frame.sample_rate not in _RATES or not 0 < frame.layout.nb_channels <= _CHANNELS:
        raise MediaError(f"The audio has {frame.layout.nb_channels} channels at {frame.sample_rate} Hz: not supported.")
    return AudioResampler(format="flt", layout="mono", rate=rate)


def _flushed(resampler: "AudioResampler | None") -> Iterator[bytes]:
    if resampler is not None:
        for piece in resampler.resample(None):
            yield _bytes(piece)


def _bytes(frame: Any) -> bytes:
    return bytes(memoryview(frame.planes[0])[: frame.samples * _SAMPLE])


def _cut_frame(packet: bytes) -> bool:
    """Whether an MPEG audio layer III packet is shorter than its own header says: ISO/IEC 11172-3, 2.4.2.3."""
    if len(packet) < 4 or packet[0] != 0xFF or packet[1] & 0xE6 != 0xE2:
        return False
    version = packet[1] >> 3 & 3  # 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
    kilobits = _KILOBITS[version == 3][packet[2] >> 4]
    rate = (44_100, 48_000, 32_000, 0)[packet[2] >> 2 & 3] >> (0, 1, 2)[(3, 2, 0).index(version)] if version != 1 else 0
    if not kilobits or not rate:
        return False
    return len(packet) < (144 if version == 3 else 72) * kilobits * 1000 // rate + (packet[2] >> 1 & 1)


_KILOBITS: Final = (
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),  # MPEG-2 and 2.5
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),  # MPEG-1
)
