"""Contract models for vectors, pictures and speech: each spells what it received, in the form its contract gives.

What it received is JSON, as in the text models: {"tensors": {name: {"shape": [...], "data": [...]}}, "parameters": {}};
of a tensor the first 16 elements. A picture has it as its bytes in row-major order, a wave as samples of byte / 256;
zeros follow. A prompt or target_text that begins with "fail:" fails with what follows.

A text with "wait: N" takes N milliseconds, unless the request is cancelled meanwhile, which is looked for every 5 ms.
Requests are counted on the metrics port as conch_contract_requests_total{model, outcome}.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "models" / "assistant" / "1"))

from serving import OUTCOMES, Engine, Refusal, Responses
from tensors import values

SHOWN = 16
WAIT = re.compile(r"wait: (\d+)")
SIDE = 64


def received(request: Any, inputs: list[str]) -> bytes:
    """Return what a request holds, as JSON. Refusal when a text in it asks for that."""
    tensors = {}
    for name in inputs:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            continue
        data = values(request, name)
        tensors[name] = {"shape": list(tensor.as_numpy().shape), "data": data[:SHOWN]}
        if isinstance(data[0], str) and data[0].startswith("fail:"):
            raise Refusal(data[0].removeprefix("fail:").strip())
    return json.dumps({"tensors": tensors, "parameters": json.loads(request.parameters())}, ensure_ascii=False).encode()


def needed(request: Any, name: str) -> Any:
    """Return a tensor's value. Refusal when it is missing, whatever the configuration calls optional."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise Refusal(f"{name} is missing from the request")
    return tensor.as_numpy()


class Once:
    """A model that answers each request with one response."""

    def initialize(self, args: dict[str, str]) -> None:
        """Note the inputs' names."""
        inputs = json.loads(args["model_config"])["input"]
        self.inputs = [entry["name"] for entry in inputs]
        self.texts = [entry["name"] for entry in inputs if entry["data_type"] == "TYPE_STRING"]
        kind = pb_utils.MetricFamily.COUNTER
        self._family = pb_utils.MetricFamily(
            name="conch_contract_requests_total", description="Requests by how they ended", kind=kind
        )
        self._counters = {
            outcome: self._family.Metric(labels={"model": args["model_name"], "outcome": outcome})
            for outcome in OUTCOMES
        }

    def finalize(self) -> None:
        """Let the metrics go before their family does."""
        self._counters.clear()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer one after the other."""
        return [self._respond(request) for request in requests]

    def answer(self, request: Any) -> Any:
        """Return the output tensor. Refusal fails this request alone."""
        raise NotImplementedError

    def _respond(self, request: Any) -> Any:
        self._counters["started"].increment(1)
        outcome = "failed"
        try:
            if self._is_cancelled(request):
                outcome = "cancelled"
                error = pb_utils.TritonError("Request was cancelled", pb_utils.TritonError.CANCELLED)
                return pb_utils.InferenceResponse(error=error)
            response = pb_utils.InferenceResponse([self.answer(request)])
            outcome = "finished"
            return response
        except Refusal as refusal:
            error = pb_utils.TritonError(str(refusal), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        finally:
            self._counters[outcome].increment(1)

    def _is_cancelled(self, request: Any) -> bool:
        """Take the time that the request asks for, if it does; whether it was cancelled by then."""
        texts = [each for name in self.texts for each in values(request, name) or []]
        asked = [int(found[1]) for found in map(WAIT.search, texts) if found]
        end = time.monotonic() + max(asked, default=0) / 1000
        while asked and time.monotonic() < end:
            if request.is_cancelled():
                return True
            time.sleep(0.005)
        return False


class EmbedText(Once):
    """A vector is the length of the text in bytes, then the bytes, then zeros."""

    def answer(self, request: Any) -> Any:
        texts = [value.encode() for value in values(request, "INPUT_TEXT") or []]
        vectors = np.zeros((len(texts), 1024), np.float32)
        for row, spelt in zip(vectors, texts, strict=True):
            row[0] = len(spelt)
            row[1 : 1 + len(spelt)] = list(spelt[:1023])
        return pb_utils.Tensor("EMBEDDING", vectors)


class OnnxEmbed(Once):
    """A hidden state is its token's id, mask, type and position, the texts and the tokens of the batch, 1 and 0."""

    def answer(self, request: Any) -> Any:
        ids, mask, types = (needed(request, name) for name in ("input_ids", "attention_mask", "token_type_ids"))
        rows, length = ids.shape
        position = np.broadcast_to(np.arange(length), ids.shape)
        constants = [np.full(ids.shape, number) for number in (rows, length, 1, 0)]
        states = np.stack([ids, mask, types, position, *constants], axis=-1)
        return pb_utils.Tensor("last_hidden_state", states.astype(np.float32))


class Picture(Once):
    """Each picture of the batch spells the whole request."""

    dtype: ClassVar[type] = np.uint8

    def answer(self, request: Any) -> Any:
        rows = len(needed(request, "prompt"))
        spelt = np.zeros(SIDE * SIDE * 3, self.dtype)
        data = received(request, self.inputs)[: spelt.size]
        spelt[: len(data)] = list(data)
        return pb_utils.Tensor("generated_image", np.tile(spelt.reshape(1, SIDE, SIDE, 3), (rows, 1, 1, 1)))


class FloatPicture(Picture):
    """The same in floats."""

    dtype = np.float32


class Speech(Once):
    """One wave, at least half a second of it at 24 kHz."""

    least: ClassVar[int] = 12_000

    def answer(self, request: Any) -> Any:
        rows = len(needed(request, "target_text"))
        return pb_utils.Tensor("waveform", np.tile(wave(received(request, self.inputs), self.least), (rows, 1)))


class OverlappingSpeech:
    """The wave in chunks of 0.3 s at 16 kHz; each begins with the last 0.1 s of the one before, sample by sample."""

    least: ClassVar[int] = 16_000
    chunk: ClassVar[int] = 4_800
    overlap: ClassVar[int] = 1_600

    def initialize(self, args: dict[str, str]) -> None:
        """Start the loop that the requests run on."""
        self.inputs = [entry["name"] for entry in json.loads(args["model_config"])["input"]]
        self.engine = Engine(args["model_name"], "conch_contract_requests_total")

    def execute(self, requests: list[Any]) -> None:
        """Take the requests; the responses come from the loop."""
        for request in requests:
            self.engine.submit(request, lambda request=request: self._answer(request))

    def finalize(self) -> None:
        """End what still runs."""
        self.engine.close()

    async def _answer(self, request: Any) -> Responses:
        for name in self.inputs:
            needed(request, name)
        whole = wave(received(request, self.inputs), self.least)
        starts = range(0, len(whole) - self.overlap, self.chunk - self.overlap)
        for start in starts:
            yield [pb_utils.Tensor("waveform", whole[None, start : start + self.chunk])], start == starts[-1]


def wave(data: bytes, least: int) -> NDArray[np.float32]:
    """Return bytes as samples from 0 to 1, followed by silence up to `least` samples."""
    samples = np.zeros(max(len(data), least), np.float32)
    samples[: len(data)] = np.frombuffer(data, np.uint8) / 256
    return samples
