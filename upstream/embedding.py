"""Embedding models: texts, or token ids, to tensors in batches, and what comes back to float32 vectors."""

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from upstream import rows
from upstream.binding import Inputs, Rows
from upstream.contract import Contract, NotBound, Profile, output
from upstream.errors import BadReply, ContextExceeded, ModelFailed, Unsupported
from upstream.inference import Embed
from upstream.tensors import Array, pack, total
from upstream.tokens import SOURCES, Tokenizer, TokenSettings, TokenTensors, TooLong, bound, check_lengths

if TYPE_CHECKING:
    from upstream.deployment import Deployment

T = TypeVar("T")

ALWAYS = SOURCES | {"input"}
FLOATS = {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8"}  # with numpy's names for them
INLINE = 1 << 16  # bytes that numpy goes through in less time than a thread takes to answer

_read_vector = msgspec.json.Decoder(list[float]).decode


class EmbeddingSettings(TokenSettings, Protocol):
    """The part of [models.embedding] that a binding reads."""

    @property
    def pooling(self) -> str: ...
    @property
    def normalize(self) -> bool: ...
    @property
    def prefix(self) -> str: ...
    @property
    def matryoshka(self) -> bool: ...
    @property
    def accepts_token_ids(self) -> bool: ...


class EmbeddingProfile(Profile, Protocol):
    """The part of a [[models]] entry that an embedding binding reads."""

    @property
    def embedding(self) -> EmbeddingSettings: ...


class Vectors(NamedTuple):
    """A vector per input, in their order, each as little-endian float32; the tokens that they were made of.

    `seconds` is how long the model took, with the pooling where that is ours.
    """

    rows: list[bytes]
    prompt_tokens: int
    seconds: float


class EmbeddingBinding:
    """An embedding model's profile on its live contract. Raises NotBound for one that does not fit."""

    def __init__(self, profile: EmbeddingProfile, contract: Contract) -> None:
        self.settings = profile.embedding
        self.contract = contract
        self.inputs = Inputs(profile, contract, Embed, ALWAYS)
        self.sources = self.inputs.sources
        self.left_out = list(self.inputs.left_out)
        self.tokens = TokenTensors(profile, contract, self.settings)
        tensors = bound(profile, contract)
        self.takes_tokens = "tokens.ids" in tensors
        self.takes_rows = "input" in tensors
        if self.takes_tokens == ("input" in self.sources):
            raise NotBound("the profile must put either input or tokens.ids into a tensor of [models.in]")
        self._check_settings()
        self.most = rows.most(contract, tensors.get("tokens.ids" if self.takes_tokens else "input"))
        self.sends_dimensions = bool({"dimensions", "pooling_params"} & self.sources)
        self._bind_outputs(profile)

    def check_dimensions(self, asked: int | None) -> int | None:
        """How many numbers a vector is to be cut to; None: it stays as it comes. Raises Unsupported."""
        if asked is None or self.sends_dimensions or asked == self.size:
            return None
        if not self.settings.matryoshka:
            known = f"its vectors have {self.size} numbers" if self.size else "its vectors have one size"
            raise Unsupported("dimensions", f"this deployment cannot change it; {known}")
        if self.size is not None and asked > self.size:
            raise Unsupported("dimensions", f"this deployment's vectors have {self.size} numbers")
        return asked

    def vectors(self, array: Array, lengths: Sequence[int], cut: int | None) -> list[bytes]:
        """The vectors of a batch; `lengths` are its rows' tokens, where it was sent tokens, else anything.

        Raises BadReply for a shape that does not fit, ModelFailed for what is no vector.
        """
        if self.encoding == "json":
            array = _from_json(array)
        count = len(lengths)
        if array.dtype not in FLOATS or array.size % count or not array.size:
            raise BadReply(f"{self.tensor!r} came as {array.dtype}{list(array.shape)} for {count} inputs")
        if self.plain and cut is None and array.dtype == "FP32":
            width = len(array.data) // count
            return [bytes(array.data[at : at + width]) for at in range(0, len(array.data), width)]
        return _finished(array, lengths, cut, self.settings)

    def _check_settings(self) -> None:
        settings = self.settings
        if self.takes_tokens:
            if settings.tokenizer is None and not settings.accepts_token_ids:
                raise NotBound("the model takes tokens: name its tokenizer.json in [models.embedding] tokenizer")
        elif settings.pooling != "none":
            raise NotBound("pooling is for models that take tokens; this one takes texts")
        elif self.takes_rows and settings.accepts_token_ids:
            raise NotBound("accepts_token_ids is for models that take tokens; this one takes texts")

    def _bind_outputs(self, profile: Profile) -> None:
        entry, tensor = output(profile, self.contract, "embedding")
        self.tensor = tensor.name
        self.encoding: str = "raw" if isinstance(entry, str) else entry.encoding
        possible = ("BYTES",) if self.encoding == "json" else tuple(FLOATS)
        if tensor.dtype not in possible:
            raise NotBound(f"{tensor.name!r} is {tensor.dtype}; in this encoding, vectors are {', '.join(possible)}")
        settings = self.settings
        if self.contract.max_batch_size > 0 and len(tensor.dims) > 1 and settings.pooling == "none":
            raise NotBound(f"{tensor.name!r} has a vector for each token: set pooling in [models.embedding]")
        self.plain = (tensor.dtype, settings.pooling, settings.normalize) == ("FP32", "none", False)
        self.size = tensor.dims[-1] if tensor.dims[-1] > 0 and self.encoding == "raw" else None
        self.counts = rows.counter(profile, self.contract, self.left_out)
        self.outputs = [self.tensor, *([self.counts] if self.counts else [])]


class _Read:
    """The inputs as the model takes them: texts, or tokens."""

    def __init__(self, binding: EmbeddingBinding, inputs: Sequence[Any]) -> None:
        self.binding = binding
        self.inputs = inputs
        self.types: list[list[int]] = []
        self.lengths = [0] * len(inputs)  # in tokens, where they are made or counted here
        self.filler = 0

    def order(self) -> Sequence[int]:
        """Inputs of like length beside each other, so that little of a batch is padding."""
        return sorted(range(len(self.inputs)), key=self.lengths.__getitem__)

    def job(self, base: Embed, part: Sequence[int]) -> Embed:
        """What is asked for these inputs."""
        own = [self.inputs[index] for index in part]
        if self.binding.takes_tokens:
            types = [self.types[index] for index in part]
            return replace(base, **self.binding.tokens.arrays(own, types, self.filler))
        return replace(base, input=Rows(own) if self.binding.takes_rows else own[0])


async def embed(
    deployment: "Deployment",
    inputs: list[str] | list[list[int]],
    dimensions: int | None,
    extra: Mapping[str, Any],
    progress: rows.Progress,
) -> Vectors:
    """The vectors of texts, or of token ids where the profile says that the model accepts a client's.

    Raises TooLong, Unsupported for what the model cannot honour, another UpstreamError, or Abandoned.
    """
    binding = deployment.binding
    assert isinstance(binding, EmbeddingBinding)
    cut = binding.check_dimensions(dimensions)
    read = await _read(binding, deployment.prepared, inputs)
    pooling = None if dimensions is None else {"dimensions": [dimensions]}
    base = Embed(dimensions=dimensions, pooling_params=pooling, extra=dict(extra))

    async def ask(part: Sequence[int]) -> list[bytes]:
        try:
            answer = await rows.ask(deployment, binding.inputs, binding.outputs, read.job(base, part), len(part))
        except ContextExceeded as error:
            raise TooLong(part[0] if len(part) == 1 else None) from error
        lengths = [read.lengths[index] for index in part]
        progress.tokens += total(binding.counts, answer[binding.counts]) if binding.counts else sum(lengths)
        array = answer[binding.tensor]
        if binding.plain and cut is None:
            return binding.vectors(array, lengths, cut)
        return await in_bulk(lambda: binding.vectors(array, lengths, cut), len(array.data))

    started = time.perf_counter()
    parts = list(rows.batches(read.order(), binding.most))
    answers = await rows.gather([partial(ask, part) for part in parts], progress.wanted)
    seconds = time.perf_counter() - started
    vectors = [b""] * len(inputs)
    for part, own in zip(parts, answers, strict=True):
        for index, vector in zip(part, own, strict=True):
            vectors[index] = vector
    if dimensions is not None and len(vectors[0]) != 4 * dimensions:
        raise BadReply(f"vectors of {len(vectors[0]) // 4} numbers where {dimensions} were asked for")
    return Vectors(vectors, progress.tokens, seconds)


async def in_bulk(work: Callable[[], T], size: int) -> T:
    """What `work` makes of `size` bytes with numpy: in a thread, unless they are few and numpy has been imported."""
    if size <= INLINE and "numpy" in sys.modules:
        return work()
    return await asyncio.to_thread(work)


async def _read(binding: EmbeddingBinding, tokenizer: Tokenizer | None, inputs: Sequence[Any]) -> _Read:
    """Tokenise what must be, or must be counted. Raises TooLong or Unsupported."""
    settings = binding.settings
    if not isinstance(inputs[0], str):
        if not settings.accepts_token_ids:
            raise Unsupported("input", "this deployment takes texts, not token ids: its tokens need not be yours")
        if binding.takes_tokens or tokenizer is not None:
            check_lengths(inputs, settings.max_tokens)
        read = _Read(binding, inputs)
        if tokenizer is not None:
            await tokenizer.check(inputs)
            read.filler = tokenizer.filler
        read.lengths = [len(row) for row in inputs]
        read.types = [[0] * length for length in read.lengths]
        return read
    texts = [settings.prefix + text for text in inputs] if settings.prefix else inputs
    read = _Read(binding, texts)
    if not binding.takes_tokens:
        if tokenizer is not None and (binding.counts is None or not all(map(tokenizer.surely_fits, texts))):
            read.lengths = list(map(len, await tokenizer.encode(texts)))
    elif tokenizer is None:
        raise Unsupported("input", "this deployment takes token ids, not texts")
    else:
        encodings = await tokenizer.encode(texts)
        read.inputs = [encoding.ids for encoding in encodings]
        read.types = [encoding.type_ids for encoding in encodings]
        read.lengths = [len(row) for row in read.inputs]
        read.filler = tokenizer.filler
    return read


def _from_json(array: Array) -> Array:
    """A vector that came as JSON text, as the vLLM backend gives it."""
    try:
        [text] = array.items() if array.dtype == "BYTES" else []
        vector = _read_vector(text)
    except ValueError as error:
        raise BadReply(f"a vector that is not a JSON list of numbers: {error}") from error
    return pack("FP32", [len(vector)], vector)


def _finished(array: Array, lengths: Sequence[int], cut: int | None, settings: EmbeddingSettings) -> list[bytes]:
    """Pool over the tokens, cut, scale to length 1: what sentence-transformers does after the model."""
    import numpy as np

    count = len(lengths)
    flat = np.frombuffer(array.data, FLOATS[array.dtype]).astype(np.float32, copy=False)
    if settings.pooling == "none":
        vectors = flat.reshape(count, -1)
    else:
        if len(array.shape) < 2 or array.shape[-2] < max(lengths) or array.size % (count * array.shape[-2]):
            raise BadReply(f"hidden states of shape {list(array.shape)} for {count} inputs of {max(lengths)} tokens")
        states = flat.reshape(count, array.shape[-2], -1)
        ends = np.array(lengths)
        if settings.pooling == "mean":
            mask = (np.arange(states.shape[1]) < ends[:, None]).astype(np.float32)
            vectors = np.einsum("ntd,nt->nd", states, mask) / ends[:, None].astype(np.float32)
        else:
            at = ends - 1 if settings.pooling == "last" else np.zeros(count, np.intp)
            vectors = states[np.arange(count), at]
    if cut is not None:
        if cut > vectors.shape[1]:
            raise Unsupported("dimensions", f"this deployment's vectors have {vectors.shape[1]} numbers")
        vectors = vectors[:, :cut]
    if settings.normalize or cut is not None:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    if not np.isfinite(vectors).all():
        raise ModelFailed("a vector that is not made of finite numbers")
    return [row.tobytes() for row in vectors.astype("<f4", copy=False)]
