"""What is asked while Triton fails: each endpoint over each transport, and the gateway's settings for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from tests.priced import recording
from tests.raw import Answer

PATIENCE = 30
"""Seconds: the deadline of a model."""
HASTY = "-in-haste"
"""Ends the name of one that has a second."""
PLAN = "one"
"""Its workspaces may have one request under way: who is let in again has given the place back."""
BOUNDARY = "conch"

SETTINGS = """
[server]
port = 0

[store]
url = "sqlite:{store}"

[upstreams.alone]
urls = ["HTTP"]
grpc = ["GRPC"]
check_every = "1s"

[upstreams.pair]
urls = ["HTTP", "SECOND"]
check_every = "1s"

[plans.one]
default = 100000
ceiling = 100000
concurrency = 1
"""


def _model(task: str, model: str, price: str, *more: str) -> str:
    """The part of a [[models]] entry that is the same over each transport; `price` is its table."""
    return "\n".join([f'task = "{task}"', f'model = "{model}"', f"price = {{{{ {price} }}}}", *more, ""])


MODELS = {
    "chat": _model(
        "chat",
        "vllm",
        'input = "1", output = "1000"',
        'preset = "vllm"',
        "max_output = 100",
        'chat.template = "{root}/tests/plain.jinja"',
    ),
    "embed": _model(
        "embedding",
        "embed_text",
        'input = "1000"',
        'preset = "text-embed"',
        'embedding.tokenizer = "{cache}/minilm/tokenizer.json"',
    ),
    "embed-json": _model("embedding", "vllm_embed", 'input = "1000"', 'preset = "vllm-embed"'),
    "rank": _model(
        "rerank",
        "reranker",
        'input = "1000"',
        'preset = "cross-encoder"',
        'rerank.tokenizer = "{cache}/minilm/tokenizer.json"',
    ),
    "draw": _model("image", "sd", 'images = "0.01"', 'preset = "sd"'),
    "speak": _model(
        "speech",
        "f5_tts",
        'characters = "30"',
        'preset = "zero-shot-tts"',
        'speech.voices.stored = {{ wav = "stored.wav", text = "What it says." }}',
    ),
    "speak-on": _model(
        "speech",
        "speaker_tts",
        'characters = "30"',
        'in.INPUT_TEXT = "text"',
        'in.INPUT_SPEAKER_ID = "voice.name"',
        'in.INPUT_LANGUAGE_ID = {{ const = "hi" }}',
        'out.audio = {{ tensor = "OUTPUT_GENERATED_AUDIO", rate = 8000 }}',
    ),
    "hear": _model("transcription", "whisper", 'seconds = "0.001"', 'preset = "whisper"'),
    "hear-on": _model(
        "transcription",
        "whisper_decoupled",
        'seconds = "0.001"',
        'preset = "whisper"',
        'out.text = {{ tensor = "TRANSCRIPTS", mode = "cumulative" }}',
    ),
}
OVER_GRPC = {"speak": "speak-on", "hear": "hear-on"}
"""Models that take the place of others over gRPC: they answer in several responses."""

Kind = Literal["whole", "stream", "sound"]


def settings(http: str, grpc: str, second: str) -> str:
    """A conch.toml: each model over HTTP and gRPC, with time and in haste; `chat-pair` has a `second` server."""
    text = SETTINGS.replace("HTTP", http).replace("GRPC", grpc).replace("SECOND", second)
    models = [(id, id, "alone", "") for id in MODELS if id not in OVER_GRPC.values()]
    models += [(f"{id}-grpc", id, "alone", 'transport = "grpc"\n') for id in MODELS]
    models.append(("chat-pair", "chat", "pair", ""))
    for id, model, upstream, transport in models:
        for pace, seconds in (("", PATIENCE), (HASTY, 1)):
            text += f'[[models]]\nid = "{id}{pace}"\nupstream = "{upstream}"\ntimeout = "{seconds}s"\n{transport}'
            text += MODELS[model]
    return text


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A request to one path; its answer is whole, or a stream of events, or sound as it is made."""

    name: str
    path: str
    model: str
    kind: Kind
    body: dict[str, Any]

    def over_grpc(self) -> Endpoint:
        """The same of a model that goes over gRPC."""
        return replace(self, model=f"{OVER_GRPC.get(self.model, self.model)}-grpc")

    def request(self, *, haste: bool) -> tuple[bytes, str]:
        """The body, and its content type."""
        fields = {"model": self.model + HASTY * haste, **self.body}
        if not self.path.endswith("transcriptions"):
            return json.dumps(fields).encode(), "application/json"
        parts = [(f'name="{name}"', str(value).encode()) for name, value in fields.items()]
        name, sound = recording()
        parts.append((f'name="file"; filename="{name}"', sound))
        head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; "
        body = b"".join(f"{head}{part}\r\n\r\n".encode() + value + b"\r\n" for part, value in parts)
        return body + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"

    def said(self, answer: Answer) -> Any:
        """What the model said in an answer that came to its good end: the same each time."""
        assert answer.status == 200, answer
        if self.kind == "sound":
            return answer.body
        if self.kind == "stream":
            events = [line[6:] for line in answer.body.decode().split("\n") if line.startswith("data: ")]
            assert events.pop() == "[DONE]", answer
            return "".join(_words(json.loads(event)) for event in events)
        made = answer.json
        for field in ("id", "created", "created_at", "completed_at"):
            made.pop(field, None)
        for item in made.get("output", []) if isinstance(made.get("output"), list) else []:
            item.pop("id")
        return made


def _words(event: dict[str, Any]) -> str:
    """What an event of a stream adds to its text."""
    if event.get("type", "").endswith((".output_text.delta", "transcript.text.delta")):
        return str(event["delta"])
    return "".join(
        choice.get("delta", {}).get("content") or choice.get("text", "") for choice in event.get("choices", ())
    )


ASK = {"messages": [{"role": "user", "content": "Greet me."}], "max_tokens": 50}
CONTINUE = {"prompt": "Once", "max_tokens": 50}
ANSWER = {"input": "Greet me.", "max_output_tokens": 50}
DRAW = {"prompt": "a sail", "n": 1}
SPEAK = {"input": "Good morning to you.", "response_format": "pcm", "voice": "stored"}

ENDPOINTS = [
    Endpoint("chat", "/v1/chat/completions", "chat", "whole", ASK),
    Endpoint("completions", "/v1/completions", "chat", "whole", CONTINUE),
    Endpoint("responses", "/v1/responses", "chat", "whole", ANSWER),
    Endpoint("embeddings", "/v1/embeddings", "embed", "whole", {"input": "One text."}),
    Endpoint("embeddings by generate", "/v1/embeddings", "embed-json", "whole", {"input": "One text."}),
    Endpoint("rerank", "/v1/rerank", "rank", "whole", {"query": "rice?", "documents": ["rice.", "a ship."]}),
    Endpoint("images", "/v1/images/generations", "draw", "whole", DRAW),
    Endpoint("transcriptions", "/v1/audio/transcriptions", "hear", "whole", {"language": "en"}),
    Endpoint("speech", "/v1/audio/speech", "speak", "sound", SPEAK),
    Endpoint("chat, streamed", "/v1/chat/completions", "chat", "stream", {**ASK, "stream": True}),
    Endpoint("completions, streamed", "/v1/completions", "chat", "stream", {**CONTINUE, "stream": True}),
    Endpoint("responses, streamed", "/v1/responses", "chat", "stream", {**ANSWER, "stream": True}),
]
PAIR = replace(ENDPOINTS[0], model="chat-pair")
"""Of a model on two servers."""
