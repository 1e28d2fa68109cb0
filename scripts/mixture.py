"""What `make soak` asks: a bit of everything, some of it abandoned, some of it broken; and the models that it needs."""

from __future__ import annotations

import io
import json
import random
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.load import FREE, PRICED, Ask, Chosen, Seen, choose
from scripts.wheel import CACHE

ROOT = Path(__file__).resolve().parents[1]
ABANDONED, FAULTY = 0.10, 0.05
"""Parts of all requests: those whose client left before the end of its answer, those that are broken."""
EAGER = 3
"""So many times its part is tried where there were too few so far: many who would leave are answered before."""
BROKEN, GARBAGE, UNBILLED = "broken upstream", "garbage", "models"
BOUNDARY = "soak-boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
SPOKEN = 500  # ms of the recording
SAID = ("The sea is calm.", "Seven trains leave.", "Listen.")
A_PICTURE, A_CHARACTER, A_MILLISECOND = 10_000_000, 15_000, 1_000
"""Nano-dollars."""
REAL = ("minilm", "reranker", "diffusion", "voice")
CONTRACTS = ("vllm", "whisper")

MODELS = """
grpc = ["{grpc}"]

[upstreams.broken]
urls = ["{broken}"]
check_every = "1s"

[[models]]
id = "broken"
task = "chat"
upstream = "broken"
model = "vllm"
preset = "vllm"
max_output = 32
chat.template = "{root}/tests/plain.jinja"
price = {{ input = "1", output = "4" }}

[[models]]
id = "minilm"
task = "embedding"
upstream = "local"
model = "minilm"
transport = "infer"
in.text = "input"
out = {{ embedding = "embedding", prompt_tokens = "tokens" }}
price = {{ input = "1" }}

[[models]]
id = "reranker"
task = "rerank"
upstream = "local"
model = "reranker"
preset = "cross-encoder"
rerank.tokenizer = "{cache}/minilm/tokenizer.json"
price = {{ input = "1" }}

[[models]]
id = "diffusion"
task = "image"
upstream = "local"
model = "diffusion"
preset = "sd"
image = {{ sizes = ["64x64..2048x2048"] }}
in = {{ height = "size.height", width = "size.width", seed = "seed", steps = "steps", guidance_scale = "guidance" }}
price = {{ images = "0.01" }}

[[models]]
id = "voice"
task = "speech"
upstream = "local"
model = "voice"
transport = "grpc"
speech.voices = {{ alloy = {{}} }}
in = {{ text = "text", voice = "voice.name", speed = "speed", language = "language" }}
out.audio = {{ tensor = "waveform", rate = 22050 }}
price = {{ characters = "15" }}

[[models]]
id = "whisper"
task = "transcription"
upstream = "local"
model = "whisper"
preset = "whisper"
price = {{ seconds = "0.001" }}
""".replace("{cache}", str(CACHE))


def repository(folder: Path) -> Path:
    """A model repository of what is asked for, in `folder`."""
    made = folder / "models"
    made.mkdir()
    for name in REAL:
        (made / name).symlink_to(ROOT / "models" / name)
    for name in CONTRACTS:
        (made / name).symlink_to(ROOT / "tests" / "contracts" / name)
    return made


@dataclass
class Tally:
    """Of the requests in `seen`, how many were abandoned, and how many faulty: whether that is too few."""

    seen: Sequence[Seen]
    abandoned: int = 0
    faulty: int = 0
    _counted: int = 0

    def count(self) -> None:
        """What came since the last time."""
        new = self.seen[self._counted :]
        self._counted += len(new)
        self.abandoned += sum(each.left for each in new)
        self.faulty += sum(each.ask.kind in (BROKEN, GARBAGE) for each in new)

    def tries(self, part: float, count: int) -> float:
        """How likely the next one is to be tried, that `count` becomes this part of the whole."""
        return part * EAGER if count < part * self._counted else 0.0


def choose_any(seen: Sequence[Seen]) -> Chosen:
    """Asks of every kind, that ABANDONED and FAULTY become their parts of what is `seen`."""
    kinds = {
        choose([PRICED, FREE], keyed=0.1): 50,
        _completion: 8,
        _response: 8,
        _embedding: 10,
        _ranking: 6,
        _picture: 4,
        _speech: 5,
        _transcription: 5,
        _models: 4,
    }

    tally = Tally(seen)

    def chosen(dice: random.Random) -> Ask:
        tally.count()
        if dice.random() < tally.tries(FAULTY, tally.faulty):
            return _broken(dice) if dice.random() < 0.5 else dice.choice(GARBLED)
        [kind] = dice.choices(list(kinds), list(kinds.values()))
        ask = kind(dice)
        return _abandoned(ask, dice) if dice.random() < tally.tries(ABANDONED, tally.abandoned) else ask

    return chosen


def _abandoned(ask: Ask, dice: random.Random) -> Ask:
    """Left within the request, within the answer, or while it is waited for."""
    how = dice.random()
    if how < 0.2:
        return replace(ask, sends=dice.randrange(1, 200 + len(ask.body)))
    if how < 0.6 and b'"stream": true' in ask.body:
        return replace(ask, patience=dice.randint(1, 3))
    return replace(ask, leaves=dice.uniform(0, 0.1))


def _json(path: str, **fields: Any) -> Ask:
    kind = path.rpartition("/")[2]
    return Ask(json.dumps(fields).encode(), path=f"/v1/{path}", kind=kind)


def _script(dice: random.Random) -> str:
    pieces = [f"{dice.getrandbits(24):06x} " for _ in range(dice.randint(1, 12))]
    return "script: " + json.dumps({"pieces": pieces, "pace_ms": dice.choice((0, 5, 20))})


def _completion(dice: random.Random) -> Ask:
    stream = dice.random() < 0.5
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
    fields = {"model": PRICED, "prompt": _script(dice), "max_tokens": 32, "stream": stream}
    return _json("completions", **fields, **options)


def _response(dice: random.Random) -> Ask:
    return _json("responses", model=PRICED, input=_script(dice), max_output_tokens=32, stream=dice.random() < 0.5)


def _embedding(dice: random.Random) -> Ask:
    return _json("embeddings", model="minilm", input=[dice.choice(SAID)] * dice.randint(1, 4))


def _ranking(dice: random.Random) -> Ask:
    return _json("rerank", model="reranker", query="sea", documents=["a boat", "a bank", "the coast"])


def _picture(dice: random.Random) -> Ask:
    ask = _json("images/generations", model="diffusion", prompt="a boat", size="64x64", response_format="b64_json")
    return replace(ask, cost=A_PICTURE)


def _speech(dice: random.Random) -> Ask:
    said, kind = dice.choice(SAID), dice.choice(("mp3", "wav", "pcm"))
    ask = _json("audio/speech", model="voice", voice="alloy", input=said, response_format=kind)
    return replace(ask, cost=len(said) * A_CHARACTER)


def _transcription(dice: random.Random) -> Ask:
    return replace(_form(_sound()), cost=SPOKEN * A_MILLISECOND)


def _models(dice: random.Random) -> Ask:
    return Ask(b"", method="GET", path="/v1/models", kind=UNBILLED)


def _broken(dice: random.Random) -> Ask:
    messages = [{"role": "user", "content": "Break."}]
    ask = _json("chat/completions", model="broken", messages=messages, max_tokens=32, stream=dice.random() < 0.7)
    return replace(ask, kind=BROKEN)


def _form(file: bytes) -> Ask:
    part = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
    head = f'{part}"model"\r\n\r\nwhisper\r\n{part}"file"; filename="a.wav"\r\n\r\n'
    body = head.encode() + file + f"\r\n--{BOUNDARY}--\r\n".encode()
    return Ask(body, path="/v1/audio/transcriptions", content_type=FORM, kind="transcriptions")


def _sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes(b"\x00\x20\x00\xe0" * (16 * SPOKEN // 2))
    return file.getvalue()


def _garbled() -> Iterator[Ask]:
    for body in (
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b"[" * 5_000,
        b'{"model": 1}',
        b'{"model": "priced", "messages": "x"}',
    ):
        yield Ask(body)
    yield _json("chat/completions", model="nobody's", messages=[{"role": "user", "content": "x"}])
    yield _json("embeddings", model="minilm", input=[])
    yield _json("images/generations", model="diffusion", prompt="a boat", size="0x0")
    yield _json("nothing/here")
    yield _form(b"no sound at all")
    yield _form(_sound()[:30])
    yield replace(_form(_sound()), content_type="multipart/form-data; boundary=another")
    yield Ask(b"{}", content_type="text/plain")
    yield Ask(b"{}", path=f"/v1/{'x' * 10_000}")
    yield Ask(b"{}", path="/v1/\x01")
    yield Ask(b"{}", method="PO\x00ST")


GARBLED = [replace(ask, kind=GARBAGE) for ask in _garbled()]
