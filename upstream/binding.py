"""A profile bound to a live model: which tensor carries what, compiled once when the model's configuration arrives.

The profile says what a tensor means; dtype, shape, optionality and "decoupled" come from Triton's /v2/models/M/config.
"""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
import orjson

from upstream.errors import ModelFailed, Unsupported
from upstream.inference import Delta, Generation, Usage
from upstream.stops import StopTrimmer

Read = Callable[[Generation], Any]
Coerce = Callable[[Any, str], Any]

SOURCES = frozenset(Generation.__struct_fields__) - {"extra"}
ALWAYS = frozenset({"prompt", "stream"})
FAILURES = frozenset({"abort", "cancelled", "error", "timeout"})  # an engine's words for an answer that it gave up

_BOUNDS = {
    **{f"INT{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": (0, (1 << bits) - 1) for bits in (8, 16, 32, 64)},
}
_FP32_MAX = 3.4028234663852886e38
_KINDS: dict[str, tuple[type, str]] = {"BYTES": (str, "text"), "BOOL": (bool, "true or false")}
_FIELD = re.compile(r"\{([^{}]*)\}")


class NotBound(ValueError):
    """The profile does not fit the live model; the sentence says which tensor and what to change."""


class InputProfile(Protocol):
    """What a table of [models.in] says."""

    @property
    def source(self) -> str | None: ...
    @property
    def const(self) -> bool | int | float | str | None: ...
    @property
    def default(self) -> bool | int | float | str | None: ...
    @property
    def map(self) -> Mapping[str, Any] | None: ...
    @property
    def scale(self) -> float | None: ...
    @property
    def json(self) -> Mapping[str, Any] | None: ...
    @property
    def template(self) -> str | None: ...
    @property
    def param(self) -> bool: ...


class Profile(Protocol):
    """The part of a [[models]] entry that a binding reads."""

    @property
    def inputs(self) -> Mapping[str, Any]: ...
    @property
    def outputs(self) -> Mapping[str, Any]: ...


class Tensor(msgspec.Struct):
    """A tensor as /config declares it: dtype without TYPE_, dims without the batch dimension."""

    name: str
    data_type: str
    dims: list[int]
    optional: bool = False

    @property
    def dtype(self) -> str:
        """BYTES, BOOL, INT32, FP32 …: the name that the inference protocol uses."""
        kind = self.data_type.removeprefix("TYPE_")
        return "BYTES" if kind == "STRING" else kind


class Transaction(msgspec.Struct):
    decoupled: bool = False


class Contract(msgspec.Struct):
    """A model's live configuration, the part that a binding needs."""

    name: str = ""
    max_batch_size: int = 0
    inputs: list[Tensor] = msgspec.field(name="input", default_factory=list)
    outputs: list[Tensor] = msgspec.field(name="output", default_factory=list)
    transaction: Transaction = msgspec.field(name="model_transaction_policy", default_factory=Transaction)


read_contract = msgspec.json.Decoder(Contract).decode


class Binding:
    """A chat model's profile on its live contract: `encode` makes the request body, `reader` reads what comes back.

    Raises NotBound when the model needs a tensor that the profile never fills, or lacks the one that carries the text.
    """

    def __init__(self, profile: Profile, contract: Contract) -> None:
        self.contract = contract
        self.decoupled = contract.transaction.decoupled
        self.default_max_tokens: int | None = None
        sources: set[str] = set()
        self.constants: dict[str, Any] = {}
        self.reads: list[tuple[str, Read]] = []
        self.left_out: list[str] = []
        tensors = {tensor.name: tensor for tensor in contract.inputs}
        for name, entry in profile.inputs.items():
            if entry is not False:
                self._bind_input(name, entry, tensors.get(name), sources)
        self.sources = frozenset(sources)
        self._require(profile, contract)
        self._bind_outputs(profile.outputs, {tensor.name for tensor in contract.outputs})

    def encode(self, generation: Generation) -> bytes:
        """The body of a generate or generate_stream request."""
        body = dict(self.constants)
        for name, read in self.reads:
            value = read(generation)
            if value is not None:
                body[name] = value
        return orjson.dumps(body)

    def reader(self, generation: Generation) -> "Reader":
        """A fresh reader for the answer to `generation`."""
        return Reader(self, generation)

    def _bind_input(self, name: str, entry: str | InputProfile, tensor: Tensor | None, sources: set[str]) -> None:
        is_param = not isinstance(entry, str) and entry.param
        if tensor is None and not is_param:
            self.left_out.append(name)
            return
        coerce = _coerce(tensor) if tensor is not None else _scalar
        if not isinstance(entry, str) and entry.const is not None:
            self.constants[name] = _own(name, entry.const, coerce)
            return
        self.reads.append((name, _compile(name, entry, coerce, sources)))
        if not isinstance(entry, str):
            self.default_max_tokens = _default_of("max_tokens", entry) or self.default_max_tokens

    def _require(self, profile: Profile, contract: Contract) -> None:
        """Every tensor that the model requires must be filled in every request."""
        for tensor in contract.inputs:
            if tensor.optional:
                continue
            entry = profile.inputs.get(tensor.name, False)
            if entry is False:
                raise NotBound(
                    f"the model requires {tensor.name!r} ({tensor.dtype}) and the profile does not fill it:"
                    f" add it to [models.in]"
                )
            if isinstance(entry, str):
                if entry not in ALWAYS:
                    raise NotBound(
                        f"the model requires {tensor.name!r} and not every request has {entry!r}:"
                        f" write {tensor.name} = {{ from = {entry!r}, default = … }}"
                    )
            elif entry.source is not None and entry.source not in ALWAYS and entry.default is None:
                raise NotBound(f"the model requires {tensor.name!r}: give it a default in [models.in]")

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
        fields: list[tuple[str, Any, Any]] = [("error", str | None, None)]
        names: dict[str, str] = {}
        for meaning in ("text", "finish", "prompt_tokens", "completion_tokens"):
            entry = outputs.get(meaning)
            tensor = entry if isinstance(entry, str) or entry is None else entry.tensor
            fields.append((meaning, Any, None))
            if tensor in live:
                names[meaning] = tensor
            elif tensor is not None and tensor != "infer":
                self.left_out.append(tensor)
        self.reports_finish = "finish" in names
        struct = msgspec.defstruct(
            "Event",
            fields,
            rename=lambda meaning: names.get(meaning, f" {meaning}" if meaning != "error" else meaning),
        )
        self.decode = msgspec.json.Decoder(struct).decode


class Reader:
    """Reads one answer: payloads in (a reply body, or the data of events), `Delta`s out, `usage` kept up to date."""

    def __init__(self, binding: Binding, generation: Generation) -> None:
        self.binding = binding
        self.usage = Usage()
        self.finished = False
        self._whole = self._given = ""  # of a cumulative text: what the model has said, and what was passed on
        self._max_tokens = generation.max_tokens or binding.default_max_tokens
        self._trimmer = StopTrimmer(generation.stop) if binding.trim_stop and generation.stop else None

    def read(self, payloads: list[bytes]) -> list[Delta]:
        """The deltas of these payloads. Raises ModelFailed for an error that Triton put into one of them."""
        deltas = []
        for payload in payloads:
            delta = self._read(payload)
            if delta.text or delta.finish:
                deltas.append(delta)
        return deltas

    def end(self) -> list[Delta]:
        """What is still owed when the model has said all. Raises ModelFailed when it broke off without an end."""
        if self.finished:
            return []
        if not self.binding.infers_finish and self.binding.reports_finish:
            raise ModelFailed("the answer ended without a finish reason")
        text = self._news(self._whole, final=True)
        if self._trimmer:
            text = self._trimmer.feed(text) + self._trimmer.flush()
        stopped = self._trimmer is not None and self._trimmer.stopped
        tokens = self.usage.completion_tokens
        length = not stopped and tokens is not None and self._max_tokens is not None and tokens >= self._max_tokens
        self.finished = True
        return [Delta(text, "length" if length else "stop")]

    def _read(self, payload: bytes) -> Delta:
        binding = self.binding
        try:
            event: Any = binding.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ModelFailed(f"an answer that is not the expected JSON: {error}") from error
        if event.error is not None:
            raise ModelFailed(event.error)
        self._count(event)
        finish = _first(event.finish)
        if finish in binding.finish_unset:
            finish = None
        if finish in FAILURES:
            raise ModelFailed(f"the engine gave the request up: {finish}")
        text = _first(event.text) or ""
        if binding.cumulative:
            text = self._news(text, final=finish is not None)
        if self._trimmer:
            text = self._trimmer.feed(text)
            if finish is not None:
                text += self._trimmer.flush()
        self.finished = self.finished or finish is not None
        return Delta(text, finish)

    def _news(self, text: str, *, final: bool) -> str:
        """What a cumulative text adds; a half-decoded character at its end waits for its other half."""
        self._whole = text
        if not final:
            text = text.rstrip("\ufffd")
        news = text[len(self._given) :]
        self._given += news
        return news

    def _count(self, event: Any) -> None:
        usage = self.usage
        if event.prompt_tokens is not None:
            usage.prompt_tokens = _number(event.prompt_tokens)
        if event.completion_tokens is not None:
            count = _number(event.completion_tokens)
            if self.binding.counts_total or usage.completion_tokens is None:
                usage.completion_tokens = count
            else:
                usage.completion_tokens += count


def _default_of(source: str, entry: InputProfile) -> Any:
    """What stands in for a source in this tensor, or in a key of it, when a request does not have it."""
    for part in (entry, *(entry.json or {}).values()):
        if not isinstance(part, str) and part.source == source:
            return part.default
    return None


def _first(value: Any) -> Any:
    """A tensor of one element comes as a scalar, of several as a list: the first is this answer's."""
    if type(value) is list:
        return value[0] if value else None
    return value


def _number(value: Any) -> int:
    return int(sum(value)) if type(value) is list else int(value)


def _compile(name: str, entry: str | InputProfile, coerce: Coerce | None, sources: set[str]) -> Read:
    """One reading function for one tensor, or for one key of a JSON tensor."""
    if isinstance(entry, str):
        get = _source(name, entry, sources)
        if coerce is None:
            return get
        return lambda generation: None if (value := get(generation)) is None else coerce(value, entry)
    if entry.json is not None:
        return _compile_json(name, entry.json, sources)
    if entry.template is not None:
        return _compile_template(name, entry.template, sources)
    if entry.source is None:
        raise NotBound(f"{name!r} in [models.in] says nothing: write from, const, json or template")
    return _compile_from(name, entry, entry.source, coerce or _as_it_is, sources)


def _compile_from(name: str, entry: InputProfile, source: str, coerce: Coerce, sources: set[str]) -> Read:
    """source → map → scale → dtype; the default stands for an absent source as it is written."""
    get = _source(name, source, sources)
    default = None if entry.default is None else _own(name, entry.default, coerce)
    mapping, scale = entry.map, entry.scale

    def read(generation: Generation) -> Any:
        value = get(generation)
        if value is None:
            return default
        if mapping is not None:
            if str(value) not in mapping:
                raise Unsupported(source, f"this deployment takes one of: {', '.join(mapping)}")
            value = mapping[str(value)]
        return coerce(value if scale is None else value * scale, source)

    return read


def _compile_json(name: str, keys: Mapping[str, Any], sources: set[str]) -> Read:
    constants = {
        key: entry.const for key, entry in keys.items() if not isinstance(entry, str) and entry.const is not None
    }
    reads = [
        (key, _compile(f"{name}.{key}", entry, None, sources)) for key, entry in keys.items() if key not in constants
    ]

    def read(generation: Generation) -> str:
        values = dict(constants)
        for key, get in reads:
            value = get(generation)
            if value is not None:
                values[key] = value
        return orjson.dumps(values).decode()

    return read


def _compile_template(name: str, template: str, sources: set[str]) -> Read:
    gets = {source: _source(name, source, sources) for source in _FIELD.findall(template)}

    def read(generation: Generation) -> str:
        values = {source: get(generation) for source, get in gets.items()}
        return _FIELD.sub(lambda field: "" if values[field[1]] is None else str(values[field[1]]), template)

    return read


def _source(name: str, source: str, sources: set[str]) -> Read:
    if source.startswith("extra."):
        key = source.removeprefix("extra.")
        sources.add(source)
        return lambda generation: generation.extra.get(key)
    if source not in SOURCES:
        raise NotBound(
            f"{name!r} in [models.in]: there is no source {source!r}; there are: {', '.join(sorted(SOURCES))}"
        )
    sources.add(source)
    return operator.attrgetter(source)


def _own(name: str, value: Any, coerce: Coerce) -> Any:
    """A constant or default of the profile as this tensor takes it. Raises NotBound."""
    try:
        return coerce(value, name)
    except Unsupported as error:
        raise NotBound(f"{name!r} in [models.in] cannot be {value!r}: {error}") from None


def _as_it_is(value: Any, source: str) -> Any:
    return value


def _scalar(value: Any, source: str) -> Any:
    """A request parameter: Triton takes no objects and no lists there."""
    if not isinstance(value, str | int | float):
        raise Unsupported(source, "this deployment takes one text, number or bool")
    return value


def _coerce(tensor: Tensor) -> Coerce:
    """A function (value, source) → the JSON value of this tensor; Unsupported when the value does not fit its dtype."""
    dtype, many = tensor.dtype, tensor.dims != [1]
    if dtype in ("FP16", "BF16"):
        raise NotBound(f"{tensor.name!r} is {dtype}, which Triton does not take as JSON")

    low, high = _BOUNDS.get(dtype, (-_FP32_MAX, _FP32_MAX))

    def one(value: Any, source: str) -> Any:
        if dtype in _KINDS:
            kind, wanted = _KINDS[dtype]
            if isinstance(value, kind):
                return value
        else:
            whole = dtype in _BOUNDS
            wanted = f"{'whole ' if whole else ''}numbers from {low} to {high}"
            number = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
            if number and (not whole or value == int(value)):
                return int(value) if whole else float(value)
        raise Unsupported(source, f"this deployment takes {wanted}")

    def coerce(value: Any, source: str) -> Any:
        if not isinstance(value, list):
            return one(value, source)
        if not many and len(value) > 1:
            raise Unsupported(source, f"this deployment takes one value, not {len(value)}")
        if many:
            return [one(item, source) for item in value]
        return one(value[0], source) if value else None

    return coerce
