"""Text models: a Generation to the body of a request, and what comes back to deltas, usage, finish reasons."""

from collections.abc import Mapping
from typing import Any

import msgspec

from upstream.binding import Inputs, default_of
from upstream.contract import Contract, NotBound, Profile
from upstream.errors import BadReply, ModelFailed
from upstream.inference import Delta, Generation, TokenLogprob, Usage
from upstream.stops import StopTrimmer
from upstream.tensors import Array

ALWAYS = frozenset({"prompt", "stream"})
FAILURES = frozenset({"abort", "cancelled", "error", "timeout"})  # an engine's words for an answer that it gave up
PRICED = (("input", "prompt_tokens"), ("cached_input", "cached_tokens"), ("output", "completion_tokens"))
# What each tensor of an answer is in JSON: of one element a scalar, of several a list.
TEXT, COUNT = str | list[str | None] | None, int | float | list[int | float] | None
MEANINGS: dict[str, Any] = {
    "text": TEXT,
    "finish": TEXT,
    "prompt_tokens": COUNT,
    "completion_tokens": COUNT,
    "cached_tokens": COUNT,
    "logprobs": TEXT,
}


class TextBinding:
    """A text model's profile on its live contract: `encode` makes the request body, `reader` reads what comes back.

    Raises NotBound when the model needs a tensor that the profile never fills, or lacks the one that carries the text.
    """

    def __init__(self, profile: Profile, contract: Contract) -> None:
        self.contract = contract
        self.inputs = Inputs(profile, contract, Generation, ALWAYS)
        self.sources = self.inputs.sources
        self.left_out = list(self.inputs.left_out)
        self.default_max_tokens: int | None = default_of("max_tokens", profile)
        for name in (*self.inputs.constants, *(name for name, _ in self.inputs.reads)):
            tensor = self.inputs.tensors.get(name)
            if tensor is not None and tensor.dtype in ("FP16", "BF16"):
                raise NotBound(f"{name!r} is {tensor.dtype}, which Triton does not take as JSON")
        self._bind_outputs(profile.outputs, {tensor.name for tensor in contract.outputs})
        self._check_counts(profile.price)

    def encode(self, generation: Generation) -> bytes:
        """The body of a generate or generate_stream request."""
        return self.inputs.json(generation)

    def reader(self, generation: Generation) -> "Reader":
        """A fresh reader for the answer to `generation`."""
        return Reader(self, generation)

    def event(self, arrays: Mapping[str, Array]) -> Any:
        """A gRPC response as the event that `decode` would have made of its JSON. Raises BadReply."""
        try:
            fields = {name: _told(arrays[name]) for name in self.names.values() if name in arrays}
            return msgspec.convert(fields, self._event)
        except ValueError as error:
            raise BadReply(f"a response that is not what it should be: {error}") from error

    def _bind_outputs(self, outputs: Mapping[str, Any], live: set[str]) -> None:
        text = outputs.get("text")
        if text is None:
            raise NotBound("the profile names no tensor for text: add text to [models.out]")
        name = text if isinstance(text, str) else text.tensor
        if name not in live:
            raise NotBound(f"the model has no output {name!r}; it has: {', '.join(sorted(live))}")
        self.cumulative = not isinstance(text, str) and text.mode == "cumulative"
        self.trim_stop = not isinstance(text, str) and text.trim_stop
        finish = outputs.get("finish")
        self.infers_finish = finish == "infer"
        self.finish_unset: frozenset[str] = frozenset(() if finish is None or isinstance(finish, str) else finish.unset)
        total = outputs.get("completion_tokens")
        self.counts_total = not isinstance(total, str) and total is not None and total.mode == "total"
        self.names: dict[str, str] = {}
        for meaning in MEANINGS:
            entry = outputs.get(meaning)
            tensor = entry if isinstance(entry, str) or entry is None else entry.tensor
            if tensor in live:
                self.names[meaning] = tensor
            elif tensor is not None and tensor != "infer":
                self.left_out.append(tensor)
        self.reports_finish = "finish" in self.names
        fields: list[tuple[str, Any, Any]] = [
            ("error", str | None, None),
            *((name, told, None) for name, told in MEANINGS.items()),
        ]
        written = {"error": "error", **self.names}
        self._event = msgspec.defstruct("Event", fields, rename=lambda name: written.get(name, f" {name}"))
        self.decode = msgspec.json.Decoder(self._event).decode

    def _check_counts(self, price: Any) -> None:
        """What has a price must be counted."""
        for unit, count in PRICED:
            if price is not None and getattr(price, unit) and count not in self.names:
                raise NotBound(f"price.{unit} needs {count}, for which the model has no output")


class _Choice:
    """What is known of one of the n texts of an answer."""

    __slots__ = ("finished", "given", "trimmer", "whole")

    def __init__(self, stop: list[str] | None) -> None:
        self.whole = self.given = ""  # of a cumulative text: what the model has said, and what was passed on
        self.finished = False
        self.trimmer = StopTrimmer(stop) if stop else None

    def news(self, text: str, *, final: bool) -> str:
        """What a cumulative text adds; a half-decoded character at its end waits for its other half."""
        self.whole = text
        if not final:
            text = text.rstrip("\ufffd")
        news = text[len(self.given) :]
        self.given += news
        return news


class Reader:
    """Reads one answer: payloads in (a reply body, or the data of events), `Delta`s out, `usage` kept up to date."""

    def __init__(self, binding: TextBinding, generation: Generation) -> None:
        self.binding = binding
        self.usage = Usage()
        self._error: ModelFailed | None = None
        self._max_tokens = generation.max_tokens or binding.default_max_tokens
        stop = generation.stop if binding.trim_stop else None
        self._choices = [_Choice(stop) for _ in range(generation.n or 1)]
        self._plain = len(self._choices) == 1 and not stop and not binding.cumulative

    def read(self, payloads: list[bytes]) -> list[Delta]:
        """The deltas of these payloads. Raises ModelFailed for an error that Triton put into one of them: where good
        ones came with it, the next time."""
        deltas: list[Delta] = []
        try:
            self._raise()
            take = self._take_plain if self._plain else self.take
            for payload in payloads:
                event: Any = self.binding.decode(payload)
                if event.error is not None:
                    raise ModelFailed(event.error)
                take(event, deltas)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._error = ModelFailed(f"an answer that is not the expected JSON: {error}")
        except ModelFailed as error:
            self._error = error
        if not deltas:
            self._raise()
        return deltas

    def take(self, event: Any, deltas: list[Delta]) -> None:
        """Add the deltas of one response; a tensor of one element is a scalar or a list, of several a list."""
        self._count(event)
        for index, choice in enumerate(self._choices):
            delta = self._read(index, choice, event)
            if delta.text or delta.finish or delta.logprobs:
                deltas.append(delta)

    def _take_plain(self, event: Any, deltas: list[Delta]) -> None:
        """As `take` does, for one text that comes in pieces and is passed on as it is: at a third of the time."""
        text, finish, tokens = event.text, event.finish, event.completion_tokens
        usual = type(text) is str and (finish is None or type(finish) is str) and not event.logprobs
        if not usual or finish in FAILURES:
            self.take(event, deltas)
            return
        usage = self.usage
        counted, told = usage.completion_tokens, event.prompt_tokens
        if type(tokens) is int and counted is not None and told == usage.prompt_tokens and event.cached_tokens is None:
            usage.completion_tokens = tokens if self.binding.counts_total else counted + tokens
        else:
            self._count(event)
        if finish in self.binding.finish_unset:
            finish = None
        elif finish is not None:
            self._choices[0].finished = True
        if text or finish:
            deltas.append(Delta(text, finish))

    @property
    def finished(self) -> bool:
        """Whether the model has said why it stopped, and nothing went wrong."""
        return self._error is None and all(choice.finished for choice in self._choices)

    def end(self) -> list[Delta]:
        """What is still owed when the model has said all. Raises ModelFailed when it broke off without an end."""
        self._raise()
        return [self._end(index, choice) for index, choice in enumerate(self._choices) if not choice.finished]

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _end(self, index: int, choice: _Choice) -> Delta:
        if not self.binding.infers_finish and self.binding.reports_finish:
            raise ModelFailed("the answer ended without a finish reason")
        text = choice.news(choice.whole, final=True)
        if choice.trimmer:
            text = choice.trimmer.feed(text) + choice.trimmer.flush()
        stopped = choice.trimmer is not None and choice.trimmer.stopped
        tokens = self.usage.completion_tokens
        length = not stopped and tokens is not None and self._max_tokens is not None and tokens >= self._max_tokens
        choice.finished = True
        return Delta(text, "length" if length else "stop", index)

    def _read(self, index: int, choice: _Choice, event: Any) -> Delta:
        binding = self.binding
        finish = _at(event.finish, index)
        if finish in binding.finish_unset:
            finish = None
        if finish in FAILURES:
            raise ModelFailed(f"the engine gave the request up: {finish}")
        text = _at(event.text, index) or ""
        if binding.cumulative:
            text = choice.news(text, final=finish is not None)
        if choice.trimmer:
            text = choice.trimmer.feed(text)
            if finish is not None:
                text += choice.trimmer.flush()
        choice.finished = choice.finished or finish is not None
        told = _at(event.logprobs, index)
        return Delta(text, finish, index, _logprobs(told) if told else None)

    def _count(self, event: Any) -> None:
        usage = self.usage
        if event.prompt_tokens is not None:
            usage.prompt_tokens = _number(event.prompt_tokens)
        if event.cached_tokens is not None:
            usage.cached_tokens = _number(event.cached_tokens)
        if event.completion_tokens is not None:
            count = _number(event.completion_tokens)
            if self.binding.counts_total or usage.completion_tokens is None:
                usage.completion_tokens = count
            else:
                usage.completion_tokens += count


class _Told(msgspec.Struct):
    """One candidate of vLLM's {token id: {logprob, rank, decoded_token}}."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


_read_logprobs = msgspec.json.Decoder(list[dict[str, _Told]] | None).decode


def _logprobs(text: str) -> list[TokenLogprob] | None:
    """vLLM's JSON: per token the candidates, the chosen one first, then those of the highest rank."""
    try:
        steps = _read_logprobs(text)
    except msgspec.MsgspecError as error:
        raise ModelFailed(f"log probabilities that are not the expected JSON: {error}") from error
    if not steps:
        return None
    if not all(steps):
        raise ModelFailed("log probabilities of no token")
    logprobs = []
    for step in steps:
        told = [TokenLogprob(each.decoded_token or "", each.logprob) for each in step.values()]
        ranked = sorted(step.values(), key=lambda each: each.rank or 0)
        told[0].top = [TokenLogprob(each.decoded_token or "", each.logprob) for each in ranked]
        logprobs.append(told[0])
    return logprobs


def _told(array: Array) -> list[Any]:
    return [item.decode() if isinstance(item, bytes) else item for item in array.items()]


def _at(value: Any, index: int) -> Any:
    """The element of one choice; a tensor of one element comes as a scalar."""
    if type(value) is list:
        return value[index] if index < len(value) else None
    return value if index == 0 else None


def _number(value: Any) -> int:
    try:
        return int(sum(value)) if type(value) is list else int(value)
    except (ValueError, OverflowError) as error:
        raise ModelFailed("a count of tokens that is not finite") from error
