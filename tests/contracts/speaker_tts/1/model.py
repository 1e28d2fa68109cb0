"""A speaker model in samples of 16 bits: spells what it received, a tenth of a second per response.

"silent" makes no sound at all; "break" fails after the first response, "wait" never ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "sd"))

from echo import received
from serving import Engine, Refusal, Responses
from tensors import first

CHUNK = 800


class TritonPythonModel:
    """A byte of what was received is one sample of 127 times its value."""

    def initialize(self, args: dict[str, str]) -> None:
        """Start the loop that the requests run on."""
        self.inputs = [entry["name"] for entry in json.loads(args["model_config"])["input"]]
        self.engine = Engine(args["model_name"], "conch_speaker_requests_total")

    def execute(self, requests: list[Any]) -> None:
        """Take the requests; the responses come from the loop."""
        for request in requests:
            self.engine.submit(request, lambda request=request: self._answer(request))

    def finalize(self) -> None:
        """End what still runs."""
        self.engine.close()

    async def _answer(self, request: Any) -> Responses:
        text = first(request, "INPUT_TEXT")
        spelt = np.frombuffer(received(request, self.inputs), np.uint8)
        samples = np.zeros(max(CHUNK * 3, -(-len(spelt) // CHUNK) * CHUNK), np.int16)
        samples[: len(spelt)] = spelt.astype(np.int16) * 127
        if text == "silent":
            yield [_wave(samples[:0])], True
            return
        for start in range(0, len(samples), CHUNK):
            last = start + CHUNK >= len(samples) and text != "wait"
            yield [_wave(samples[start : start + CHUNK])], last
            if text == "break":
                raise Refusal("the speaker has lost its voice")
        while text == "wait":
            await asyncio.sleep(0.005)
            yield [], False


def _wave(samples: Any) -> Any:
    return pb_utils.Tensor("OUTPUT_GENERATED_AUDIO", samples)
