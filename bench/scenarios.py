"""What a bench run asks: each scenario's request, how many ask it at once, and how a right answer looks."""

from __future__ import annotations

import base64
import io
import json
import wave
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench import models
from bench.models import EVENTS, WORD

BOUNDARY = "bench-boundary"
PACED_STREAMS = 16
PACED_INTERVAL = 0.005  # seconds between two events of a stream
LONG = 1_000_000  # bytes of the long prompt


@dataclass(frozen=True)
class Scenario:
    """`path` is the API's, `call` the model's at Triton; `right` reads a gateway's whole answer.

    `connections` ask again as soon as they are answered. `events`: of each answer, where that is a stream; a `paced`
    one goes on for as long as is measured.
    """

    name: str
    path: str
    call: str
    body: bytes = field(repr=False)
    right: Callable[[bytes], bool]
    connections: int
    content_type: str = "application/json"
    events: int = 0
    paced: bool = False
    interval: float = PACED_INTERVAL  # seconds between two events of a paced one

    def lasting(self, seconds: float) -> bytes:
        """The body of a paced stream that takes so long."""
        return self.body.replace(b'"max_tokens":0', b'"max_tokens":%d' % round(seconds / self.interval))


def chat(content: str = "What does a gateway in front of Triton do for us?", **fields: Any) -> bytes:
    """The chat request: 173 bytes as it stands."""
    messages = [{"role": "system", "content": "Be very brief."}, {"role": "user", "content": content}]
    return models.as_json(**{"model": "assistant", "messages": messages, "max_tokens": 64} | fields).encode()


def _completion(answer: bytes) -> bool:
    return bool(json.loads(answer)["choices"][0]["message"]["content"] == models.ANSWER)


def _chunks(answer: bytes) -> bool:
    """Whether a stream of chat chunks is whole: every word, and [DONE] last."""
    frames = [frame.removeprefix("data: ") for frame in answer.decode().split("\n\n") if frame]
    choices = [choice for frame in frames[:-1] for choice in json.loads(frame)["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return text == WORD * EVENTS and frames[-1] == "[DONE]"


def _stamped(answer: bytes) -> bool:
    return answer.count(b'"content":" @') == 4 and answer.endswith(b"data: [DONE]\n\n")


def _picture(answer: bytes) -> bool:
    [made] = json.loads(answer)["data"]
    head = base64.b64decode(made["b64_json"])[:24]
    return head[1:4] == b"PNG" and head[16:24] == models.SIDE.to_bytes(4, "big") * 2


def _sound(answer: bytes) -> bool:
    return len(answer) > 10_000 and (answer[:3] == b"ID3" or answer[0] == 0xFF)  # mp3


def _words(answer: bytes) -> bool:
    return bool(json.loads(answer)["text"] == models.ANSWER)


def _unary(connections: int) -> Scenario:
    path = "/chat/completions"
    return Scenario(f"unary-{connections}", path, f"{models.CHAT.path}/generate", chat(), _completion, connections)


def _embedding(count: int, connections: int) -> Scenario:
    """The SDKs ask for base64."""
    texts = [f"Sentence {index} is about a gateway in front of Triton." for index in range(count)]
    model = models.EMBEDDERS[count]
    body = models.as_json(model=model.name, input=texts if count > 1 else texts[0], encoding_format="base64").encode()

    def right(answer: bytes) -> bool:
        made = json.loads(answer)["data"]
        return b"".join(base64.b64decode(each["embedding"]) for each in made) == models.vectors(count)

    return Scenario(f"embed-{count}", "/embeddings", f"{model.path}/infer", body, right, connections)


def _recording() -> bytes:
    """A form with 5 s of sound, 16 kHz, 16 bit."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(array("h", [int(32_000 * sample) for sample in models.sine(16_000, 5)]).tobytes())
    model = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="model"\r\n\r\nlistener\r\n'
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
    head += "Content-Type: audio/wav\r\n\r\n"
    return (model + head).encode() + file.getvalue() + f"\r\n--{BOUNDARY}--\r\n".encode()


def _long_prompt() -> str:
    return ("The gateway passes this on. " * (LONG // 28 + 1))[:LONG]


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        *map(_unary, (1, 16, 64)),
        Scenario(
            "stream-burst",
            "/chat/completions",
            f"{models.CHAT.path}/generate_stream",
            chat(stream=True),
            _chunks,
            connections=16,
            events=EVENTS,
        ),
        Scenario(
            "stream-paced",
            "/chat/completions",
            f"{models.PACED.path}/generate_stream",
            chat(model="paced", stream=True, max_tokens=0),
            _stamped,
            connections=PACED_STREAMS,
            paced=True,
        ),
        _embedding(1, connections=16),
        _embedding(64, connections=8),
        Scenario(
            "prompt-1mb",
            "/chat/completions",
            f"{models.CHAT.path}/generate",
            chat(_long_prompt()),
            _completion,
            connections=4,
        ),
        Scenario(
            "image",
            "/images/generations",
            f"{models.DIFFUSION.path}/infer",
            models.as_json(model="diffusion", prompt="a red sailboat", response_format="b64_json").encode(),
            _picture,
            connections=4,
        ),
        Scenario(
            "speech",
            "/audio/speech",
            f"{models.VOICE.path}/infer",
            models.as_json(model="voice", input="The train leaves at seven.").encode(),
            _sound,
            connections=4,
        ),
        Scenario(
            "transcription",
            "/audio/transcriptions",
            f"{models.LISTENER.path}/infer",
            _recording(),
            _words,
            connections=4,
            content_type=f"multipart/form-data; boundary={BOUNDARY}",
        ),
    )
}
