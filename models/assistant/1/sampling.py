"""vLLM's SamplingParams as its Triton backend reads them, and the watch for stop strings."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

from serving import Refusal

CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
# Settings of structured outputs that constrain nothing by themselves.
MANNERS = ("disable_fallback", "disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")


@dataclass
class Sampling:
    """The fields of vLLM's SamplingParams with its defaults; what this model has no use for is only checked."""

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    max_tokens: int = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    flat_logprobs: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    truncate_prompt_tokens: int | None = None
    output_kind: int = 0
    structured_outputs: dict[str, Any] | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    extra_args: dict[str, Any] | None = None


def read_sampling(source: str) -> Sampling:
    """Return the parameters of a JSON object; Refusal for an unknown key or a value out of range, as vLLM raises."""
    try:
        given = json.loads(source)
    except json.JSONDecodeError as error:
        raise Refusal(f"Error generating stream: sampling parameters are not JSON: {error}") from None
    if not isinstance(given, dict):
        raise Refusal("Error generating stream: sampling parameters are not a JSON object")
    given = {key: value for key, value in given.items() if value is not None and not key.startswith("triton_")}
    if given.pop("lora_name", None) is not None:
        raise Refusal("LoRA feature is not enabled.")
    known = {entry.name: entry for entry in fields(Sampling)}
    read: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise Refusal(f"Error generating stream: Unexpected keyword argument '{key}'")
        read[key] = _convert(key, str(known[key].type), value)
    sampling = Sampling(**read)
    _check(sampling)
    return sampling


def _convert(key: str, kind: str, value: Any) -> Any:
    try:
        if key == "stop":
            return [value] if isinstance(value, str) else [str(entry) for entry in value]
        if key == "structured_outputs":
            # The backend calls json.loads on it: an object instead of a string is an error there too.
            return _read_constraint(json.loads(value))
        if kind.startswith("int"):
            return int(value)
        if kind.startswith("float"):
            return float(value)
        if kind.startswith("bool"):
            return value if isinstance(value, bool) else str(value).lower() == "true"
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Refusal(f"Error generating stream: {key}: {error}") from None
    return value


def _read_constraint(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError("not a JSON object")
    constraint = {key: value for key, value in given.items() if value is not None}
    for key in constraint:
        if key not in CONSTRAINTS + MANNERS:
            raise ValueError(f"Unexpected keyword argument '{key}'")
    if len([key for key in CONSTRAINTS if key in constraint]) != 1:
        raise ValueError("You must use exactly one kind of structured outputs constraint")
    return constraint


def _check(sampling: Sampling) -> None:
    rules = [
        (sampling.n >= 1, f"n must be at least 1, got {sampling.n}."),
        (-2 <= sampling.presence_penalty <= 2, "presence_penalty must be in [-2, 2]."),
        (-2 <= sampling.frequency_penalty <= 2, "frequency_penalty must be in [-2, 2]."),
        (0 < sampling.repetition_penalty <= 2, "repetition_penalty must be in (0, 2]."),
        (sampling.temperature >= 0, f"temperature must be non-negative, got {sampling.temperature}."),
        (0 < sampling.top_p <= 1, f"top_p must be in (0, 1], got {sampling.top_p}."),
        (sampling.top_k >= -1, f"top_k must be 0 (disable), or at least 1, got {sampling.top_k}."),
        (0 <= sampling.min_p <= 1, f"min_p must be in [0, 1], got {sampling.min_p}."),
        (sampling.max_tokens >= 1, f"max_tokens must be at least 1, got {sampling.max_tokens}."),
        (0 <= sampling.min_tokens <= sampling.max_tokens, "min_tokens must be in [0, max_tokens]."),
        (all(sampling.stop), "stop cannot contain an empty string."),
        (sampling.logprobs is None or 0 <= sampling.logprobs <= 20, "logprobs must be in [0, 20]."),
        (sampling.n == 1 or sampling.temperature > 0, "n must be 1 when using greedy sampling."),
    ]
    for holds, message in rules:
        if not holds:
            raise Refusal(f"Error generating stream: {message}")


class StopWatch:
    """Holds back text that may be the beginning of a stop string, so that no part of one is ever shown."""

    def __init__(self, stops: list[str], include: bool) -> None:
        self.stops = stops
        self.include = include
        self.stopped = False
        self._held = ""
        self._longest = max(map(len, stops), default=1) - 1

    def feed(self, piece: str, *, armed: bool = True) -> str:
        """Return the text that may be shown after `piece`. While not armed, nothing stops."""
        if not armed:
            return piece
        self._held += piece
        found = [(self._held.find(stop), stop) for stop in self.stops if stop in self._held]
        if found:
            start, stop = min(found)
            self.stopped = True
            return self._take(start + len(stop) if self.include else start)
        return self._take(max(0, len(self._held) - self._longest))

    def flush(self) -> str:
        """Return what was held back, when the answer has ended without a stop string."""
        return "" if self.stopped else self._take(len(self._held))

    def _take(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown
