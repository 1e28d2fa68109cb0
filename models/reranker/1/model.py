"""MiniLM's similarity as a cross-encoder's logit, for a gateway that tokenises the pairs itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "minilm"))

from encoder import MAX_TOKENS, WIDTH, Encoder

CLS, SEP = 101, 102
# A cosine of MIDDLE is as likely relevant as not; unrelated texts lie near 0.1, answers near 0.7.
MIDDLE, SLOPE = 0.35, 12.0
INPUTS = ("input_ids", "attention_mask", "token_type_ids")

Pair = tuple[list[int], list[int]]


class TritonPythonModel:
    """`input_ids`, `attention_mask`, `token_type_ids` INT64 [n,tokens] to `logits` FP32 [n,1]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the weights once."""
        self.encoder = Encoder()
        self.words = len(self.encoder.weights["embeddings.word_embeddings.weight"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Score all pairs of the batch together; one response each, in their order."""
        read = [self._read(request) for request in requests]
        tokens = [part for pairs in read if isinstance(pairs, list) for pair in pairs for part in pair]
        vectors = self.encoder.embed(tokens).reshape(-1, 2, WIDTH)
        logits = SLOPE * (np.einsum("nd,nd->n", vectors[:, 0], vectors[:, 1]) - MIDDLE)
        responses, start = [], 0
        for pairs in read:
            if isinstance(pairs, str):
                error = pb_utils.TritonError(pairs, pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            own = logits[start : start + len(pairs)].astype(np.float32).reshape(-1, 1)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("logits", own)]))
            start += len(pairs)
        return responses

    def _read(self, request: Any) -> list[Pair] | str:
        """Return the pairs of a request, or why it has none."""
        tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in INPUTS]
        if any(tensor is None for tensor in tensors):
            return f"{', '.join(INPUTS)} are all needed"
        ids, mask, types = (tensor.as_numpy() for tensor in tensors)
        if ids.size and (ids.min() < 0 or ids.max() >= self.words):
            return f"input_ids must be between 0 and {self.words - 1}"
        if any(not row.any() for row in mask * types):
            return "token_type_ids must be 1 for the tokens of the document"
        return [_split(*row) for row in zip(ids, mask > 0, types, strict=True)]


def _split(ids: NDArray[np.int64], read: NDArray[np.bool_], types: NDArray[np.int64]) -> Pair:
    """Return the query and the document, each as the encoder wants a text: [CLS] … [SEP], not too long."""

    def part(kind: int) -> list[int]:
        own = [int(token) for token in ids[read & (types == kind)] if token not in (CLS, SEP)]
        return [CLS, *own[: MAX_TOKENS - 2], SEP]

    return part(0), part(1)
