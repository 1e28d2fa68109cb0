"""The narrow waist: what an endpoint asks of a model and what a model tells it, whatever tensors lie between.

The field names of a job, or the names given here, are the sources of a profile's [models.in]; None: not asked for.
"""

from typing import Any

import msgspec
from msgspec import field

from upstream.tensors import Array


class Generation(msgspec.Struct):
    """Text to be generated."""

    prompt: str
    stream: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: list[str] | None = None
    seed: int | None = None
    n: int | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = None  # how many candidates beside the chosen token
    wants_logprobs: bool | None = None  # True, or None
    json_schema: str | None = None  # JSON text
    guide: str | None = None  # the kind of guide that is given: json_schema
    grammar: str | None = None
    images: list[str] | None = None  # base64
    suffix: str | None = None
    extra: dict[str, Any] = {}


class Embed(msgspec.Struct):
    """Texts to vectors; as texts or as tokens, each [rows, tokens] and padded."""

    input: list[str] | str | list[int] | None = None  # of a request that takes one input: that one
    ids: Array | None = field(name="tokens.ids", default=None)
    mask: Array | None = field(name="tokens.mask", default=None)
    types: Array | None = field(name="tokens.types", default=None)
    dimensions: int | None = None
    pooling_params: dict[str, list[int]] | None = None  # dimensions as the vLLM backend wants them
    extra: dict[str, Any] = {}


class Rank(msgspec.Struct):
    """A query and documents to scores."""

    query: str | None = None
    document: list[str] | None = None
    ids: Array | None = field(name="tokens.ids", default=None)  # of the pairs, each [rows, tokens] and padded
    mask: Array | None = field(name="tokens.mask", default=None)
    types: Array | None = field(name="tokens.types", default=None)
    extra: dict[str, Any] = {}


class Draw(msgspec.Struct):
    """A picture from words."""

    prompt: str
    negative_prompt: str | None = None
    n: int | None = None
    size: str | None = None  # WIDTHxHEIGHT
    width: int | None = field(name="size.width", default=None)
    height: int | None = field(name="size.height", default=None)
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    quality: str | None = None
    style: str | None = None
    background: str | None = None
    partial_images: int | None = None  # how many unfinished pictures a decoupled model shall show first
    extra: dict[str, Any] = {}


class Speak(msgspec.Struct):
    """Speech from text; `wav` is FP32 mono at the rate that the profile says."""

    text: str
    wav: Array | None = field(name="voice.wav", default=None)
    wav_length: int | None = field(name="voice.len", default=None)
    wav_text: str | None = field(name="voice.text", default=None)
    voice: str | None = field(name="voice.name", default=None)
    speed: float | None = None
    language: str | None = None
    instructions: str | None = None
    extra: dict[str, Any] = {}


class Transcribe(msgspec.Struct):
    """Text from a window of sound, FP32 mono at the rate that the profile says."""

    audio: Array
    length: int = field(name="audio.len", default=0)
    language: str | None = None
    task: str = "transcribe"
    prefix: str | None = None
    prompt: str | None = None
    temperature: float | None = None
    extra: dict[str, Any] = {}


class TokenLogprob(msgspec.Struct):
    """A token, its log probability (natural), and the likeliest candidates in its place."""

    token: str
    logprob: float
    top: list["TokenLogprob"] = []


class Delta(msgspec.Struct):
    """One piece of an answer, in the order the model made it; `index` is its choice."""

    text: str = ""
    finish: str | None = None  # stop, length, or the engine's own word, once it has ended
    index: int = 0
    logprobs: list[TokenLogprob] | None = None


class Usage(msgspec.Struct):
    """Tokens as the model counted them; None where it does not count."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None  # of the prompt's, those that the model had in its cache
