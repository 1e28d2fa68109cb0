"""Triton's python model around the MiniLM encoder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from encoder import Encoder


class TritonPythonModel:
    """`text` BYTES [n,1] to `embedding` FP32 [n,384] and `tokens` INT32 [n,1]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the weights once."""
        self.encoder = Encoder()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Encode all requests of the batch together; one response each, in their order."""
        texts = [_texts(request) for request in requests]
        vectors, counts = self.encoder.encode([text for batch in texts for text in batch])
        responses, start = [], 0
        for batch in texts:
            end = start + len(batch)
            tensors = [
                pb_utils.Tensor("embedding", vectors[start:end]),
                pb_utils.Tensor("tokens", counts[start:end].reshape(-1, 1)),
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
            start = end
        return responses


def _texts(request: Any) -> list[str]:
    values = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
    # Bytes that are not UTF-8 must not fail the other requests of the batch.
    return [bytes(value).decode("utf-8", "replace") for value in np.ravel(values)]
