"""What a binding joins: a profile, as conch.toml writes it, and the live configuration of a Triton model."""

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec


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
    """The part of a [[models]] entry that every binding reads."""

    @property
    def inputs(self) -> Mapping[str, Any]: ...
    @property
    def outputs(self) -> Mapping[str, Any]: ...
    @property
    def price(self) -> Any: ...


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
    """model_transaction_policy: whether one request may have any number of responses."""

    decoupled: bool = False


class Contract(msgspec.Struct):
    """A model's live configuration, the part that a binding needs."""

    name: str = ""
    max_batch_size: int = 0
    inputs: list[Tensor] = msgspec.field(name="input", default_factory=list)
    outputs: list[Tensor] = msgspec.field(name="output", default_factory=list)
    transaction: Transaction = msgspec.field(name="model_transaction_policy", default_factory=Transaction)


read_contract = msgspec.json.Decoder(Contract).decode


def output(profile: Profile, contract: Contract, meaning: str) -> tuple[Any, Tensor]:
    """What [models.out] says of `meaning`, and the live tensor behind it. Raises NotBound when there is none."""
    entry = profile.outputs.get(meaning)
    if entry is None:
        raise NotBound(f"the profile names no tensor for {meaning}: add {meaning} to [models.out]")
    name = entry if isinstance(entry, str) else entry.tensor
    live = {tensor.name: tensor for tensor in contract.outputs}
    if name not in live:
        raise NotBound(f"the model has no output {name!r}; it has: {', '.join(sorted(live))}")
    return entry, live[name]
