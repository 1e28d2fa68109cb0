"""Speech and recognition as tables, without a server: profile × live contract → exact tensors, or a reason."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from config import Model, load
from upstream.contract import Contract, NotBound, read_contract
from upstream.errors import BadReply, Unsupported
from upstream.inference import Speak, Transcribe
from upstream.languages import LANGUAGES
from upstream.media.transcript import Stitcher
from upstream.speaking import SpeechBinding, Voice, prepare_voices
from upstream.tensors import Array, pack
from upstream.transcribing import TranscriptionBinding, whisper_prefix

Table = dict[str, Any]
PRESETS = Path(__file__).parents[1] / "config" / "presets"
WAVE = Array("FP32", (3,), bytes(12))


def settings(tmp_path: Path, task: str, **entry: Any) -> Model:
    """A [[models]] entry as conch.toml would be read."""
    file = tmp_path / "conch.toml"
    lines = ['[upstreams.u]\nurls = ["http://127.0.0.1:1"]\n[[models]]\nid = "m"\nupstream = "u"\nmodel = "m"']
    file.write_text("\n".join([*lines, f"task = {json.dumps(task)}", *(f"{k} = {_toml(v)}" for k, v in entry.items())]))
    return load(file, variables={}).models[0]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def contract(inputs: Table, outputs: Table, batch: int = 0, decoupled: bool = False) -> Contract:
    """A live configuration: name → "FP32[-1]", with a ? where it is optional."""

    def tensors(table: Table) -> list[Table]:
        found = []
        for name, kind in table.items():
            dtype, _, dims = kind.rstrip("?]").partition("[")
            found.append(
                {"name": name, "data_type": f"TYPE_{dtype}", "dims": [int(dims)], "optional": kind.endswith("?")}
            )
        return found

    live = {
        "name": "m",
        "max_batch_size": batch,
        "input": tensors(inputs),
        "output": tensors(outputs),
        "model_transaction_policy": {"decoupled": decoupled},
    }
    return read_contract(json.dumps(live).encode())


REFERENCE = {
    "reference_wav": "FP32[-1]",
    "reference_wav_len": "INT32[1]",
    "reference_text": "STRING[1]",
    "target_text": "STRING[1]",
}
F5 = {**REFERENCE, "reference_wav": "FP32[-1]?", "reference_wav_len": "INT32[1]?"}
COSY = {name: kind if name == "target_text" else f"{kind}?" for name, kind in REFERENCE.items()}
WAVEFORM = {"waveform": "FP32[-1]"}
WHISPER = {"TEXT_PREFIX": "STRING[1]", "WAV": "FP32[-1]", "WAV_LENS": "INT32[1]?"}
TRANSCRIPTS = {"TRANSCRIPTS": "STRING[1]"}


@pytest.mark.parametrize(
    ("live", "needs"),
    [
        (REFERENCE, {"voice.wav", "voice.len", "voice.text", "text"}),
        (F5, {"voice.text", "text"}),
        (COSY, {"text"}),
    ],
)
def test_zero_shot(tmp_path: Path, live: Table, needs: set[str]) -> None:
    binding = SpeechBinding(settings(tmp_path, "speech", preset="zero-shot-tts"), contract(live, WAVEFORM, 4))
    assert binding.needs == needs
    assert binding.imitates
    assert (binding.rate, binding.overlap, binding.dtype) == (24_000, 0, "FP32")
    arrays, parameters = binding.inputs.arrays(Speak("hi", wav=WAVE, wav_length=3, wav_text="ho"))
    assert arrays == {
        "reference_wav": Array("FP32", (1, 3), WAVE.data),
        "reference_wav_len": pack("INT32", (1, 1), [3]),
        "reference_text": pack("BYTES", (1, 1), ["ho"]),
        "target_text": pack("BYTES", (1, 1), ["hi"]),
    }
    assert parameters == {}
    assert binding.inputs.arrays(Speak("hi"))[0].keys() == {"target_text"}


def test_names(tmp_path: Path) -> None:
    profile = settings(
        tmp_path,
        "speech",
        transport="grpc",
        **{"in": {"text": "text", "who": "voice.name", "pace": {"from": "speed", "scale": 100}}},
        out={"audio": {"tensor": "wave", "rate": 8000, "overlap": "10ms"}},
        speech={"voices": {"alloy": {}, "echo": {"name": "male"}}},
    )
    live = contract({"text": "STRING[1]", "who": "STRING[1]", "pace": "INT32[1]?"}, {"wave": "INT16[-1]"}, 0, True)
    binding = SpeechBinding(profile, live)
    assert (binding.rate, binding.overlap, binding.dtype, binding.imitates) == (8000, 80, "INT16", False)
    assert prepare_voices(profile) == {"alloy": Voice("alloy"), "echo": Voice("male")}
    arrays, _ = binding.inputs.arrays(Speak("hi", voice="male", speed=1.5))
    assert arrays == {
        "text": pack("BYTES", (1,), ["hi"]),
        "who": pack("BYTES", (1,), ["male"]),
        "pace": pack("INT32", (1,), [150]),
    }


AUDIO = {"audio": {"tensor": "waveform", "rate": 24_000}}
UNSPOKEN: dict[str, tuple[Table, Contract, str]] = {
    "no rate": ({"out": {"audio": "waveform"}}, contract(F5, WAVEFORM), "sample rate"),
    "a wild rate": ({"out": {"audio": {"tensor": "waveform", "rate": 1}}}, contract(F5, WAVEFORM), "4000 to 192000"),
    "no such output": ({"out": AUDIO}, contract(F5, {"other": "FP32[-1]"}), "no output 'waveform'; it has: other"),
    "a dtype": ({"out": AUDIO}, contract(F5, {"waveform": "INT32[-1]"}), "is INT32; a waveform is FP32 or INT16"),
    "decoupled over HTTP": ({}, contract(F5, WAVEFORM, decoupled=True), 'transport = "grpc"'),
    "a required tensor": ({}, contract({**F5, "more": "FP32[1]"}, WAVEFORM), "requires 'more'"),
    "a voice without words": (
        {"speech": {"voices": {"a": {"wav": "a.wav"}}}},
        contract(F5, WAVEFORM),
        r"'voice.text': add text to \[models.speech.voices.a\]",
    ),
}


@pytest.mark.parametrize(("entry", "live", "reason"), UNSPOKEN.values(), ids=UNSPOKEN)
def test_speech_that_does_not_fit(tmp_path: Path, entry: Table, live: Contract, reason: str) -> None:
    profile = settings(tmp_path, "speech", preset="zero-shot-tts", **entry)
    with pytest.raises(NotBound, match=reason):
        SpeechBinding(profile, live)


def test_voices_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"hello")
    for wav, reason in (("none.wav", "No such file"), ("bad.wav", "cannot be read as audio")):
        profile = settings(tmp_path, "speech", speech={"voices": {"a": {"wav": wav, "text": "x"}}})
        with pytest.raises(ValueError, match=f"the voice 'a': {tmp_path}/{wav}.*{reason}"):
            prepare_voices(profile)
    profile = settings(tmp_path, "speech", speech={"voices": {"a": {}}, "default_voice": "b"})
    with pytest.raises(ValueError, match="default_voice 'b'"):
        prepare_voices(profile)


def job(**fields: Any) -> Transcribe:
    return Transcribe(WAVE, 3, language="de", prefix=whisper_prefix("de", "transcribe", None), **fields)


def test_whisper(tmp_path: Path) -> None:
    binding = TranscriptionBinding(
        settings(tmp_path, "transcription", preset="whisper"), contract(WHISPER, TRANSCRIPTS, 8)
    )
    arrays, _ = binding.inputs.arrays(job())
    assert arrays == {
        "WAV": Array("FP32", (1, 3), WAVE.data),
        "WAV_LENS": pack("INT32", (1, 1), [3]),
        "TEXT_PREFIX": pack("BYTES", (1, 1), ["<|startoftranscript|><|de|><|transcribe|><|notimestamps|>"]),
    }
    for shape in ((1,), (1, 1)):
        assert binding.text({"TRANSCRIPTS": pack("BYTES", shape, [" Grüße"])}) == " Grüße"
    with pytest.raises(BadReply):
        binding.text({})


def test_a_template_and_a_map(tmp_path: Path) -> None:
    profile = settings(
        tmp_path,
        "transcription",
        preset="wav-asr",
        transcription={"default_language": "en"},
        **{
            "in": {
                "TEXT": {"template": "<|{language}|><|{task}|>"},
                "LANGUAGE": {"from": "language", "map": {"de": 4}, "default": 0},
            }
        },
    )
    live = contract({**WHISPER, "TEXT_PREFIX": "STRING[1]?", "TEXT": "STRING[1]", "LANGUAGE": "INT32[1]"}, TRANSCRIPTS)
    arrays, _ = TranscriptionBinding(profile, live).inputs.arrays(job())
    assert arrays["TEXT"] == pack("BYTES", (1,), ["<|de|><|transcribe|>"])
    assert arrays["LANGUAGE"] == pack("INT32", (1,), [4])
    assert arrays["WAV"] == WAVE


UNHEARD: dict[str, tuple[Table, Contract, str]] = {
    "no sound": (
        {"in": {"WAV": False}},
        contract({"TEXT_PREFIX": "STRING[1]"}, TRANSCRIPTS),
        "no tensor takes the sound",
    ),
    "no language": ({"transcription": {"default_language": ""}}, contract(WHISPER, TRANSCRIPTS), "default_language"),
    "no such language": ({"transcription": {"languages": ["xx"]}}, contract(WHISPER, TRANSCRIPTS), "'xx' is not"),
    "nothing to say so": ({"in": {"TEXT_PREFIX": False}}, contract({"WAV": "FP32[-1]"}, TRANSCRIPTS), "bind prefix"),
    "no text": ({"out": {"text": "TEXT"}}, contract(WHISPER, TRANSCRIPTS), "no output 'TEXT'"),
    "numbers": ({}, contract(WHISPER, {"TRANSCRIPTS": "INT32[-1]"}), "of text"),
    "decoupled over HTTP": ({}, contract(WHISPER, TRANSCRIPTS, decoupled=True), 'transport = "grpc"'),
    "half floats": ({}, contract({**WHISPER, "WAV": "FP16[-1]"}, TRANSCRIPTS), "'WAV' is FP16"),
}


@pytest.mark.parametrize(("entry", "live", "reason"), UNHEARD.values(), ids=UNHEARD)
def test_recognition_that_does_not_fit(tmp_path: Path, entry: Table, live: Contract, reason: str) -> None:
    profile = settings(tmp_path, "transcription", preset="whisper", **entry)
    with pytest.raises(NotBound, match=reason):
        TranscriptionBinding(profile, live)


def test_prefix() -> None:
    after = "<|startoftranscript|><|en|><|translate|><|notimestamps|>"
    assert whisper_prefix("en", "translate", " \n") == after
    assert whisper_prefix("en", "translate", " Conch. ") == f"<|startofprev|> Conch.{after}"
    for prompt in ("x" * 897, "é" * 449, "<|en|>"):
        with pytest.raises(Unsupported):
            whisper_prefix("en", "translate", prompt)


def test_languages() -> None:
    assert len(LANGUAGES) == 100
    assert (LANGUAGES["af"], LANGUAGES["ht"], LANGUAGES["zh"]) == ("afrikaans", "haitian creole", "chinese")


@pytest.mark.parametrize(
    ("windows", "pieces"),
    [
        ([], [""]),
        (["a b"], ["", "a b"]),
        ([" a b c", " b c d ", "c d e"], ["", "a b c", " d", " e"]),
        (["a b", "c d"], ["", "a b", " c d"]),
        (["so late", "so late. We left."], ["", "so late", ". We left."]),
        (["a b", "", "a b"], ["", "a b", "", " a b"]),
        (["", "a", "", "", "b"], ["", "", "a", "", "", " b"]),
        (["今日は", "", "天気"], ["", "今日は", "", "天気"]),
        (["a b", "b", "b c"], ["", "a b", "", " c"]),
    ],
)
def test_stitcher(windows: list[str], pieces: list[str]) -> None:
    stitcher = Stitcher()
    assert [*map(stitcher.feed, windows), stitcher.finish()] == pieces


def test_every_preset_is_read() -> None:
    for name in ("zero-shot-tts", "whisper", "wav-asr"):
        assert msgspec.toml.decode((PRESETS / f"{name}.toml").read_bytes())["transport"] == "infer"
