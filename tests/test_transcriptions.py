"""Transcriptions and translations as clients ask for them: the SDK, tones that are words, and what is refused."""

import contextlib
import io
import json
import re
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import av
import numpy as np
import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI

from scripts.triton import Triton
from tests.gateway import Conch
from tests.raw import Answer, Wire, await_true, bearer, head

PATH = "/v1/audio/transcriptions"
RATE = 16_000
BOUNDARY = "conch-test-boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
Part = tuple[str, str | bytes]


pytestmark = pytest.mark.usefixtures("no_crash")


def tones(*words: int, seconds: float = 0.5) -> Any:
    """Each word as the contract models hear it: so long a tone of 200 + 40 · word Hz."""
    time = np.arange(round(seconds * RATE)) / RATE
    return np.concatenate([np.sin(2 * np.pi * (200 + 40 * word) * time) / 2 for word in words])


def wav(samples: Any) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setparams((1, 2, RATE, 0, "NONE", ""))
        recording.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def part(name: str, value: str | bytes, filename: str = "a.wav") -> bytes:
    """A text, or a file where the value is bytes."""
    named = f'; filename="{filename}"' if isinstance(value, bytes) else ""
    data = value if isinstance(value, bytes) else value.encode()
    header = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return header.encode() + data + b"\r\n"


def form(parts: Sequence[Part]) -> bytes:
    return b"".join(part(*each) for each in parts) + f"--{BOUNDARY}--\r\n".encode()


def post(wire: Wire, key: str, *parts: Part, path: str = PATH) -> Answer:
    wire.request("POST", path, form(parts), content_type=FORM, **bearer(key))
    return wire.answer()


def hear(wire: Wire, key: str, sound: bytes, model: str = "whisper", path: str = PATH, **fields: str) -> Answer:
    return post(wire, key, ("model", model), ("file", sound), *fields.items(), path=path)


FEW = wav(tones(1, 2, 3))
SPOKEN = "Good morning. The train to the city leaves at seven in the evening. Please bring your ticket and some water."


def word_share(said: str, heard: str) -> float:
    """The share of the words that were heard."""
    words = re.findall(r"[a-z]+", said.lower())
    there = set(re.findall(r"[a-z]+", heard.lower()))
    return sum(word in there for word in words) / len(words)


def test_round_trip(client: OpenAI) -> None:
    for voice in ("alloy", "nova"):
        sound = client.audio.speech.create(model="voice", voice=voice, input=SPOKEN).content
        heard = client.audio.transcriptions.create(model="listener", file=("speech.mp3", sound), language="en")
        assert word_share(SPOKEN, heard.text) > 0.6, heard.text
        assert heard.usage is not None
        assert heard.usage.type == "duration"
        assert 2 < heard.usage.seconds < 10


async def test_the_sdk(async_client: AsyncOpenAI) -> None:
    transcriptions = async_client.audio.transcriptions
    assert (await transcriptions.create(model="whisper", file=FEW)).text == "w1 w2 w3"
    assert await transcriptions.create(model="whisper", file=FEW, response_format="text") == "w1 w2 w3\n"
    verbose = await transcriptions.create(
        model="whisper",
        file=FEW,
        response_format="verbose_json",
        timestamp_granularities=["segment"],
        language="de",
        chunking_strategy="auto",
        temperature=0,
    )
    assert (verbose.text, verbose.language, verbose.duration) == ("w1 w2 w3", "german", 1.5)
    assert verbose.segments is not None
    assert [(each.id, each.start, each.end, each.text) for each in verbose.segments] == [(0, 0.0, 1.5, "w1 w2 w3")]


def test_the_sdk_raw(client: OpenAI) -> None:
    with client.audio.transcriptions.with_streaming_response.create(model="whisper", file=FEW) as response:
        assert json.loads(response.read())["text"] == "w1 w2 w3"


@pytest.mark.parametrize("model", ["whisper", "whisper-decoupled"])
async def test_the_sdk_streams(async_client: AsyncOpenAI, model: str) -> None:
    stream = await async_client.audio.transcriptions.create(model=model, file=FEW, stream=True)
    events = [event async for event in stream]
    *deltas, done = events
    assert done.type == "transcript.text.done"
    assert done.text == "w1 w2 w3"
    assert [event.type for event in deltas] == ["transcript.text.delta"] * len(deltas)
    said = [event.delta for event in deltas if event.type == "transcript.text.delta"]
    assert said == (["w1", " w2", " w3"] if model == "whisper-decoupled" else ["w1 w2 w3"])


def test_the_sdk_streams_sync(client: OpenAI) -> None:
    events = list(client.audio.transcriptions.create(model="wav-asr", file=FEW, stream=True))
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]


@pytest.mark.filterwarnings("ignore:deprecated")  # by OpenAI, in its SDK
def test_translations(client: OpenAI) -> None:
    assert client.audio.translations.create(model="whisper", file=FEW).text == "w1 w2 w3"
    verbose = client.audio.translations.create(model="whisper", file=FEW, response_format="verbose_json")
    assert (verbose.language, verbose.duration) == ("english", 1.5)
    with pytest.raises(BadRequestError, match="does not translate"):
        client.audio.translations.create(model="listener", file=FEW)


def received(answer: Answer) -> Any:
    return json.loads(answer.json["text"])["tensors"]


def test_the_tensors_of_whisper(wire: Wire, key: str) -> None:
    prompt = "echo: Conch, Triton"
    tensors = received(hear(wire, key, FEW, prompt=prompt, language="pt"))
    assert tensors["WAV"]["shape"] == [1, 24_000]
    assert tensors["WAV"]["data"] == pytest.approx(tones(1)[:16], abs=1e-4)
    assert tensors["WAV_LENS"] == {"shape": [1, 1], "data": [24_000]}
    said = "<|startofprev|> echo: Conch, Triton<|startoftranscript|><|{}|><|{}|><|notimestamps|>"
    assert tensors["TEXT_PREFIX"] == {"shape": [1, 1], "data": [said.format("pt", "transcribe")]}
    translated = received(hear(wire, key, FEW, path="/v1/audio/translations", prompt=prompt))
    assert translated["TEXT_PREFIX"]["data"] == [said.format("en", "translate")]


def long(count: int = 150) -> Any:
    """A recording of 75 s and more, of which no two neighbours are alike."""
    return tones(*(1 + index * 7 % 181 for index in range(count)))


@pytest.mark.parametrize("model", ["whisper", "whisper-decoupled", "wav-asr"])
def test_long_recordings_are_windowed_and_stitched(wire: Wire, key: str, model: str) -> None:
    said = " ".join(f"w{1 + index * 7 % 181}" for index in range(150))
    answer = hear(wire, key, wav(long()), model, response_format="verbose_json").json
    assert answer["text"] == said
    assert answer["duration"] == 75
    spans = [(segment["start"], segment["end"]) for segment in answer["segments"]]
    assert spans == [(0, 29), (29, 57), (57, 75)]
    assert "".join(segment["text"] for segment in answer["segments"]).replace(" ", "") == said.replace(" ", "")
    events = hear(wire, key, wav(long()), model, stream="true").body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    *deltas, done = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert len(deltas) == 3
    assert "".join(delta["delta"] for delta in deltas) == done["text"] == said


def test_silence_between(wire: Wire, key: str) -> None:
    """Windows that overlap no words are not taken for ones that do."""
    quiet_minute = np.concatenate([tones(1, 2), np.zeros(60 * RATE), tones(1, 2)])
    assert hear(wire, key, wav(quiet_minute)).json["text"] == "w1 w2 w1 w2"
    nothing = hear(wire, key, wav(np.zeros(RATE)), response_format="verbose_json").json
    assert (nothing["text"], nothing["segments"]) == ("", [])
    frames = hear(wire, key, wav(np.zeros(RATE)), stream="true").body
    assert frames == b'data: {"type":"transcript.text.done","text":""}\n\ndata: [DONE]\n\n'


def test_subtitles(wire: Wire, key: str) -> None:
    srt = hear(wire, key, wav(long(80)), response_format="srt")
    assert srt.headers["content-type"] == "text/plain; charset=utf-8"
    first, second = srt.body.decode().strip().split("\n\n")
    assert first.startswith("1\n00:00:00,000 --> 00:00:29,000\nw1 w8 ")
    assert second.startswith("2\n00:00:29,000 --> 00:00:40,000\nw")
    vtt = hear(wire, key, FEW, response_format="vtt")
    assert vtt.headers["content-type"] == "text/vtt; charset=utf-8"
    assert vtt.body == b"WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nw1 w2 w3\n\n"


def coded(container: str, codec: str) -> bytes:
    """The three words in another format."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as made:
        stream: Any = made.add_stream(codec, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((tones(1, 2, 3) * 32767).astype("i2")[None], "s16", "mono")
        frame.sample_rate = RATE
        frames = av.AudioFifo()
        frames.write(frame)
        resampler = av.AudioResampler(stream.format, "mono", RATE, frame_size=stream.frame_size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            made.mux(stream.encode(piece))
        made.mux(stream.encode(None))
    return file.getvalue()


CODED = [("mp3", "libmp3lame"), ("mp4", "aac"), ("flac", "flac"), ("ogg", "libopus"), ("webm", "libopus")]


@pytest.mark.parametrize(("container", "codec"), CODED)
def test_every_listed_format(wire: Wire, key: str, container: str, codec: str) -> None:
    sound = coded(container, codec)
    assert re.search("w1 w2 w3", hear(wire, key, sound).json["text"])
    if container != "webm":
        hear(wire, key, sound[: len(sound) // 2]).error(400, "file")


def test_fields_in_any_order(wire: Wire, key: str) -> None:
    parts: list[Part] = [("response_format", "text"), ("file", FEW), ("language", "EN"), ("model", "whisper")]
    for order in (parts, parts[::-1]):
        assert post(wire, key, *order).body == b"w1 w2 w3\n"


def test_the_pipeline_knows_the_model(wire: Wire, key: str) -> None:
    parts = [("file", FEW)]
    assert post(wire, key, *parts, path="/v1/pipe_audio/audio/transcriptions").json["text"] == "w1 w2 w3"


WRONG: list[tuple[str, list[Part], str | None, str]] = [
    ("no file", [("model", "whisper")], "file", "missing_required_parameter"),
    ("no model", [("file", FEW)], "model", "missing_required_parameter"),
    ("nothing", [], "file", "missing_required_parameter"),
    ("two files", [("model", "whisper"), ("file", FEW), ("file", FEW)], "file", "invalid_value"),
    ("two models", [("model", "whisper"), ("model", "whisper"), ("file", FEW)], "model", "invalid_value"),
    ("file as text", [("model", "whisper"), ("file", "hello")], "file", "invalid_value"),
    ("model as file", [("model", b"whisper"), ("file", FEW)], "model", "invalid_value"),
    ("0 bytes", [("model", "whisper"), ("file", b"")], "file", "invalid_audio"),
    ("text", [("model", "whisper"), ("file", b"Hello, I am no sound. " * 99)], "file", "invalid_audio"),
    ("truncated", [("model", "whisper"), ("file", FEW[:-9000])], "file", "invalid_audio"),
    ("a header alone", [("model", "whisper"), ("file", FEW[:44])], "file", "invalid_audio"),
    ("a chat model", [("model", "vllm"), ("file", FEW)], "model", "model_not_supported"),
]
FIELDS: list[tuple[str, str, str, str]] = [
    ("whisper", "response_format", "mp3", "invalid_value"),
    ("whisper", "response_format", "", "invalid_value"),
    ("whisper", "temperature", "hot", "invalid_value"),
    ("whisper", "temperature", "nan", "invalid_value"),
    ("whisper", "temperature", "1.5", "invalid_value"),
    ("whisper", "temperature", "0.5", "unsupported_parameter"),
    ("whisper", "language", "klingon", "invalid_value"),
    ("whisper", "language", "", "invalid_value"),
    ("listener", "language", "de", "invalid_value"),
    ("wav-asr", "language", "de", "unsupported_parameter"),
    ("wav-asr", "prompt", "Conch", "unsupported_parameter"),
    ("whisper", "prompt", "x" * 2000, "unsupported_parameter"),
    ("whisper", "prompt", "<|translate|>", "unsupported_parameter"),
    ("whisper", "include[]", "logprobs", "unsupported_parameter"),
    ("whisper", "timestamp_granularities[]", "word", "unsupported_parameter"),
    ("whisper", "timestamp_granularities[]", "segment", "invalid_value"),
    ("whisper", "chunking_strategy", "server_vad", "invalid_value"),
    ("whisper", "stream", "maybe", "invalid_value"),
    ("whisper", "zzz", "1", "unknown_parameter"),
    ("whisper", "", "1", "unknown_parameter"),
    ("whisper", "x" * 200, "1", "invalid_value"),
]


@pytest.mark.parametrize(("parts", "param", "code"), [pytest.param(*row, id=what) for what, *row in WRONG])
def test_wrong(wire: Wire, key: str, parts: list[Part], param: str | None, code: str) -> None:
    assert post(wire, key, *parts).error(400, param)["code"] == code


@pytest.mark.parametrize(("model", "field", "value", "code"), FIELDS)
def test_wrong_fields(wire: Wire, key: str, model: str, field: str, value: str, code: str) -> None:
    param = field if len(field) < 64 else f"{field[:64]}…"
    assert post(wire, key, ("model", model), ("file", FEW), (field, value)).error(400, param)["code"] == code


@pytest.mark.parametrize("format", ["srt", "vtt", "verbose_json"])
def test_subtitles_do_not_stream(wire: Wire, key: str, format: str) -> None:
    hear(wire, key, FEW, stream="true", response_format=format).error(400, "response_format")


def test_translations_have_fewer_fields(wire: Wire, key: str) -> None:
    for field in ("language", "stream", "include[]"):
        answer = hear(wire, key, FEW, path="/v1/audio/translations", **{field: "en"})
        assert answer.error(400, field)["code"] == "unknown_parameter"


def memory(pid: int) -> int:
    """The bytes that a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("stated", [True, False])
def test_300_megabytes_are_refused_as_they_stream(conch: Conch, key: str, stated: bool) -> None:
    """At once where the length is stated; else once it is too much, with flat memory."""
    opening = part("file", b"")[:-2]
    block = b"\x00" * (1 << 20)
    size = 300 << 20
    with Wire(conch.url) as wire:
        if stated:
            wire.send(head("POST", PATH, wire.host, size, content_type=FORM, **bearer(key)))
            wire.answer().error(413)
            return
        wire.send(head("POST", PATH, wire.host, content_type=FORM, transfer_encoding="chunked", **bearer(key)))
        wire.send(b"%x\r\n%b\r\n" % (len(opening), opening))
        before = most = memory(conch.pid)
        for _ in range(257):
            wire.send(b"%x\r\n%b\r\n" % (len(block), block))
            most = max(most, memory(conch.pid))
        wire.answer().error(413)
        assert most - before < 32 << 20


def test_a_client_that_leaves(conch: Conch, key: str, triton: Triton) -> None:
    """What it sent is forgotten, and its windows are not heard any more: of 43, those that had begun."""
    eighth = np.arange(8_000 * 1200) / 8_000
    sound = np.where(eighth < 2, 100 * np.sin(2 * np.pi * 400 * eighth), 0)
    file = io.BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setparams((1, 1, 8_000, 0, "NONE", ""))
        recording.writeframes((sound + 128).astype("u1").tobytes())
    body = form([("model", "wav-asr"), ("stream", "true"), ("file", file.getvalue())])
    with Wire(conch.url) as wire:
        wire.send(head("POST", PATH, wire.host, len(body), content_type=FORM, **bearer(key)) + body[:-100])
        await_true(lambda: spooled(conch.pid))
    await_true(lambda: not spooled(conch.pid))
    before = heard(triton)
    with Wire(conch.url) as wire:
        wire.request("POST", PATH, body, content_type=FORM, **bearer(key))
        assert wire.answer_head()[0] == 200
        assert b"w5" in wire.chunk()
    await_true(lambda: not spooled(conch.pid))  # it would be there until the last window
    assert 1 <= heard(triton) - before < 20


def spooled(pid: int) -> list[str]:
    """The files without a name that a process has open, beside what it inherited: pytest's are such, too."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if int(entry.name) > 2:
                links.append(str(entry.readlink()))
    return [link for link in links if link.endswith("(deleted)")]


def heard(triton: Triton) -> float:
    """How many windows wav_asr has been given."""
    with urlopen(triton.metrics_url) as metrics:
        text = metrics.read().decode()
    return float(re.findall(r'^nv_inference_request_success{model="wav_asr",.*} (\S+)$', text, re.MULTILINE)[0])
