"""[models.in] bound to a live model: which part of a job goes into which tensor, compiled once.

The profile says what a tensor means; dtype, shape and what is optional come from Triton's /v2/models/M/config.
"""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import orjson

from upstream.contract import Contract, InputProfile, NotBound, Profile, Tensor
from upstream.errors import Unsupported
from upstream.tensors import Array, pack

Job = Any  # a Struct of inference.py; its fields are the sources
Read = Callable[[Job], Any]
Coerce = Callable[[Any, str], Any]

_BOUNDS = {
    **{f"INT{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": (0, (1 << bits) - 1) for bits in (8, 16, 32, 64)},
}
_FP32_MAX = 3.4028234663852886e38
_KINDS: dict[str, tuple[type, str]] = {"BYTES": (str, "text"), "BOOL": (bool, "true or false")}
_FIELD = re.compile(r"\{([^{}]*)\}")


class Rows(list[Any]):
    """Values of which each belongs to a row of the batch: a text, a number, or a list for a tensor of one dimension."""


class Inputs:
    """A profile's [models.in] on a live contract, for jobs of one kind.

    `always` are the sources that every job has. Raises NotBound for a tensor that the model requires and that some
    job would leave empty. `left_out` are the profile's tensors that the model does not have.
    """

    def __init__(self, profile: Profile, contract: Contract, job: type[msgspec.Struct], always: frozenset[str]) -> None:
        self.batched = contract.max_batch_size > 0
        self.tensors = {tensor.name: tensor for tensor in contract.inputs}
        self.left_out: list[str] = []
        self.constants: dict[str, Any] = {}
        self.reads: list[tuple[str, Read]] = []
        names = Sources(job)
        for name, entry in profile.inputs.items():
            if entry is not False:
                self._bind(name, entry, names)
        self.sources = frozenset(names.used)
        self._require(profile, contract, always)

    def values(self, job: Job) -> dict[str, Any]:
        """What goes into the tensors (and request parameters) by name: what JSON takes, Rows, or an Array."""
        values = dict(self.constants)
        for name, read in self.reads:
            value = read(job)
            if value is not None:
                values[name] = value
        return values

    def json(self, job: Job) -> bytes:
        """The body of a generate or generate_stream request."""
        return orjson.dumps(self.values(job))

    def arrays(self, job: Job, rows: int = 1) -> tuple[dict[str, Array], dict[str, Any]]:
        """The tensors of an infer request for a batch of `rows`, and its parameters."""
        arrays, parameters = {}, {}
        for name, value in self.values(job).items():
            tensor = self.tensors.get(name)
            if tensor is None:
                parameters[name] = value
            else:
                arrays[name] = _array(tensor, value, rows if self.batched else 0)
        return arrays, parameters

    def _bind(self, name: str, entry: str | InputProfile, names: "Sources") -> None:
        tensor = self.tensors.get(name)
        if tensor is None and (isinstance(entry, str) or not entry.param):
            self.left_out.append(name)
            return
        coerce = _coerce(tensor) if tensor is not None else _scalar
        if not isinstance(entry, str) and entry.const is not None:
            self.constants[name] = _own(name, entry.const, coerce)
        else:
            self.reads.append((name, _compile(name, entry, coerce, names)))

    def _require(self, profile: Profile, contract: Contract, always: frozenset[str]) -> None:
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
                if entry not in always:
                    raise NotBound(
                        f"the model requires {tensor.name!r} and not every request has {entry!r}:"
                        f" write {tensor.name} = {{ from = {entry!r}, default = … }}"
                    )
            elif entry.source is not None and entry.source not in always and entry.default is None:
                raise NotBound(f"the model requires {tensor.name!r}: give it a default in [models.in]")


class Sources:
    """The fields of a kind of job, by the names that a profile calls them, and which of them are used."""

    def __init__(self, job: type[msgspec.Struct]) -> None:
        fields = zip(job.__struct_encode_fields__, job.__struct_fields__, strict=True)
        self._fields = {name: field for name, field in fields if name != "extra"}
        self.used: set[str] = set()

    def get(self, name: str, source: str) -> Read:
        """The function that reads `source` from a job, for the tensor `name`. Raises NotBound."""
        if source.startswith("extra."):
            key = source.removeprefix("extra.")
            self.used.add(source)
            return lambda job: job.extra.get(key)
        if source not in self._fields:
            known = ", ".join(sorted(self._fields))
            raise NotBound(f"{name!r} in [models.in]: there is no source {source!r}; there are: {known}")
        self.used.add(source)
        return operator.attrgetter(self._fields[source])


def default_of(source: str, profile: Profile) -> Any:
    """What the profile puts in place of `source`, in a tensor or a key of one, when a request does not have it."""
    for entry in profile.inputs.values():
        if isinstance(entry, str) or entry is False:
            continue
        for part in (entry, *(entry.json or {}).values()):
            if not isinstance(part, str) and part.source == source and part.default is not None:
                return part.default
    return None


def tensors_of(source: str, profile: Profile, contract: Contract) -> list[Tensor]:
    """The live tensors that the profile fills with `source`."""
    entries = [(tensor, profile.inputs.get(tensor.name, False)) for tensor in contract.inputs]
    return [tensor for tensor, entry in entries if entry == source or getattr(entry, "source", None) == source]


def _array(tensor: Tensor, value: Any, rows: int) -> Array:
    """A value in the shape that the tensor wants; `rows` is 0 for a model without a batch dimension."""
    if isinstance(value, Array):
        inner = value.shape[-len(tensor.dims) :]
        return Array(value.dtype, (rows, *inner) if rows else inner, value.data)
    one = [1] * (len(tensor.dims) - 1)
    if isinstance(value, Rows):
        nested = bool(value) and isinstance(value[0], list)
        flat = [item for row in value for item in row] if nested else value
        width = [*one, len(value[0])] if nested else [*one, 1]
        shape = [len(value), *width] if rows else [*one, len(flat)]
        return pack(tensor.dtype, shape, flat)
    items = value if isinstance(value, list) else [value]
    return pack(tensor.dtype, [*([rows] if rows else []), *one, len(items)], items * max(rows, 1))


def _compile(name: str, entry: str | InputProfile, coerce: Coerce | None, sources: Sources) -> Read:
    """One reading function for one tensor, or for one key of a JSON tensor."""
    if isinstance(entry, str):
        get = sources.get(name, entry)
        if coerce is None:
            return get
        return lambda job: None if (value := get(job)) is None else coerce(value, entry)
    if entry.json is not None:
        return _compile_json(name, entry.json, sources, nested=coerce is None)
    if entry.template is not None:
        return _compile_template(name, entry.template, sources)
    if entry.source is None:
        raise NotBound(f"{name!r} in [models.in] says nothing: write from, const, json or template")
    return _compile_from(name, entry, entry.source, coerce or _as_it_is, sources)


def _compile_from(name: str, entry: InputProfile, source: str, coerce: Coerce, sources: Sources) -> Read:
    """source → map → scale → dtype; the default stands for an absent source as it is written."""
    get = sources.get(name, source)
    default = None if entry.default is None else _own(name, entry.default, coerce)
    mapping, scale = entry.map, entry.scale

    def read(job: Job) -> Any:
        value = get(job)
        if value is None:
            return default
        if mapping is not None:
            if str(value) not in mapping:
                raise Unsupported(source, f"this deployment takes one of: {', '.join(mapping)}")
            value = mapping[str(value)]
        return coerce(value if scale is None else value * scale, source)

    return read


def _compile_json(name: str, keys: Mapping[str, Any], sources: Sources, *, nested: bool) -> Read:
    """A JSON text. One within another is left out when there is nothing in it."""
    constants = {
        key: entry.const for key, entry in keys.items() if not isinstance(entry, str) and entry.const is not None
    }
    rest = {key: entry for key, entry in keys.items() if key not in constants}
    reads = {key: _compile(f"{name}.{key}", entry, None, sources) for key, entry in rest.items()}

    def read(job: Job) -> str | None:
        values = constants | {key: value for key, get in reads.items() if (value := get(job)) is not None}
        return orjson.dumps(values).decode() if values or not nested else None

    return read


def _compile_template(name: str, template: str, sources: Sources) -> Read:
    gets = {source: sources.get(name, source) for source in _FIELD.findall(template)}

    def read(job: Job) -> str:
        values = {source: get(job) for source, get in gets.items()}
        return _FIELD.sub(lambda field: "" if values[field[1]] is None else str(values[field[1]]), template)

    return read


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
    plain = _KINDS[dtype][0] if dtype in _KINDS else None
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
        if type(value) is plain:
            return value
        if isinstance(value, Array):
            return value
        if isinstance(value, Rows):
            return Rows(coerce(row, source) for row in value)
        if not isinstance(value, list):
            return one(value, source)
        if not many and len(value) > 1:
            raise Unsupported(source, f"this deployment takes one value, not {len(value)}")
        if many:
            return [one(item, source) for item in value]
        return one(value[0], source) if value else None

    return coerce
