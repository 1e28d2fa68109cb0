"""Cross-encoders: a query with each document to a score between 0 and 1."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from math import exp, isfinite
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from msgspec.structs import replace

from upstream import rows
from upstream.binding import Inputs, Rows
from upstream.contract import Contract, NotBound, Profile, output
from upstream.errors import BadReply, ContextExceeded, ModelFailed
from upstream.inference import Rank
from upstream.tensors import Array, total
from upstream.tokens import SOURCES, Tokenizer, TokenSettings, TokenTensors, TooLong, bound

if TYPE_CHECKING:
    from upstream.deployment import Deployment

ALWAYS = SOURCES | {"query", "document"}
FLOATS = frozenset({"FP32", "FP16", "FP64"})


class RankProfile(Profile, Protocol):
    """The part of a [[models]] entry that a rerank binding reads."""

    @property
    def rerank(self) -> TokenSettings: ...


class Ranking(NamedTuple):
    """A score for each document, in their order; the tokens of all pairs; how long the model took, in seconds."""

    scores: list[float]
    prompt_tokens: int
    seconds: float


class RankBinding:
    """A cross-encoder's profile on its live contract. Raises NotBound for one that does not fit."""

    def __init__(self, profile: RankProfile, contract: Contract) -> None:
        self.contract = contract
        self.inputs = Inputs(profile, contract, Rank, ALWAYS)
        self.sources = self.inputs.sources
        self.left_out = list(self.inputs.left_out)
        self.tokens = TokenTensors(profile, contract, profile.rerank)
        tensors = bound(profile, contract)
        self.takes_tokens = "tokens.ids" in tensors
        if self.takes_tokens and profile.rerank.tokenizer is None:
            raise NotBound("the model takes tokens: name its tokenizer.json in [models.rerank] tokenizer")
        if self.takes_tokens == ({"query", "document"} <= tensors.keys()):
            raise NotBound("the profile must put either query and document or tokens.ids into tensors of [models.in]")
        self.most = rows.most(contract, tensors["tokens.ids" if self.takes_tokens else "document"])
        entry, tensor = output(profile, contract, "score")
        if tensor.dtype not in FLOATS:
            raise NotBound(f"{tensor.name!r} is {tensor.dtype}; scores are {', '.join(sorted(FLOATS))}")
        self.tensor = tensor.name
        self.activation: str = "sigmoid" if isinstance(entry, str) else entry.activation
        self.counts = rows.counter(profile, contract, self.left_out)
        self.outputs = [self.tensor, *([self.counts] if self.counts else [])]

    def scores(self, array: Array, count: int) -> list[float]:
        """A score for each of `count` documents. Raises BadReply or ModelFailed.

        One logit x is taken as the log-odds of relevance, two as those of "no" and "yes": 1 / (1 + e^-x), x = yes - no.
        """
        values = array.items() if array.dtype in FLOATS else []
        if len(values) not in (count, 2 * count):
            raise BadReply(f"{self.tensor!r} came as {array.dtype}{list(array.shape)} for {count} documents")
        if not all(map(isfinite, values)):
            raise ModelFailed("a score that is not a finite number")
        pairs = zip(values[::2], values[1::2], strict=True) if len(values) == 2 * count else []
        if self.activation == "none":
            return [yes for _, yes in pairs] or values
        return [_sigmoid(logit) for logit in [yes - no for no, yes in pairs] or values]


async def rank(
    deployment: "Deployment", query: str, documents: list[str], extra: Mapping[str, Any], progress: rows.Progress
) -> Ranking:
    """The scores of documents for a query. Raises TooLong for a pair that is, another UpstreamError, or Abandoned."""
    binding = deployment.binding
    assert isinstance(binding, RankBinding)
    tokenizer: Tokenizer | None = deployment.prepared
    base = Rank(query=query, extra=dict(extra))
    pairs = [(query, document) for document in documents]
    encodings = await tokenizer.encode(pairs) if tokenizer is not None else []
    # Pairs of like length go together, so that little of a batch is padding.
    lengths = [len(encoding) for encoding in encodings] or [0] * len(documents)
    parts = list(rows.batches(sorted(range(len(documents)), key=lengths.__getitem__), binding.most))

    def job(part: Sequence[int]) -> Rank:
        if not binding.takes_tokens:
            return replace(base, document=Rows(documents[index] for index in part))
        assert tokenizer is not None
        own = [encodings[index] for index in part]
        ids, types = [each.ids for each in own], [each.type_ids for each in own]
        return replace(base, **binding.tokens.arrays(ids, types, tokenizer.filler))

    async def ask(part: Sequence[int]) -> list[float]:
        try:
            answer = await rows.ask(deployment, binding.inputs, binding.outputs, job(part), len(part))
        except ContextExceeded as error:
            raise TooLong(part[0] if len(part) == 1 else None) from error
        own = [lengths[index] for index in part]
        progress.tokens += total(binding.counts, answer[binding.counts]) if binding.counts else sum(own)
        return binding.scores(answer[binding.tensor], len(part))

    started = time.perf_counter()
    answers = await rows.gather([partial(ask, part) for part in parts], progress.wanted)
    seconds = time.perf_counter() - started
    scores = [0.0] * len(documents)
    for part, own in zip(parts, answers, strict=True):
        for index, score in zip(part, own, strict=True):
            scores[index] = score
    return Ranking(scores, progress.tokens, seconds)


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + exp(-logit))
    return exp(logit) / (1 + exp(logit))  # the same, where e^-x would overflow
