"""Image models: a Draw to requests of as many pictures as the model takes at once, and its tensors to files."""

import asyncio
import re
import secrets
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

from msgspec.structs import replace

from upstream.binding import Inputs, default_of
from upstream.contract import Contract, NotBound, Profile
from upstream.errors import BadReply
from upstream.inference import Draw
from upstream.media import MediaError, images
from upstream.tensors import Array

if TYPE_CHECKING:
    from upstream.deployment import Deployment

ALWAYS = frozenset({"prompt"})
SIZES = frozenset({"size", "size.width", "size.height"})
_RULE: Final = re.compile(r"(\d{1,5})x(\d{1,5})(?:\.\.(\d{1,5})x(\d{1,5})(?:/(\d{1,4}))?)?", re.ASCII)
_DTYPES: Final = {"raw": ("UINT8", "FP32", "FP16"), "png": ("BYTES", "UINT8"), "base64": ("BYTES",)}


class ImageSettings(Protocol):
    """The part of [models.image] that a binding reads."""

    @property
    def sizes(self) -> list[str]: ...


class ImageProfile(Profile, Protocol):
    """The part of a [[models]] entry that an image binding reads."""

    @property
    def image(self) -> ImageSettings: ...


class SizeRule(NamedTuple):
    """Sizes that a model draws: width and height between two bounds, both included, in steps, all in pixels."""

    least: tuple[int, int]
    most: tuple[int, int]
    step: int = 1

    @classmethod
    def read(cls, text: str) -> "SizeRule":
        """What "512x512" or "256x256..1024x1024/8" says. Raises NotBound."""
        found = _RULE.fullmatch(text)
        if found is not None:
            width, height, widest, highest, step = (int(part) if part else 0 for part in found.groups())
            rule = cls((width, height), (widest, highest) if found[3] else (width, height), step or 1)
            if 0 < width <= rule.most[0] and 0 < height <= rule.most[1] and found[5] != "0":
                return rule
        raise NotBound(f'[models.image] sizes: {text!r} is neither like "512x512" nor like "256x256..1024x1024/8"')

    def allows(self, width: int, height: int) -> bool:
        """Whether the model draws this size."""
        sides = zip((width, height), self.least, self.most, strict=True)
        return all(low <= side <= high and side % self.step == 0 for side, low, high in sides)


class Drawn(NamedTuple):
    """A picture as a file, and its size in pixels."""

    data: bytes
    width: int
    height: int


class DrawBinding:
    """An image model's profile on its live contract. Raises NotBound for one that does not fit."""

    def __init__(self, profile: ImageProfile, contract: Contract) -> None:
        self.profile = profile
        self.contract = contract
        self.inputs = Inputs(profile, contract, Draw, ALWAYS)
        self.sources = self.inputs.sources
        self.left_out = list(self.inputs.left_out)
        if "prompt" not in self.sources:
            raise NotBound("the profile puts the prompt nowhere: add it to [models.in]")
        if "partial_images" in self.sources and not contract.transaction.decoupled:
            raise NotBound(
                "the model is not decoupled, so it has no partial_images to show: take it out of [models.in]"
            )
        self._bind_output(profile.outputs, contract)
        self.sizes = {text: SizeRule.read(text) for text in self._sizes(profile.image.sizes)}

    def allows(self, width: int, height: int) -> bool:
        """Whether the model draws this size."""
        carried = self.sources & SIZES
        if len(carried) == 1 and "size" not in carried and width != height:
            return False  # one number for both sides
        return any(rule.allows(width, height) for rule in self.sizes.values())

    def files(self, array: Array, format: images.ImageFormat, quality: int | None) -> list[Drawn]:
        """The pictures in an output tensor as files. CPU-bound. Raises BadReply for what is no picture."""
        if array.dtype != self.dtype:
            raise BadReply(f"{self.tensor!r} came as {array.dtype}, not as {self.dtype}")
        try:
            if self.encoding != "raw":
                return [_transcoded(file, format, quality) for file in self._files(array)]
            count, inner = prod(array.shape[:-3]), array.shape[-3:]
            pictures = images.from_tensor(
                array.data,
                cast(images.PixelType, array.dtype),
                (count, *inner),
                layout=cast(images.Layout, f"N{self.layout[-3:]}"),
                range=self.range,
            )
            return [Drawn(images.encode(each, format, quality=quality), each.width, each.height) for each in pictures]
        except MediaError as error:
            raise BadReply(f"{self.tensor!r}: {error}") from error

    def _files(self, array: Array) -> list[bytes]:
        """The files that a tensor holds: its texts, or its rows of bytes."""
        if array.dtype == "BYTES":
            return [images.from_base64(each) if self.encoding == "base64" else each for each in array.items()]
        length = array.shape[-1] if array.shape else 0
        return [bytes(array.data[at : at + length]) for at in range(0, len(array.data), max(length, 1))]

    def _bind_output(self, outputs: Mapping[str, Any], contract: Contract) -> None:
        entry = outputs.get("image")
        if entry is None:
            raise NotBound("the profile names no tensor for the image: add image to [models.out]")
        self.tensor: str = entry if isinstance(entry, str) else entry.tensor
        live = {tensor.name: tensor for tensor in contract.outputs}
        if self.tensor not in live:
            raise NotBound(f"the model has no output {self.tensor!r}; it has: {', '.join(sorted(live))}")
        self.encoding: str = "raw" if isinstance(entry, str) else entry.encoding
        self.layout: str = "NHWC" if isinstance(entry, str) else entry.layout
        self.range: Any = 255 if isinstance(entry, str) else entry.range
        self.dtype, self._dims = live[self.tensor].dtype, live[self.tensor].dims
        possible = _DTYPES.get(self.encoding, ())
        if self.dtype not in possible:
            known = ", ".join(kind for kind, dtypes in _DTYPES.items() if self.dtype in dtypes) or "none"
            raise NotBound(f"{self.tensor!r} is {self.dtype}: its encoding cannot be {self.encoding!r}, but: {known}")

    def _sizes(self, sizes: list[str]) -> list[str]:
        """The rules of the profile, else the one size that the output's own shape says, else none."""
        rules = [SizeRule.read(size) for size in sizes]
        if self.sources & SIZES:
            if not rules:
                raise NotBound("the profile binds the size: say which ones the model draws in [models.image] sizes")
            return sizes
        if len(rules) > 1 or any(rule.least != rule.most for rule in rules):
            raise NotBound("[models.image] sizes lists several and no tensor carries the size: bind it in [models.in]")
        inner = self._dims[-3:]
        if not rules and self.encoding == "raw" and len(inner) == 3:
            height, width = inner[:2] if self.layout.endswith("HWC") else inner[1:]
            if width > 0 and height > 0:
                return [f"{width}x{height}"]
        return sizes


class Asked(NamedTuple):
    """One request: its tensors, its parameters, and how many pictures it is to make."""

    arrays: dict[str, Array]
    parameters: dict[str, Any]
    number: int


def requests(binding: DrawBinding, job: Draw, n: int) -> list[Asked]:
    """The requests that together make `n` pictures. Raises Unsupported for a value that does not fit its tensor."""
    if "n" in binding.sources:
        return [Asked(*binding.inputs.arrays(replace(job, n=n)), n)]
    contract = binding.contract
    most = 1 if contract.transaction.decoupled else max(contract.max_batch_size, 1)
    asked: list[Asked] = []
    for each in _seeded(binding, job, n):
        arrays, parameters = binding.inputs.arrays(each)
        batch = asked[-1] if asked else None
        if batch is not None and batch.number < most and batch.parameters == parameters:
            joined = {name: _joined(batch.arrays[name], arrays[name]) for name in arrays}
            asked[-1] = Asked(joined, parameters, batch.number + 1)
        else:
            asked.append(Asked(arrays, parameters, 1))
    return asked


class Made(NamedTuple):
    """What a request has made: pictures from the one at `first` on, or an unfinished one, the `partial`-th of them."""

    first: int
    number: int
    array: Array
    partial: int | None = None


class Drawing:
    """`n` pictures under way, in as few requests as the model allows, all at once. The caller closes it.

    `made` is how many have come, whole. Raises Unavailable, or Unsupported for a value that does not fit its tensor.
    """

    def __init__(self, deployment: "Deployment", job: Draw, n: int) -> None:
        binding = deployment.binding
        assert isinstance(binding, DrawBinding)
        self._binding, self._job = binding, job
        self._deployment = deployment
        self.made = 0
        self._queue: asyncio.Queue[Made | Exception] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._asking: list[asyncio.Task[None]] = []
        first = 0
        for asked in requests(binding, job, n):
            self._asking.append(loop.create_task(self._run(first, asked)))
            first += asked.number
        self._open = len(self._asking)

    async def read(self) -> Made | None:
        """What is made next; None when all is. Raises an UpstreamError."""
        if not self._open:
            return None
        made = await self._queue.get()
        if isinstance(made, Exception):
            raise made
        if made.partial is None:
            self._open -= 1
            self.made += made.number
        return made

    def files(self, made: Made, format: images.ImageFormat, quality: int | None) -> list[Drawn]:
        """Its pictures as files. CPU-bound. Raises BadReply where they are not what was asked for."""
        drawn = self._binding.files(made.array, format, quality)
        if len(drawn) != made.number:
            raise BadReply(f"the model made {len(drawn)} pictures where {made.number} were asked for")
        width, height = self._job.width, self._job.height
        for each in drawn:
            if width is not None and (each.width, each.height) != (width, height):
                raise BadReply(f"the model drew {each.width}x{each.height} where {width}x{height} was asked for")
        return drawn

    def close(self) -> None:
        """Cancel what is not complete."""
        for task in self._asking:
            task.cancel()

    async def _run(self, first: int, asked: Asked) -> None:
        ask = self._follow if self._binding.contract.transaction.decoupled else self._ask
        try:
            await ask(first, asked)
        except Exception as error:  # noqa: BLE001 - whoever reads will hear of it
            self._queue.put_nowait(error)

    async def _ask(self, first: int, asked: Asked) -> None:
        tensor = self._binding.tensor
        outputs = await self._deployment.infer(asked.arrays, [tensor], asked.parameters)
        self._queue.put_nowait(Made(first, asked.number, _output(outputs, tensor)))

    async def _follow(self, first: int, asked: Asked) -> None:
        """Of a decoupled model the last response is the picture, and those before it are on the way there."""
        tensor = self._binding.tensor
        stream = self._deployment.stream(asked.arrays, [tensor], asked.parameters)
        last: Array | None = None
        partial = 0
        try:
            while (outputs := await stream.read()) is not None:
                last = _output(outputs, tensor)
                if partial < (self._job.partial_images or 0):
                    self._queue.put_nowait(Made(first, asked.number, last, partial))
                    partial += 1
        finally:
            stream.close()
        if last is None:
            raise BadReply("the model ended without a picture")
        self._queue.put_nowait(Made(first, asked.number, last))


def _output(outputs: Mapping[str, Array], tensor: str) -> Array:
    if tensor not in outputs:
        raise BadReply(f"the reply has no output {tensor!r}")
    return outputs[tensor]


def _seeded(binding: DrawBinding, job: Draw, n: int) -> list[Draw]:
    """A job for each of `n` pictures. Where the model takes a seed they must differ in it, or be all alike."""
    if n == 1 or "seed" not in binding.sources:
        return [job] * n
    seed = job.seed if job.seed is not None else default_of("seed", binding.profile)
    if not isinstance(seed, int) or seed < 0:
        seed = secrets.randbits(30)  # with those that follow it, within every integer dtype from 32 bits on
    return [replace(job, seed=seed + i) for i in range(n)]


def _joined(batch: Array, row: Array) -> Array:
    return Array(batch.dtype, (batch.shape[0] + row.shape[0], *batch.shape[1:]), b"".join((batch.data, row.data)))


def _transcoded(data: bytes, format: images.ImageFormat, quality: int | None) -> Drawn:
    size = images.probe(data)
    return Drawn(images.transcode(data, format, quality=quality), size.width, size.height)
