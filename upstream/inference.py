"""The narrow waist: what an endpoint asks of a model and what a model tells it, whatever tensors lie between."""

from typing import Any

import msgspec


class Generation(msgspec.Struct):
    """Text to be generated. The field names are the sources of a profile's [models.in]; None means: not asked for."""

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
    logprobs: int | None = None
    json_schema: str | None = None
    extra: dict[str, Any] = {}


class Delta(msgspec.Struct):
    """One piece of an answer, in the order the model made it."""

    text: str = ""
    finish: str | None = None  # stop, length, or the engine's own word, once it has ended


class Usage(msgspec.Struct):
    """Tokens as the model counted them; None where it does not count."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
