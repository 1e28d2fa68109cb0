"""The models of the bench's Triton: what each says of itself, and the one answer that it always gives."""

from __future__ import annotations

import json
import math
import struct
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

EVENTS = 64
WORD = " word"
PROMPT_TOKENS = 12
COMPLETION_TOKENS = 9
ANSWER = "The gateway turns chat requests into tensors."
SIDE = 512  # pixels of the picture's width and height
RATE, SPOKEN = 24_000, 3  # Hz and seconds of the sound
WIDTH = 384  # numbers of a vector

Tensors = Mapping[str, tuple[str, list[int]]]  # name → datatype, dims without the batch's


@dataclass(frozen=True)
class Model:
    """A model of the repository. `answer` makes the outputs of its /infer: each name's shape and bytes."""

    name: str
    inputs: Tensors
    outputs: Tensors
    optional: frozenset[str] = frozenset()
    max_batch_size: int = 0
    decoupled: bool = False
    answer: Callable[[], dict[str, tuple[list[int], bytes]]] | None = field(default=None, compare=False)

    @property
    def path(self) -> str:
        return f"/v2/models/{self.name}"

    def metadata(self) -> str:
        """What GET /v2/models/NAME says."""
        batch = [-1] if self.max_batch_size else []
        inputs, outputs = (
            [{"name": name, "datatype": kind, "shape": batch + dims} for name, (kind, dims) in tensors.items()]
            for tensors in (self.inputs, self.outputs)
        )
        return as_json(name=self.name, versions=["1"], platform="bench", inputs=inputs, outputs=outputs)

    def config(self) -> str:
        """What GET /v2/models/NAME/config says."""
        inputs = [
            {"name": name, "data_type": _data_type(kind), "dims": dims, "optional": name in self.optional}
            for name, (kind, dims) in self.inputs.items()
        ]
        outputs = [
            {"name": name, "data_type": _data_type(kind), "dims": dims} for name, (kind, dims) in self.outputs.items()
        ]
        return as_json(
            name=self.name,
            backend="bench",
            max_batch_size=self.max_batch_size,
            input=inputs,
            output=outputs,
            model_transaction_policy={"decoupled": self.decoupled},
        )

    def infer(self) -> tuple[int, bytes]:
        """The body of an /infer reply with binary data, and the length of its JSON."""
        assert self.answer is not None, "of a model that is asked by infer"
        made = self.answer()
        outputs = [
            {
                "name": name,
                "datatype": self.outputs[name][0],
                "shape": shape,
                "parameters": {"binary_data_size": len(data)},
            }
            for name, (shape, data) in made.items()
        ]
        head = as_json(model_name=self.name, model_version="1", outputs=outputs).encode()
        return len(head), head + b"".join(data for _, data in made.values())


def reply(model: str, text: str, finish: str, tokens: int) -> str:
    """The JSON of a generate reply of the vLLM contract, or of an event of its generate_stream."""
    return as_json(
        model_name=model,
        model_version="1",
        text_output=text,
        finish_reason=finish,
        num_input_tokens=PROMPT_TOKENS,
        num_output_tokens=tokens,
    )


def as_json(**fields: Any) -> str:
    return json.dumps(fields, separators=(",", ":"))


def vectors(count: int) -> bytes:
    """As many vectors, float32, each of its own numbers."""
    return b"".join(array("f", [math.sin(row + place) for place in range(WIDTH)]).tobytes() for row in range(count))


def sine(rate: int, seconds: int) -> array[float]:
    """A tone of 220 Hz."""
    return array("f", [0.5 * math.sin(2 * math.pi * 220 * place / rate) for place in range(rate * seconds)])


def _picture() -> bytes:
    rows = (bytes(channel for x in range(SIDE) for channel in (x & 255, y & 255, (x + y) & 255)) for y in range(SIDE))
    return b"".join(rows)


def _text(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode()


def _data_type(kind: str) -> str:
    return "TYPE_STRING" if kind == "BYTES" else f"TYPE_{kind}"


def _vllm(name: str) -> Model:
    """The contract of Triton's vLLM backend."""
    returns = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")
    flags = ["stream", "exclude_input_in_output", *(f"return_{what}" for what in returns)]
    inputs = {"text_input": ("BYTES", [1]), "image": ("BYTES", [-1])} | {flag: ("BOOL", [1]) for flag in flags}
    inputs |= {"sampling_parameters": ("BYTES", [1]), "embedding_request": ("BYTES", [1])}
    kinds = {"text_output": "BYTES", "finish_reason": "BYTES", "cumulative_logprob": "FP32", "logprobs": "BYTES"}
    outputs = {output: (kind, [-1]) for output, kind in kinds.items()}
    outputs |= {"num_input_tokens": ("UINT32", [1]), "num_output_tokens": ("UINT32", [-1])}
    return Model(name, inputs, outputs, frozenset(inputs) - {"text_input"}, decoupled=True)


def _embedder(count: int) -> Model:
    """A model of texts that always gives `count` vectors, and says that each text had 8 tokens."""
    tokens = array("i", [8] * count).tobytes()
    return Model(
        f"embed-{count}",
        {"INPUT_TEXT": ("BYTES", [1])},
        {"EMBEDDING": ("FP32", [WIDTH]), "TOKENS": ("INT32", [1])},
        max_batch_size=64,
        answer=lambda: {"EMBEDDING": ([count, WIDTH], vectors(count)), "TOKENS": ([count, 1], tokens)},
    )


CHAT = _vllm("assistant")
PACED = _vllm("paced")  # at the replayer
EMBEDDERS = {count: _embedder(count) for count in (1, 64)}
DIFFUSION = Model(
    "diffusion",
    {"prompt": ("BYTES", [1])},
    {"generated_image": ("UINT8", [SIDE, SIDE, 3])},
    max_batch_size=4,
    answer=lambda: {"generated_image": ([1, SIDE, SIDE, 3], _picture())},
)
VOICE = Model(
    "voice",
    {"target_text": ("BYTES", [1])},
    {"waveform": ("FP32", [-1])},
    max_batch_size=4,
    answer=lambda: {"waveform": ([1, RATE * SPOKEN], sine(RATE, SPOKEN).tobytes())},
)
LISTENER = Model(
    "listener",
    {"WAV": ("FP32", [-1]), "WAV_LENS": ("INT32", [1])},
    {"TRANSCRIPTS": ("BYTES", [1])},
    max_batch_size=16,
    answer=lambda: {"TRANSCRIPTS": ([1, 1], _text(ANSWER))},
)
STATIC = [CHAT, *EMBEDDERS.values(), DIFFUSION, VOICE, LISTENER]
