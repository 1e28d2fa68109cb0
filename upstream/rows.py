"""Many rows to a model that takes some at a time: sent a few requests at once, answered in their order."""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from upstream.binding import Inputs
from upstream.contract import Contract, Profile, Tensor
from upstream.errors import BadReply, ModelFailed
from upstream.tensors import Array, pack

if TYPE_CHECKING:
    from upstream.deployment import Deployment

T = TypeVar("T")

AT_ONCE = 8  # requests of one client that are with the model together
UNBATCHED = 32  # rows of a request where the model names no bound of its own


def most(contract: Contract, tensor: Tensor | None) -> int:
    """How many rows one request may have; `tensor` is the one whose rows they are, if one takes them as they are."""
    if contract.transaction.decoupled or tensor is None:
        return 1
    if contract.max_batch_size > 0:
        return contract.max_batch_size
    return UNBATCHED if tensor.dims[0] < 0 and (tensor.dtype == "BYTES" or len(tensor.dims) > 1) else 1


def batches(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """`order` in pieces of at most `size`."""
    return (order[at : at + size] for at in range(0, len(order), size))


def counter(profile: Profile, contract: Contract, left_out: list[str]) -> str | None:
    """The live tensor that counts the tokens of each row; one that the model lacks joins `left_out`."""
    entry = profile.outputs.get("prompt_tokens")
    name: str | None = entry if isinstance(entry, str) or entry is None else entry.tensor
    if name is None or any(tensor.name == name for tensor in contract.outputs):
        return name
    left_out.append(name)
    return None


class Abandoned(Exception):
    """Nobody wants the parts that were not sent yet; those that were have been answered."""


class Progress:
    """How far a request of many parts is: the `tokens` of those that were answered, and whether more are `wanted`."""

    def __init__(self, wanted: Callable[[], bool] = lambda: True) -> None:
        self.tokens = 0
        self.wanted = wanted


async def gather(asks: Sequence[Callable[[], Awaitable[T]]], wanted: Callable[[], bool]) -> list[T]:
    """The results in the order of `asks`, AT_ONCE of them under way; the first error ends the others. Raises Abandoned
    when those under way have ended and no more are `wanted`."""
    if len(asks) == 1:
        return [await asks[0]()]
    todo = iter(enumerate(asks))
    results: dict[int, T] = {}

    async def work() -> None:
        for index, ask in todo:
            if not wanted():
                return
            results[index] = await ask()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_ONCE, len(asks))):
                group.create_task(work())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    if len(results) < len(asks):
        raise Abandoned
    return [results[index] for index in range(len(asks))]


async def ask(
    deployment: "Deployment", inputs: Inputs, outputs: Sequence[str], job: Any, rows: int
) -> dict[str, Array]:
    """One inference with one response, whichever way the model takes it. Raises an UpstreamError."""
    contract = deployment.binding.contract
    if not contract.transaction.decoupled:
        arrays, parameters = inputs.arrays(job, rows)
        answer = await deployment.infer(arrays, outputs, parameters)
    elif deployment.stops_inferences:
        answer = await _first(deployment, inputs, outputs, job)
    else:
        answer = _read(await deployment.generate(inputs.json(job)), contract)
    for name in outputs:
        if name not in answer:
            raise BadReply(f"the reply has no output {name!r}")
    return answer


async def _first(deployment: "Deployment", inputs: Inputs, outputs: Sequence[str], job: Any) -> dict[str, Array]:
    arrays, parameters = inputs.arrays(job)
    stream = deployment.stream(arrays, outputs, parameters)
    try:
        answer = await stream.read()
    finally:
        stream.close()
    if answer is None:
        raise ModelFailed("the model ended without an answer")
    return answer


def _read(body: bytes, contract: Contract) -> dict[str, Array]:
    """The JSON of a generate reply as tensors. Raises BadReply, or ModelFailed for an error that came as 200."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise BadReply(f"an answer that is not the expected JSON: {error}") from error
    if "error" in fields:
        raise ModelFailed(str(fields["error"]))
    arrays = {}
    for tensor in contract.outputs:
        if (value := fields.get(tensor.name)) is not None:
            values = value if isinstance(value, list) else [value]
            try:
                arrays[tensor.name] = pack(tensor.dtype, [len(values)], values)
            except (TypeError, OverflowError, struct.error) as error:
                raise BadReply(f"{tensor.name!r} is not {tensor.dtype}: {error}") from error
    return arrays
