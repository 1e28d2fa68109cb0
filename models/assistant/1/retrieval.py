"""The passages that the assistant knows, and how near each is to a question."""

from __future__ import annotations

import math
import random
import re
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sampling import Sampling

HOME = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HOME.parent / "minilm"))

from encoder import Encoder, load_tokenizer  # noqa: E402

LONGEST = 110  # words of a passage: about what the encoder reads of a text
CANDIDATES = 5
# Below this similarity a passage is about something else.
NEAR = 0.25
# How far apart two similarities must be for temperature 1 to prefer the nearer e times as often.
SPREAD = 0.05
REMEMBERED = 2048
IGNORANT = (
    "I am a retrieval assistant, not a language model: I answer from Conch's own documentation, "
    "and I found nothing there about this."
)


@dataclass(frozen=True)
class Passage:
    """A paragraph and the heading over it."""

    heading: str
    text: str


@dataclass(frozen=True)
class Choice:
    """A possible answer and its share of the probability."""

    text: str
    weight: float


class Library:
    """The passages with their vectors [passages, 384], and a memory of what was encoded before."""

    def __init__(self) -> None:
        self.encoder = Encoder()
        # The encoder's own cuts a text at what it reads of it.
        self.tokenizer = load_tokenizer()
        self.passages = read_passages()
        texts = [f"{passage.heading}: {passage.text}" for passage in self.passages]
        self.vectors = self.encoder.encode(texts)[0]
        self._memory: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def vector(self, text: str) -> NDArray[np.float32]:
        """Return the unit vector [384] of a text."""
        with self._lock:
            known = self._memory.get(text)
        if known is None:
            known = self.encoder.encode([text])[0][0]
            with self._lock:
                self._memory[text] = known
                while len(self._memory) > REMEMBERED:
                    self._memory.popitem(last=False)
        return known

    def similarity(self, one: str, other: str) -> float:
        """Return the cosine of two texts."""
        return float(self.vector(one) @ self.vector(other))

    def answers(self, question: str, sampling: Sampling) -> list[Choice]:
        """Return the best passages and their shares after temperature, top_k, top_p and min_p; best first."""
        scores = self.vectors @ self.vector(question)
        best = [int(index) for index in np.argsort(-scores)[:CANDIDATES] if scores[index] >= NEAR]
        if not best:
            return [Choice(IGNORANT, 1.0)]
        if sampling.temperature == 0:
            best = best[:1]
        heat = SPREAD * max(sampling.temperature, 1e-3)
        weights = [math.exp((float(scores[index]) - float(scores[best[0]])) / heat) for index in best]
        kept = _truncate(weights, sampling)
        return [Choice(self.passages[best[at]].text, share) for at, share in enumerate(kept)]


def _truncate(weights: list[float], sampling: Sampling) -> list[float]:
    shares = [weight / sum(weights) for weight in weights]
    kept: list[float] = []
    for share in shares:
        beyond = sum(kept) >= sampling.top_p or (0 < sampling.top_k <= len(kept)) or share < sampling.min_p * shares[0]
        if kept and beyond:
            break
        kept.append(share)
    return [share / sum(kept) for share in kept]


def draw(choices: list[Choice], seed: int | None, index: int) -> int:
    """Return which choice the `index`-th answer takes: always the same for the same seed."""
    source = random.Random() if seed is None else random.Random(f"{seed}/{index}")
    return source.choices(range(len(choices)), [choice.weight for choice in choices])[0]


def read_passages() -> list[Passage]:
    """Return the passages of knowledge.md and, where this model stands in Conch's repository, of its documentation."""
    root = HOME.parents[1]
    files = [HOME / "knowledge.md", root / "README.md", *sorted((root / "docs").glob("*.md"))]
    return [passage for file in files if file.is_file() for passage in _split(file.read_text("utf-8"))]


def _split(markdown: str) -> list[Passage]:
    passages: list[Passage] = []
    heading = "Conch"
    unfenced = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    for block in re.split(r"\n\s*\n|\n(?=#)", unfenced):
        first, _, rest = block.strip().partition("\n")
        if first.startswith("#"):
            heading, block = first.strip("# "), rest
        text = _plain(block)
        if len(text.split()) >= 5:
            passages.append(Passage(heading, " ".join(text.split(" ")[:LONGEST])))
    return passages


def _plain(block: str) -> str:
    if block.lstrip().startswith(("|", "<", "![")):
        return ""
    linked = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", block)
    return re.sub(r"\s+", " ", re.sub(r"[*`]|^\s*[-*>]\s", "", linked, flags=re.MULTILINE)).strip()
