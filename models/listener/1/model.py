"""Triton's python model around the recogniser: reads Whisper's tensors, refuses what is not English."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2] / "assistant" / "1")]

from recognition import Recogniser
from tensors import values

LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


class TritonPythonModel:
    """`WAV` FP32 [n,samples], `WAV_LENS` INT32 [n,1], `TEXT_PREFIX` BYTES [n,1] to `TRANSCRIPTS` BYTES [n,1]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the recogniser's model once."""
        self.recogniser = Recogniser()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Transcribe one wave after the other."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        waves = pb_utils.get_input_tensor_by_name(request, "WAV")
        prefixes, lengths = values(request, "TEXT_PREFIX"), values(request, "WAV_LENS")
        # Triton only counts the inputs of a request, so that any of them may be missing here.
        if waves is None or prefixes is None or lengths is None:
            return _refusal("WAV, WAV_LENS and TEXT_PREFIX are all needed")
        for prefix in prefixes:
            language = LANGUAGE.search(prefix)
            if language and language[1] != "en":
                return _refusal(f"this model hears English only, and was asked for {language[1]!r}")
        batch = waves.as_numpy()
        if any(not 0 <= length <= batch.shape[1] for length in lengths):
            return _refusal(f"WAV_LENS must be between 0 and the {batch.shape[1]} samples of WAV")
        texts = [self.recogniser.transcribe(wave[:length]) for wave, length in zip(batch, lengths, strict=True)]
        encoded = np.array([[text.encode()] for text in texts], np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("TRANSCRIPTS", encoded)])


def _refusal(message: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
