"""Speech as clients ask for it: the official SDK, every format, voices, bytes that leave early, and what is refused."""

import base64
import io
import json
import re
import wave
from typing import Any
from urllib.request import urlopen

import av
import numpy as np
import pytest
from openai import APIConnectionError, AsyncOpenAI, BadRequestError, OpenAI

from scripts.triton import Triton
from tests.gateway import STORED, Conch
from tests.raw import Answer, Wire, await_true, bearer

PATH = "/v1/audio/speech"
TYPES = {
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "pcm": "audio/pcm",
}


pytestmark = pytest.mark.usefixtures("no_crash")


def post(wire: Wire, key: str, **fields: Any) -> Answer:
    send(wire, key, **fields)
    return wire.answer()


def send(wire: Wire, key: str, **fields: Any) -> None:
    body = json.dumps({"model": "voice", "input": "Hello there.", "voice": "alloy", **fields}).encode()
    wire.request("POST", PATH, body, content_type="application/json", **bearer(key))


def samples(pcm: bytes) -> "np.ndarray[Any, np.dtype[np.int16]]":
    return np.frombuffer(pcm, "<i2")


def decoded(sound: bytes) -> float:
    """The seconds of a file, by decoding it."""
    with av.open(io.BytesIO(sound), "r") as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


def spelt(wav: bytes, scale: float) -> Any:
    """What a contract model received: it spells that in samples, whose first comes `scale` times as large."""
    heard = np.round(samples(wav[wav.index(b"data") + 8 :]) / scale).astype(np.uint8).tobytes()
    return json.loads(heard[: heard.rindex(b"}") + 1])


@pytest.mark.parametrize("format", TYPES)
def test_every_format_plays(wire: Wire, key: str, format: str) -> None:
    answer = post(wire, key, response_format=format, input="Hello there. This is Conch.")
    assert answer.status == 200
    assert answer.headers["content-type"] == TYPES[format]
    assert answer.headers["transfer-encoding"] == "chunked"
    assert float(re.findall(r"upstream;dur=([\d.]+)", answer.headers["server-timing"])[0]) > 0
    seconds = len(answer.body) / 48_000 if format == "pcm" else decoded(answer.body)
    assert 1 < seconds < 5


def test_mp3_is_the_default(client: OpenAI) -> None:
    speech = client.audio.speech.create(model="voice", voice="nova", input="Good morning.")
    assert speech.response.headers["content-type"] == "audio/mpeg"
    assert decoded(speech.content) > 0.4


async def test_the_sdk_streams(async_client: AsyncOpenAI) -> None:
    asked = async_client.audio.speech.with_streaming_response.create(
        model="voice", voice="storyteller", input="Good morning. And good night.", response_format="wav"
    )
    async with asked as response:
        pieces = [piece async for piece in response.iter_bytes()]
    with wave.open(io.BytesIO(b"".join(pieces))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 22_050)


def test_sse(wire: Wire, key: str) -> None:
    answer = post(wire, key, stream_format="sse", response_format="pcm")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *frames, end, rest = answer.body.decode().split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    *deltas, done = [json.loads(frame.removeprefix("data: ")) for frame in frames]
    assert {delta["type"] for delta in deltas} == {"speech.audio.delta"}
    sound = b"".join(base64.b64decode(delta["audio"], validate=True) for delta in deltas)
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["type"] == "duration"
    assert done["usage"]["seconds"] == pytest.approx(len(sound) / 48_000, abs=0.02)


def outcome(triton: Triton, model: str, name: str) -> float:
    """How many requests of a contract model have ended so."""
    with urlopen(triton.metrics_url) as metrics:
        text = metrics.read().decode()
    found = re.search(rf'conch_speaker_requests_total{{model="{model}",outcome="{name}"}} (\S+)', text)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("form", [{"response_format": "pcm"}, {}, {"stream_format": "sse"}])
def test_first_bytes_leave_before_the_last_are_made(
    conch: Conch, key: str, triton: Triton, form: dict[str, str]
) -> None:
    """This model never makes its last: whatever arrives has left before. And it is told when the client goes."""
    cancelled, finished = (outcome(triton, "speaker_tts", name) for name in ("cancelled", "finished"))
    with Wire(conch.url) as wire:
        send(wire, key, model="speaker", voice="male", input="wait", **form)
        status, _ = wire.answer_head()
        assert status == 200
        assert wire.chunk()
    await_true(lambda: outcome(triton, "speaker_tts", "cancelled") == cancelled + 1)
    assert outcome(triton, "speaker_tts", "finished") == finished


def test_a_model_that_breaks_off(wire: Wire, key: str) -> None:
    """The body has no end, so that nobody takes it for the whole."""
    send(wire, key, model="speaker", voice="male", input="break", response_format="pcm")
    assert wire.answer_head()[0] == 200
    assert wire.chunk()
    assert b"\r\n0\r\n" not in wire.rest()


def test_the_sdk_sees_a_broken_body(client: OpenAI) -> None:
    with pytest.raises(APIConnectionError):
        client.audio.speech.create(model="speaker", voice="male", input="break", response_format="pcm")


def test_a_model_that_breaks_off_in_events(wire: Wire, key: str) -> None:
    answer = post(wire, key, model="speaker", voice="male", input="break", stream_format="sse", response_format="pcm")
    *frames, last, rest = answer.body.decode().split("\n\n")
    assert frames
    assert rest == ""
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_error"


def test_an_error_before_the_first_byte_has_its_status(wire: Wire, key: str) -> None:
    for text in ("silent", "fail: no"):
        answer = post(wire, key, model="speaker", voice="male", input=text)
        assert answer.error(502)["code"] == "upstream_error"


def test_int16_speaker_and_language(wire: Wire, key: str) -> None:
    answer = post(wire, key, model="speaker", voice="male", input="नमस्ते", response_format="wav")
    tensors = spelt(answer.body, 127)["tensors"]
    assert tensors["INPUT_TEXT"] == {"shape": [1], "data": ["नमस्ते"]}
    assert tensors["INPUT_SPEAKER_ID"]["data"] == ["male"]
    assert tensors["INPUT_LANGUAGE_ID"]["data"] == ["hi"]
    answer = post(wire, key, model="speaker", voice={"id": "female"}, language="ta", response_format="wav")
    tensors = spelt(answer.body, 127)["tensors"]
    assert [tensors[f"INPUT_{name}_ID"]["data"] for name in ("SPEAKER", "LANGUAGE")] == [["female"], ["ta"]]


def test_stored_voice(wire: Wire, key: str) -> None:
    answer = post(wire, key, model="f5", voice="stored", response_format="wav")
    assert spelt(answer.body, 128)["tensors"] == {
        "reference_wav": {"shape": [1, 6000], "data": (np.frombuffer(STORED, "<i2")[:16] / 32768).tolist()},
        "reference_wav_len": {"shape": [1, 1], "data": [6000]},
        "reference_text": {"shape": [1, 1], "data": ["What it says."]},
        "target_text": {"shape": [1, 1], "data": ["Hello there."]},
    }


def recording(seconds: float = 0.5, rate: int = 8_000) -> str:
    """A WAV in base64."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setparams((1, 2, rate, 0, "NONE", ""))
        wav.writeframes(b"\x00\x10" * round(seconds * rate))
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("before", ["", "data:audio/wav;base64,"])
def test_a_recording_of_the_clients_own(wire: Wire, key: str, before: str) -> None:
    given = {"ref_audio": before + recording(), "ref_text": "Its words."}
    answer = post(wire, key, model="spark", voice=None, response_format="wav", **given)
    tensors = spelt(answer.body, 128)["tensors"]
    assert tensors["reference_wav"]["shape"] == [1, 8000]  # from 8 to 16 kHz
    assert tensors["reference_wav_len"]["data"] == [8000]
    assert tensors["reference_text"]["data"] == ["Its words."]


def test_overlapping_chunks_are_joined(wire: Wire, key: str) -> None:
    """The model's chunks repeat 0.1 s each: joined, the spelling is whole and the second as long as it should be."""
    answer = post(
        wire,
        key,
        model="spark",
        voice=None,
        response_format="wav",
        ref_audio=recording(),
        ref_text="x " * 400,
        input="y" * 4000,
    )
    assert spelt(answer.body, 128)["tensors"]["target_text"]["data"] == ["y" * 4000]
    assert decoded(answer.body) == pytest.approx(1.0, abs=0.001)


def length(wire: Wire, key: str, **fields: Any) -> float:
    return len(post(wire, key, response_format="pcm", **fields).body) / 48_000


def test_speed(wire: Wire, key: str) -> None:
    """By the model's own tensor, and by the encoder for a model without one; both keep to it."""
    text = "One two three four five six seven eight."
    usual = length(wire, key, input=text)
    assert length(wire, key, input=text, speed=2) == pytest.approx(usual / 2, rel=0.2)
    usual = length(wire, key, model="f5", voice="stored")
    assert length(wire, key, model="f5", voice="stored", speed=0.5) == pytest.approx(usual * 2, rel=0.1)
    assert length(wire, key, model="f5", voice="stored", speed=1) == usual


def test_long_input(wire: Wire, key: str) -> None:
    assert length(wire, key, input="Word. " * 682 + "Word") > 60


GIVEN: dict[str, Any] = {"ref_audio": recording(), "ref_text": "x"}
# what, the fields, `param`, `code`
WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("empty input", {"input": ""}, "input", "invalid_value"),
    ("blank input", {"input": " \n"}, "input", "invalid_value"),
    ("5,000 characters", {"input": "x" * 5000}, "input", "invalid_value"),
    ("input is a number", {"input": 5}, "input", "invalid_value"),
    ("unknown voice", {"voice": "zzz"}, "voice", "invalid_value"),
    ("unknown voice id", {"voice": {"id": "zzz"}}, "voice", "invalid_value"),
    ("empty voice", {"voice": ""}, "voice", "invalid_value"),
    ("voice with more", {"voice": {"id": "alloy", "zzz": 1}}, "voice.zzz", "unknown_parameter"),
    ("speed 0", {"speed": 0}, "speed", "invalid_value"),
    ("speed 4.1", {"speed": 4.1}, "speed", "invalid_value"),
    ("unknown format", {"response_format": "ogg"}, "response_format", "invalid_value"),
    ("unknown stream_format", {"stream_format": "zzz"}, "stream_format", "invalid_value"),
    ("instructions", {"instructions": "Whisper."}, "instructions", "unsupported_parameter"),
    ("unknown field", {"zzz": 1}, "zzz", "unknown_parameter"),
    ("a recording for a model of names", GIVEN, "ref_audio", "unsupported_parameter"),
    ("words without a recording", {"ref_text": "x"}, "ref_text", "invalid_value"),
    ("a chat model", {"model": "vllm"}, "model", "model_not_supported"),
    ("a voice and a recording", {"model": "f5", "voice": "stored", **GIVEN}, "voice", "invalid_value"),
    ("no voice", {"model": "f5", "voice": None}, "voice", "missing_required_parameter"),
    ("no voice at all", {"model": "spark", "voice": None}, "voice", "missing_required_parameter"),
    ("a voice where there are none", {"model": "spark"}, "voice", "invalid_value"),
    ("language", {"model": "f5", "voice": "stored", "language": "de"}, "language", "unsupported_parameter"),
]
RECORDINGS: list[tuple[str, dict[str, Any], str, str]] = [
    ("no words", {"ref_text": None}, "ref_text", "invalid_value"),
    ("no base64", {"ref_audio": "äöü"}, "ref_audio", "invalid_value"),
    ("cut base64", {"ref_audio": "abc"}, "ref_audio", "invalid_value"),
    ("empty", {"ref_audio": ""}, "ref_audio", "invalid_audio"),
    ("no audio", {"ref_audio": base64.b64encode(b"hello " * 99).decode()}, "ref_audio", "invalid_audio"),
    ("no data: URL", {"ref_audio": "data:audio/wav,abc"}, "ref_audio", "invalid_audio"),
    ("an address", {"ref_audio": "http://127.0.0.1/a.wav"}, "ref_audio", "invalid_value"),
    ("a minute", {"ref_audio": recording(60)}, "ref_audio", "invalid_audio"),
    ("14 MB", {"ref_audio": "A" * 14_000_000}, "ref_audio", "invalid_audio"),
]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [pytest.param(fields, param, code, id=what) for what, fields, param, code in WRONG]
    + [
        pytest.param({"model": "spark", "voice": None, **GIVEN, **fields}, param, code, id=what)
        for what, fields, param, code in RECORDINGS
    ],
)
def test_wrong(wire: Wire, key: str, fields: dict[str, Any], param: str, code: str) -> None:
    assert post(wire, key, **fields).error(400, param)["code"] == code


def test_an_unknown_voice_is_told_the_others(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="alloy, nova, onyx, storyteller"):
        client.audio.speech.create(model="voice", voice="zzz", input="Hello.")


def test_the_model_refuses_what_only_it_knows(wire: Wire, key: str) -> None:
    assert post(wire, key, language="zz").error(400, "language")["code"] == "unsupported_parameter"
