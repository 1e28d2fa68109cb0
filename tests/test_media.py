"""Sound through the real codecs: formats, windows, cross-fades, transcripts, and files that are not what they say."""

import asyncio
import gc
import io
import subprocess
import sys
import wave
from typing import Any, get_args

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upstream.media import MediaError
from upstream.media.audio import FORMATS, Crossfade, Encoder, SampleType
from upstream.media.images import Picture, encode
from upstream.media.recording import Recording, Window
from upstream.media.transcript import stitch

RATE = 24_000
Floats = np.ndarray[Any, np.dtype[np.float32]]


def tone(seconds: float, rate: int = RATE, pitch: float = 440.0) -> Floats:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype("f4")


def pitch_of(samples: Floats, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(samples.size)))
    return float(spectrum.argmax() * rate / samples.size)


def encoded(format: str, samples: Floats, rate: int = RATE, speed: float = 1.0, step: int = 4800) -> bytes:
    encoder = Encoder(format, rate, speed=speed)
    parts = [encoder.feed(samples[start : start + step].tobytes()) for start in range(0, samples.size, step)]
    return b"".join(parts) + encoder.finish()


def decoded(data: bytes, rate: int = 16_000) -> Floats:
    windows = list(Recording(io.BytesIO(data)).windows(3600, rate=rate))
    assert [window.last for window in windows] == [True]
    return np.frombuffer(windows[0].samples, "<f4")


def file_of(container: str, codec: str, *, rate: int = 44_100, seconds: float = 2.0, video: bool = False) -> bytes:
    """A file as other programs write them: stereo, seekable, with its true length in the header."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as target:
        stream: Any = target.add_stream(codec, rate=rate, layout="stereo")
        moving: Any = target.add_stream("mpeg4", rate=10, width=16, height=16, pix_fmt="yuv420p") if video else None
        samples = np.stack([tone(seconds, rate)] * 2)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate = rate
        target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
        if moving is not None:
            black = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), "u1"))
            target.mux(moving.encode(black))
            target.mux(moving.encode(None))
    return out.getvalue()


def test_importing_media_imports_no_codec() -> None:
    code = (
        "import sys, upstream.fetch, upstream.media.audio, upstream.media.images, upstream.media.recording,"
        " upstream.media.transcript; print(*{'av', 'PIL', 'numpy', 'aiohttp'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


class TestEncoder:
    @pytest.mark.parametrize("format", FORMATS)
    def test_the_first_bytes_leave_long_before_the_last_sample(self, format: str) -> None:
        encoder = Encoder(format, RATE)
        sound = tone(1.0).tobytes()
        assert len(encoder.feed(sound[: len(sound) // 4])) > 100
        assert encoder.feed(sound[len(sound) // 4 :]) + encoder.finish()

    @pytest.mark.parametrize("format", ["mp3", "wav", "flac", "opus"])
    def test_it_sounds_the_same(self, format: str) -> None:
        heard = decoded(encoded(format, tone(1.5)))
        assert abs(heard.size / 16_000 - 1.5) < 0.1
        assert abs(pitch_of(heard, 16_000) - 440) < 2
        assert 0.19 < float(np.sqrt((heard[4000:20_000] ** 2).mean())) < 0.23

    def test_aac(self) -> None:
        with av.open(io.BytesIO(encoded("aac", tone(1.5))), "r") as file:
            heard = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
        assert abs(heard.size / RATE - 1.5) < 0.1
        assert abs(pitch_of(heard, RATE) - 440) < 2

    def test_pcm_is_24_khz_s16le_whatever_the_model_makes(self) -> None:
        exact = np.frombuffer(encoded("pcm", tone(0.5)), "<i2")
        assert np.abs(exact - tone(0.5) * 32767).max() < 3
        for rate in (8_000, 16_000, 22_050, 44_100, 48_000):
            heard = np.frombuffer(encoded("pcm", tone(1.0, rate), rate), "<i2")
            assert abs(heard.size - 24_000) <= 48
            assert abs(pitch_of(heard.astype("f4"), 24_000) - 440) < 2

    def test_a_wav_is_open_ended(self) -> None:
        data = encoded("wav", tone(0.5, 22_050), 22_050)
        assert data[:4] + data[8:12] + data[36:40] == b"RIFFWAVEdata"
        assert data[4:8] == data[40:44] == b"\xff" * 4
        with wave.open(io.BytesIO(data)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (22_050, 1, 2)
            assert len(file.readframes(20_000)) == 11_025 * 2

    @pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
    @pytest.mark.parametrize("format", FORMATS)
    def test_every_rate(self, format: str, rate: int) -> None:
        encoder = Encoder(format, rate)
        assert encoder.feed(tone(0.5, rate).tobytes()) + encoder.finish()
        assert encoder.rate == rate or rate not in FORMATS[format].rates

    def test_integers_and_floats_agree(self) -> None:
        whole = (tone(0.5) * 32767).astype("<i2")
        encoder = Encoder("pcm", RATE, dtype="INT16")
        assert encoder.feed(whole.tobytes()) + encoder.finish() == whole.tobytes()

    @pytest.mark.parametrize("speed", [0.25, 0.4, 0.9, 1.5, 2.0, 3.0, 4.0])
    @pytest.mark.parametrize("step", [2400, 72_000])
    def test_speed_keeps_the_pitch(self, speed: float, step: int) -> None:
        heard = np.frombuffer(encoded("pcm", tone(3.0), speed=speed, step=step), "<i2").astype("f4")
        assert abs(heard.size / RATE - 3.0 / speed) < 0.05 * max(1, 1 / speed)
        assert abs(pitch_of(heard, RATE) - 440) < 4

    def test_nothing_fed_is_a_file_without_sound(self) -> None:
        assert Encoder("pcm", RATE).finish() == b""
        assert len(Encoder("wav", RATE).finish()) == 44

    @pytest.mark.parametrize("format", FORMATS)
    def test_one_that_is_left_waits_for_no_collector(self, format: str) -> None:
        gc.collect()
        encoder = Encoder(format, RATE)
        encoder.feed(tone(0.5).tobytes())
        del encoder
        assert gc.collect() == 0

    async def test_from_many_threads_and_abandoned(self) -> None:
        async def one() -> bytes:
            encoder = Encoder("mp3", RATE)
            parts = [await asyncio.to_thread(encoder.feed, tone(0.1).tobytes()) for _ in range(10)]
            return b"".join(parts) + await asyncio.to_thread(encoder.finish)

        first, *rest = await asyncio.gather(*(one() for _ in range(8)))
        assert len(first) > 5000
        assert rest == [first] * 7
        for format in FORMATS:
            Encoder(format, RATE, speed=2.0).feed(tone(0.3).tobytes())  # a client that left: finish is never called

    @pytest.mark.parametrize(
        ("arguments", "options"),
        [
            (("ogg", RATE), {}),
            (("mp3", 0), {}),
            (("mp3", 10**9), {}),
            (("mp3", RATE), {"speed": 0.0}),
            (("mp3", RATE), {"speed": 4.1}),
            (("mp3", RATE), {"speed": float("nan")}),
        ],
    )
    def test_bad_settings(self, arguments: tuple[str, int], options: dict[str, Any]) -> None:
        with pytest.raises(MediaError):
            Encoder(*arguments, **options)

    @pytest.mark.parametrize("samples", [b"\0\0\0", np.float32("nan").tobytes(), np.float32("inf").tobytes()])
    def test_bad_samples(self, samples: bytes) -> None:
        with pytest.raises(MediaError):
            Encoder("mp3", RATE).feed(samples)


class TestCrossfade:
    @pytest.mark.parametrize("curve", ["linear", "cosine"])
    @pytest.mark.parametrize("dtype", get_args(SampleType))
    def test_the_same_sound_in_both_chunks_is_unchanged(self, dtype: SampleType, curve: Any) -> None:
        sound = tone(1.0) if dtype == "FP32" else (tone(1.0) * 32767).astype("<i2")
        fade = Crossfade(2400, dtype=dtype, curve=curve)
        parts = [fade.feed(sound[max(start - 2400, 0) : start + 6000].tobytes()) for start in range(0, RATE, 6000)]
        joined = np.frombuffer(b"".join(parts) + fade.finish(), sound.dtype)
        assert joined.size == sound.size
        assert np.abs(joined.astype("f4") - sound).max() <= (1e-6 if dtype == "FP32" else 1)

    def test_one_fades_out_while_the_other_fades_in(self) -> None:
        fade = Crossfade(100)
        first = fade.feed(np.ones(300, "f4").tobytes())
        rest = fade.feed(np.zeros(300, "f4").tobytes()) + fade.finish()
        joined = np.frombuffer(first + rest, "f4")
        assert (joined.size, joined[:200].min(), joined[300:].max()) == (500, 1.0, 0.0)
        assert (np.diff(joined[199:301]) < 0).all()

    def test_chunks_shorter_than_the_overlap(self) -> None:
        fade = Crossfade(100)
        assert fade.feed(np.ones(50, "f4").tobytes()) == b""
        assert fade.feed(b"") == b""
        assert fade.feed(np.ones(120, "f4").tobytes()) == np.ones(20, "f4").tobytes()
        assert fade.finish() == np.ones(100, "f4").tobytes()

    def test_no_overlap(self) -> None:
        fade = Crossfade(0)
        assert fade.feed(b"\1\0\0\0") + fade.feed(b"\2\0\0\0") + fade.finish() == b"\1\0\0\0\2\0\0\0"


FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "wav": ("wav", "pcm_s16le", {}),
    "float wav": ("wav", "pcm_f32le", {}),
    "mp3": ("mp3", "libmp3lame", {}),
    "m4a": ("mp4", "aac", {}),
    "mp4 with pictures": ("mp4", "aac", {"video": True}),
    "alac": ("mp4", "alac", {}),
    "flac": ("flac", "flac", {}),
    "ogg": ("ogg", "libopus", {"rate": 48_000}),
    "webm": ("webm", "libopus", {"rate": 48_000}),
}


class TestRecording:
    @pytest.mark.parametrize("name", FILES)
    def test_every_listed_file(self, name: str) -> None:
        container, codec, options = FILES[name]
        data = file_of(container, codec, **options)
        assert abs(Recording(io.BytesIO(data)).seconds - 2.0) < 0.1
        heard = decoded(data)
        assert abs(heard.size / 16_000 - 2.0) < 0.1
        assert abs(pitch_of(heard, 16_000) - 440) < 2

    @pytest.mark.parametrize("name", ["wav", "mp3", "m4a", "flac", "webm"])
    @pytest.mark.parametrize("part", [0.3, 0.5, 0.8])
    def test_cut_short(self, name: str, part: float, capfd: pytest.CaptureFixture[str]) -> None:
        container, codec, options = FILES[name]
        data = file_of(container, codec, **options)
        with pytest.raises(MediaError):
            decoded(data[: round(len(data) * part)])
        assert capfd.readouterr() == ("", "")

    def test_our_own_mp3_cut_short(self) -> None:
        with pytest.raises(MediaError, match="cut short"):
            Recording(io.BytesIO(encoded("mp3", tone(2.0))[:5000]))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\0",
            b"This is a text file that someone named speech.mp3.\n" * 100,
            bytes(10_000),
            encoded("wav", tone(0.0)),
            b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
            b"ffconcat version 1.0\nfile '/etc/hostname'\n",
            b"<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><Period/></MPD>",
            b"RIFF\xff\xff\xff\xffWAVE",
            b"ID3\x04\0\0\0\0\0\0" + bytes(5000),
            encode(Picture(4, 4, bytes(48)), "png"),
            encoded("aac", tone(0.5)),
        ],
        ids=["empty", "byte", "text", "zeros", "silent", "hls", "concat", "dash", "riff", "id3", "png", "aac"],
    )
    def test_not_audio(self, data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(MediaError):
            list(Recording(io.BytesIO(data)).windows(30))
        assert capfd.readouterr() == ("", "")

    def test_windows_overlap(self) -> None:
        sound = (tone(10.0, 16_000) * 32767).astype("<i2")
        file = io.BytesIO()
        with wave.open(file, "wb") as target:
            target.setparams((1, 2, 16_000, 0, "NONE", ""))
            target.writeframes(sound.tobytes())
        recording = Recording(file)
        windows = list(recording.windows(4.0, overlap=1.0))
        assert recording.seconds == 10.0
        assert [(w.start, len(w.samples) // 4, w.last) for w in windows] == [
            (0.0, 64_000, False),
            (3.0, 64_000, False),
            (6.0, 64_000, True),
        ]
        for window in windows:
            there = sound[round(window.start * 16_000) :][:64_000] / np.float32(32768)
            assert np.array_equal(np.frombuffer(window.samples, "<f4"), there)
        assert [w.start for w in recording.windows(10.0)] == [0.0]
        with pytest.raises(ValueError, match="overlap"):
            next(recording.windows(1.0, overlap=1.0))

    def test_a_limit_of_length(self) -> None:
        data = encoded("wav", tone(2.0))
        assert Recording(io.BytesIO(data), longest=2.0).seconds == 2.0
        with pytest.raises(MediaError, match=r"longer than the 1\.5 seconds"):
            Recording(io.BytesIO(data), longest=1.5)

    def test_more_sound_than_its_times_say(self) -> None:
        out = io.BytesIO()
        with (
            av.open(io.BytesIO(encoded("opus", tone(10.0))), "r") as source,
            av.open(out, "w", format="webm") as target,
        ):
            stream = target.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(audio=0):
                if packet.size:
                    packet.stream, packet.pts, packet.dts = stream, 0, 0
                    target.mux(packet)
        with pytest.raises(MediaError, match="more sound than its times say"):
            list(Recording(out).windows(30))

    def test_an_hour_is_never_in_memory(self) -> None:
        ran = subprocess.run([sys.executable, "-c", HOUR], capture_output=True, text=True, check=True)
        seconds, windows, grown = ran.stdout.split()
        assert (float(seconds), int(windows)) == (3600, 129)
        assert int(grown) < 24  # MiB; the hour is 55 of them, and 440 as float64 at 16 kHz

    @settings(max_examples=60, deadline=None)
    @given(name=st.sampled_from(["mp3", "m4a", "flac", "ogg", "webm", "wav"]), data=st.data())
    def test_damage_is_reported_or_survived(self, name: str, data: st.DataObject) -> None:
        whole = bytearray(DAMAGED[name])
        for _ in range(data.draw(st.integers(1, 8))):
            whole[data.draw(st.integers(0, min(len(whole) - 1, 4000)))] = data.draw(st.integers(0, 255))
        try:
            windows = list(Recording(io.BytesIO(bytes(whole))).windows(1.0))
        except MediaError:
            return
        assert all(isinstance(window, Window) for window in windows)


HOUR = """
import io, resource
import av, numpy
from upstream.media.audio import Encoder
from upstream.media.recording import Recording

class Hour(io.BytesIO):  # a WAV of silence, made as it is read
    size = 44 + 3600 * 8000 * 2
    at = 0
    head = Encoder("wav", 8000).finish()
    def read(self, count=-1):
        data = (self.head[self.at :] + bytes(count))[: min(count, self.size - self.at)]
        self.at += len(data)
        return data
    def tell(self):
        return self.at
    def seek(self, offset, whence=0):
        self.at = (0, self.at, self.size)[whence] + offset
        return self.at

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
recording = Recording(Hour())
print(recording.seconds, sum(1 for _ in recording.windows(30, overlap=2)), peak() - before)
"""

DAMAGED = {name: file_of(*FILES[name][:2], seconds=0.5, **FILES[name][2]) for name in FILES}


@pytest.mark.parametrize(
    ("before", "after", "joined"),
    [
        ("", "", ""),
        ("", "one", "one"),
        ("one", "", "one"),
        ("One two.", "Three four.", "One two. Three four."),
        ("the quick brown fox", "brown fox jumps over", "the quick brown fox jumps over"),
        ("the quick brown fo", "quick brown fox jumps", "the quick brown fox jumps"),
        ("The lazy dog.", "lazy dog and then", "The lazy dog and then"),
        ("It was late, so late", "so late. We left.", "It was late, so late. We left."),
        ("I saw the", "the dog", "I saw the dog"),
        ("all of the dog", "the end", "all of the dog the end"),
        ("said no no no", "no no no no more", "said no no no no more"),
        ("don’t stop", "Don’t stop me", "don’t stop me"),
        ("same words", "same words", "same words"),
        ("今日はとても良い", "とても良い天気です", "今日はとても良い天気です"),
        ("今日は。", "天気です", "今日は。天気です"),
        ("bis zur Straße", "STRASSE nach Süden", "bis zur Straße nach Süden"),
        ("a b c d e f", "x y z", "a b c d e f x y z"),
        ("...", "!!!", "... !!!"),
    ],
)
def test_stitch(before: str, after: str, joined: str) -> None:
    assert stitch(before, after) == joined


@given(st.lists(st.sampled_from("abcdefgh"), max_size=300), st.integers(0, 20))
def test_stitching_a_long_text_loses_no_word(words: list[str], overlap: int) -> None:
    numbered = [f"{word}{index}" for index, word in enumerate(words)]
    text = ""
    for start in range(0, len(numbered), 30):
        text = stitch(text, " ".join(numbered[max(start - overlap, 0) : start + 30]))
    assert text.split() == numbered
