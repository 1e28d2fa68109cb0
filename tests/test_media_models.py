"""The reranker, the picture and speech models and their contracts, on a real Triton: what their tensors promise."""

import asyncio
import io
import json
import math
import re
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from scripts.triton import Triton
from scripts.wheel import CACHE
from upstream.errors import UpstreamError
from upstream.grpc import GrpcClient
from upstream.media.audio import Encoder
from upstream.media.recording import Recording
from upstream.tensors import Array, pack

PREFIX = "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"
VOICES = tuple("alloy ash ballad cedar coral echo fable marin nova onyx sage shimmer verse".split())  # noqa: SIM905
RATE = 22_050
Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
async def models(triton: Triton) -> AsyncIterator[GrpcClient]:
    """A client of the session's Triton."""
    client = GrpcClient(triton.grpc_url)
    yield client
    await client.close()


def _text(*values: str, rows: bool = True) -> Array:
    return pack("BYTES", (len(values), 1) if rows else (len(values),), values)


async def _draw(models: GrpcClient, prompt: str | list[str], **settings: Any) -> NDArray[np.uint8]:
    prompts = [prompt] if isinstance(prompt, str) else prompt
    types = {"seed": "INT64", "guidance_scale": "FP32", "negative_prompt": "BYTES"}
    inputs = {"prompt": _text(*prompts)}
    for name, value in ({"seed": 1, "height": 128, "width": 128} | settings).items():
        values = value if isinstance(value, list) else [value] * len(prompts)
        inputs[name] = pack(types.get(name, "INT32"), (len(prompts), 1), values)
    image = (await models.infer("diffusion", "", inputs, []))["generated_image"]
    assert image.dtype == "UINT8"
    return np.frombuffer(image.data, np.uint8).reshape(image.shape)


async def _chunks(models: GrpcClient, text: str, **settings: Any) -> list[Samples]:
    inputs = {"text": _text(text, rows=False)}
    for name, value in settings.items():
        inputs[name] = pack("BYTES" if isinstance(value, str) else "FP32", (1,), [value])
    return await _waves(models, "voice", inputs)


async def _waves(models: GrpcClient, model: str, inputs: dict[str, Array]) -> list[Samples]:
    stream, waves = models.stream(model, "", inputs, []), []
    try:
        while (outputs := await stream.read()) is not None:
            waves.append(np.frombuffer(outputs["waveform"].data, np.float32))
    finally:
        stream.close()
    return waves


async def _say(models: GrpcClient, text: str, **settings: Any) -> Samples:
    return np.concatenate(await _chunks(models, text, **settings))


def _heard_as_mp3(wave: Samples, rate: int = RATE) -> Samples:
    """What a client would send back: the wave as an mp3, decoded to 16 kHz."""
    encoder = Encoder("mp3", rate)
    file = io.BytesIO(encoder.feed(wave.tobytes()) + encoder.finish())
    windows = Recording(file).windows(600)
    return np.frombuffer(b"".join(window.samples for window in windows), np.float32)


def _recording(waves: list[Samples], prefix: str | None = PREFIX) -> dict[str, Array]:
    longest = max(map(len, waves))
    padded = b"".join(np.pad(wave, (0, longest - len(wave))).astype("<f4").tobytes() for wave in waves)
    inputs = {
        "WAV": Array("FP32", (len(waves), longest), padded),
        "WAV_LENS": pack("INT32", (len(waves), 1), map(len, waves)),
    }
    return inputs if prefix is None else inputs | {"TEXT_PREFIX": _text(*[prefix] * len(waves))}


async def _transcribe(models: GrpcClient, model: str, inputs: dict[str, Array]) -> list[str]:
    outputs = await models.infer(model, "", inputs, [])
    return [text.decode() for text in outputs["TRANSCRIPTS"].items()]


def _misheard(said: str, heard: str) -> int:
    """The edit distance of two texts in words."""
    wanted, found = re.findall(r"[a-z']+", said.lower()), heard.split()
    costs = list(range(len(found) + 1))
    for row, word in enumerate(wanted, start=1):
        before, costs[0] = costs[0], row
        for column, other in enumerate(found, start=1):
            cost = min(before + (word != other), costs[column] + 1, costs[column - 1] + 1)
            before, costs[column] = costs[column], cost
    return costs[-1]


async def _scores(models: GrpcClient, query: str, documents: list[str]) -> list[float]:
    tokenizer = Tokenizer.from_file(str(CACHE / "minilm" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    pairs = tokenizer.encode_batch([(query, document) for document in documents])
    tensors = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    shape = (len(pairs), len(pairs[0].ids))
    inputs = {
        name: pack("INT64", shape, [number for pair in pairs for number in getattr(pair, part)])
        for name, part in tensors.items()
    }
    logits = (await models.infer("reranker", "", inputs, []))["logits"]
    assert logits.shape == (len(documents), 1)
    return [1 / (1 + math.exp(-logit)) for logit in logits.items()]


async def test_reranker_prefers_the_answer(models: GrpcClient) -> None:
    answer, nearby = "Paris is the capital of France.", "France borders Spain and Italy."
    documents = [answer, "Bananas are rich in potassium.", nearby, ""]
    scores = await _scores(models, "What is the capital of France?", documents)
    assert scores[0] > 0.9
    assert scores[0] > scores[2] > scores[1]
    assert scores[1] < 0.1
    alone = await _scores(models, "What is the capital of France?", documents[:1])
    assert alone[0] == pytest.approx(scores[0], abs=1e-4)


async def test_reranker_reads_long_documents_and_full_batches(models: GrpcClient) -> None:
    scores = await _scores(models, "capital of France", ["Paris is the capital of France. " * 100, *["potassium"] * 63])
    assert scores[0] > 0.5 > scores[1]


@pytest.mark.parametrize(
    ("token", "kind", "message"), [(30_522, 1, "input_ids"), (-1, 1, "input_ids"), (7, 0, "document")]
)
async def test_reranker_refuses_what_is_no_pair(models: GrpcClient, token: int, kind: int, message: str) -> None:
    one = {"input_ids": [101, token, 102], "attention_mask": [1, 1, 1], "token_type_ids": [0, kind, kind]}
    with pytest.raises(UpstreamError, match=message):
        await models.infer("reranker", "", {name: pack("INT64", (1, 3), row) for name, row in one.items()}, [])


async def test_diffusion_repeats_a_seed_and_only_that(models: GrpcClient) -> None:
    first = await _draw(models, "a beach at sunset", seed=7)
    assert first.shape == (1, 128, 128, 3)
    assert (await _draw(models, "a beach at sunset", seed=7) == first).all()
    assert (await _draw(models, "a beach at sunset", seed=8) != first).any()
    drawn_anew = [await _draw(models, "a beach at sunset", seed=-1) for _ in range(2)]
    assert (drawn_anew[0] != drawn_anew[1]).any()


async def test_diffusion_draws_what_the_words_say(models: GrpcClient) -> None:
    day, night = await _draw(models, ["a house in a meadow by day", "a house in a meadow at night"])
    assert day.mean() > 2 * night.mean()
    red, blue = (await _draw(models, ["a red heart", "a blue heart"]))[:, 60:80, 60:80].mean(axis=(1, 2))
    assert red[0] - red[2] > 25
    assert blue[2] - blue[0] > 25
    meadow, sea = (await _draw(models, ["a green meadow", "the blue sea"]))[:, -10:].mean(axis=(1, 2))
    assert meadow[1] > meadow[2] + 30
    assert sea[2] > sea[0] + 30
    assert (await _draw(models, "zxcvb qwert") != await _draw(models, "asdfg yuiop")).any()


async def test_diffusion_obeys_size_steps_guidance_and_the_negative_prompt(models: GrpcClient) -> None:
    assert (await _draw(models, "the sea", height=96, width=160)).shape == (1, 96, 160, 3)
    plain = await _draw(models, "clouds over the sea")
    assert (await _draw(models, "clouds over the sea", steps=2) != plain).any()
    assert (await _draw(models, "clouds over the sea", guidance_scale=0.5) != plain).any()
    # Without clouds, the upper sky is the same all along each row.
    for seed in range(5):
        clear = await _draw(models, "clouds over the sea", seed=seed, negative_prompt="clouds, sun")
        assert clear[0, 10:50, 40:90].astype(int).std(axis=1).max() < 4


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"steps": 100_000}, {"height": 0}, {"width": 4096}, {"guidance_scale": float("nan")}]
)
async def test_diffusion_refuses_settings_beyond_its_limits(models: GrpcClient, settings: dict[str, Any]) -> None:
    with pytest.raises(UpstreamError, match=next(iter(settings))):
        await _draw(models, "the sea", **settings)


async def test_voice_sends_sentence_by_sentence(models: GrpcClient) -> None:
    chunks = await _chunks(models, "This is the first. Here comes a second one! Is this the third?")
    assert len(chunks) == 3
    assert all(np.abs(chunk).max() > 0.1 and np.abs(chunk).max() <= 1 for chunk in chunks)
    assert 2 < sum(map(len, chunks)) / RATE < 8
    long = await _chunks(models, "one two three four five, " * 40)
    assert len(long) >= 4


async def test_voice_has_voices_that_differ(models: GrpcClient) -> None:
    waves = await asyncio.gather(*(_say(models, "Good morning.", voice=voice) for voice in VOICES))
    assert len({wave.tobytes() for wave in waves}) == len(VOICES)
    # espeak-ng's breath is random, and moves what follows by a few samples.
    assert len(await _say(models, "Good morning.")) == pytest.approx(len(waves[0]), rel=0.01)
    german, english = await _say(models, "Guten Morgen", language="de"), await _say(models, "Guten Morgen")
    assert german.tobytes() != english.tobytes()


async def test_voice_obeys_speed(models: GrpcClient) -> None:
    text = "The quick brown fox jumps over the lazy dog near the river."
    speeds = [0.25, 0.5, 1.0, 2.0, 4.0]
    lengths = [len(await _say(models, text, speed=speed)) for speed in speeds]
    for (slow, longer), (fast, shorter) in pairwise(zip(speeds, lengths, strict=True)):
        assert longer / shorter == pytest.approx(fast / slow, rel=0.25)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("", {}, "text is empty"),
        (" \n", {}, "text is empty"),
        ("hi", {"voice": "nobody"}, "does not know this voice"),
        ("hi", {"speed": 0.0}, "speed"),
        ("hi", {"speed": float("nan")}, "speed"),
        ("hi", {"language": "klingon"}, "does not know this language"),
    ],
)
async def test_voice_refuses(models: GrpcClient, text: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UpstreamError, match=message):
        await _chunks(models, text, **settings)


async def test_voice_survives_odd_text_and_many_callers(models: GrpcClient) -> None:
    odd = ["…", "🙂", "日本語", "a\0b", "<speak>&amp;", "\ud7ff" * 50, "x" * 5000]
    texts = [*odd, *(f"Number {index}. And once more {index}." for index in range(50))]
    together = await asyncio.gather(*(_say(models, text, voice=VOICES[at % 13]) for at, text in enumerate(texts)))
    for at in (7, 30, 56):
        assert len(await _say(models, texts[at], voice=VOICES[at % 13])) == pytest.approx(len(together[at]), rel=0.01)


async def test_what_the_voice_says_the_listener_hears(models: GrpcClient) -> None:
    sentences = [
        "This is a test of the speech system.",
        "Please open the door and close the window.",
        "The quick brown fox jumps over the lazy dog.",
        "We are going to the market in the morning.",
    ]
    waves = [_heard_as_mp3(await _say(models, sentence)) for sentence in sentences]
    heard = await _transcribe(models, "listener", _recording(waves))
    wrong = sum(_misheard(said, text) for said, text in zip(sentences, heard, strict=True))
    assert wrong <= 0.3 * sum(len(said.split()) for said in sentences), heard


async def test_listener_hears_nothing_in_silence(models: GrpcClient) -> None:
    silence = np.zeros(16_000, np.float32)
    assert await _transcribe(models, "listener", _recording([silence])) == [""]
    assert await _transcribe(models, "listener", _recording([silence[:100]])) == [""]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"TEXT_PREFIX": _text("<|startoftranscript|><|fr|><|transcribe|>")}, "English only"),
        ({"WAV_LENS": None}, "all needed"),
        ({"WAV_LENS": pack("INT32", (1, 1), [99_999])}, "WAV_LENS must be"),
    ],
)
async def test_listener_refuses(models: GrpcClient, change: dict[str, Array | None], message: str) -> None:
    inputs = _recording([np.zeros(1600, np.float32)]) | change
    with pytest.raises(UpstreamError, match=message):
        await models.infer("listener", "", {name: value for name, value in inputs.items() if value is not None}, [])


def _spelt(values: bytes) -> dict[str, Any]:
    return dict(json.loads(values.rstrip(b"\0"))["tensors"])


async def test_contract_vectors_spell_what_came_in(models: GrpcClient) -> None:
    vectors = (await models.infer("embed_text", "", {"INPUT_TEXT": _text("hé", "")}, []))["EMBEDDING"]
    assert vectors.shape == (2, 1024)
    assert vectors.items()[:5] == [3, *"hé".encode(), 0]
    tokens = {"input_ids": [5, 6], "attention_mask": [1, 0], "token_type_ids": [0, 1]}
    packed = {name: pack("INT64", (1, 2), row) for name, row in tokens.items()}
    states = await models.infer("onnx_embed", "", packed, [])
    assert states["last_hidden_state"].shape == (1, 2, 8)
    assert states["last_hidden_state"].items() == [5, 1, 0, 0, 1, 2, 1, 0, 6, 0, 1, 1, 1, 2, 1, 0]
    asked = json.dumps({"input": [7, 8], "pooling_params": {"dimensions": [4]}})
    request = {"text_input": _text("", rows=False), "embedding_request": _text(asked, rows=False)}
    stream = models.stream("vllm_embed", "", request, [])
    outputs = await stream.read()
    assert outputs is not None
    assert json.loads(outputs["text_output"].items()[0]) == [2, 7, 8, 0]


@pytest.mark.parametrize(("model", "dtype"), [("sd", "u1"), ("sd_bls", "<f4")])
async def test_contract_pictures_spell_what_came_in(models: GrpcClient, model: str, dtype: str) -> None:
    image = (await models.infer(model, "", {"prompt": _text("a", "b")}, []))["generated_image"]
    assert image.shape == (2, 64, 64, 3)
    pictures = np.frombuffer(image.data, dtype).reshape(image.shape).astype(np.uint8)
    assert _spelt(pictures[1].tobytes()) == {"prompt": {"shape": [2, 1], "data": ["a", "b"]}}
    with pytest.raises(UpstreamError, match="too bad"):
        await models.infer(model, "", {"prompt": _text("fail: too bad")}, [])


async def test_contract_speech_spells_what_came_in(models: GrpcClient) -> None:
    texts = {"reference_text": _text("he said"), "target_text": _text("say")}
    voice = {"reference_wav": pack("FP32", (1, 99), [0.5] * 99), "reference_wav_len": pack("INT32", (1, 1), [99])}
    wave = np.frombuffer((await models.infer("f5_tts", "", texts, []))["waveform"].data, np.float32)
    assert len(wave) == 12_000
    assert set(_spelt((wave * 256).astype(np.uint8).tobytes())) == {"reference_text", "target_text"}
    chunks = await _waves(models, "spark_tts", texts | voice)
    assert all((one[-1600:] == other[:1600]).all() for one, other in pairwise(chunks))
    whole = np.concatenate([chunks[0], *(chunk[1600:] for chunk in chunks[1:])])
    assert len(whole) == 16_000
    spelt = _spelt((whole * 256).astype(np.uint8).tobytes())
    assert spelt["reference_wav"] == {"shape": [1, 99], "data": [0.5] * 16}
    assert spelt["target_text"]["data"] == ["say"]
    with pytest.raises(UpstreamError, match="reference_wav"):
        await _waves(models, "spark_tts", texts)


def _tones(*words: int, seconds: float = 0.5, rate: int = 16_000) -> Samples:
    """A tone for each word, as the contract models hear them."""
    time = np.arange(int(seconds * rate)) / rate
    return np.concatenate([0.3 * np.sin(2 * np.pi * (200 + 40 * word) * time) for word in words]).astype(np.float32)


async def test_contract_listeners_hear_tones(models: GrpcClient) -> None:
    assert await _transcribe(models, "whisper", _recording([_tones(1, 2, 2, 100)])) == ["w1 w2 w100"]
    through_mp3 = _heard_as_mp3(_tones(3, 30, 60, rate=RATE))
    assert (await _transcribe(models, "whisper", _recording([through_mp3])))[0].split()[:3] == ["w3", "w30", "w60"]
    short_and_long = _recording([_tones(4), _tones(5, 6)], prefix=None)
    assert await _transcribe(models, "wav_asr", short_and_long) == ["w4", "w5 w6"]
    stream = models.stream("whisper_decoupled", "", _recording([_tones(1, 2, 3)]), [])
    said = []
    while (outputs := await stream.read()) is not None:
        said.append(outputs["TRANSCRIPTS"].items()[0].decode())
    assert said == ["w1", "w1 w2", "w1 w2 w3"]


async def test_contract_whisper_keeps_its_limits(models: GrpcClient) -> None:
    echoed = await _transcribe(models, "whisper", _recording([_tones(1)], prefix=f"echo: {PREFIX}"))
    assert _spelt(echoed[0].encode())["TEXT_PREFIX"]["data"] == [f"echo: {PREFIX}"]
    with pytest.raises(UpstreamError, match="30 s of a window"):
        await models.infer("whisper", "", _recording([_tones(1, seconds=30.1)]), [])
    bare = _recording([_tones(1)])
    del bare["WAV_LENS"]
    with pytest.raises(UpstreamError, match="WAV_LENS is missing"):
        await models.infer("whisper", "", bare, [])
