"""espeak-ng behind a decoupled speech model: each sentence is sent as soon as it is spoken."""

from __future__ import annotations

import asyncio
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2] / "assistant" / "1")]

from serving import Engine, Refusal, Responses
from synthesis import FASTEST_SPEED, SLOWEST_SPEED, VOICES, Synthesiser, sentences
from tensors import first


class TritonPythonModel:
    """`text`, `voice`, `speed`, `language` to `waveform` FP32 [samples], many requests taking turns by the sentence."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the library on the one thread that may use it."""
        self.mouth = ThreadPoolExecutor(1, "espeak")
        self.synthesiser = self.mouth.submit(Synthesiser).result()
        self.engine = Engine(args["model_name"], "conch_voice_requests_total")

    def execute(self, requests: list[Any]) -> None:
        """Take the requests; the responses come from the engine's loop."""
        for request in requests:
            self.engine.submit(request, lambda request=request: self._speak(request))

    def finalize(self) -> None:
        """End what still runs."""
        self.engine.close()
        self.mouth.shutdown()

    async def _speak(self, request: Any) -> Responses:
        loop = asyncio.get_running_loop()
        text, name = first(request, "text"), first(request, "voice", "alloy")
        speed = float(first(request, "speed", 1.0))
        if text is None or not text.strip():
            raise Refusal("text is empty")
        if name not in VOICES:
            raise Refusal(f"unknown voice {name!r}: choose one of {', '.join(VOICES)}")
        if not (math.isfinite(speed) and SLOWEST_SPEED <= speed <= FASTEST_SPEED):
            raise Refusal(f"speed must be between {SLOWEST_SPEED} and {FASTEST_SPEED:g}")
        language = first(request, "language") or VOICES[name].language
        if not await loop.run_in_executor(self.mouth, self.synthesiser.speaks, language):
            raise Refusal(f"unknown language {language!r}")
        pieces = sentences(text)
        for index, piece in enumerate(pieces, start=1):
            wave = await loop.run_in_executor(self.mouth, self.synthesiser.say, piece, VOICES[name], language, speed)
            yield [pb_utils.Tensor("waveform", np.ascontiguousarray(wave))], index == len(pieces)
