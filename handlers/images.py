"""POST /images/generations: words in, pictures out, inline or behind URLs; GET /images/files/{id}: what is there."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from handlers.door.admission import reach
from handlers.door.billing import Units, hold
from handlers.door.conversation import check_extra
from handlers.door.errors import InvalidRequest
from handlers.door.files import origin
from handlers.door.guide import unsupported
from handlers.door.lifetime import Request
from handlers.door.schemas.images import (
    CompletedImageEvent,
    ImageRequest,
    ImagesResponse,
    PartialImageEvent,
    Picture,
)
from handlers.door.wire import EVENT_STREAM, Bytes, Stream, event
from upstream.deployment import Deployment
from upstream.drawing import DrawBinding, Drawing, Drawn, Made
from upstream.inference import Draw
from upstream.media.images import CONTENT_TYPES, ImageFormat

# A field that changes the picture, the source that carries it to the model, and the values that ask for nothing.
FIELDS: Final[tuple[tuple[str, str, tuple[Any, ...]], ...]] = (
    ("negative_prompt", "negative_prompt", ("",)),
    ("seed", "seed", ()),
    ("num_inference_steps", "steps", ()),
    ("guidance_scale", "guidance", ()),
    ("quality", "quality", ("auto", "standard")),
    ("style", "style", ("vivid",)),
    ("background", "background", ("auto", "opaque")),
    ("partial_images", "partial_images", (0,)),
)
SIZE: Final = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
EVENT_QUALITIES: Final = frozenset({"low", "medium", "high", "xhigh", "max"})


async def create(
    request: Request, body: ImageRequest
) -> ImagesResponse | Stream[PartialImageEvent | CompletedImageEvent]:
    """Have the deployment that `model` names draw what the prompt says."""
    deployment = await reach(request, body.model, "image")
    job = _job(request, body, deployment)
    created, n = int(time.time()), body.n or 1
    await hold(request, deployment.id, Units(images=n), stoppable=deployment.stops_inferences)
    if body.stream:
        request.keep_alive(EVENT_STREAM)  # drawing takes its time
    drawing = Drawing(deployment, job, n)
    request.on_end(drawing.close)
    request.used = lambda: Units(images=drawing.made)
    drawn = _drawn(request, body, drawing)
    if body.stream:
        return Stream(_events(body, drawn, created))
    pictures: dict[int, Drawn] = {}
    async for made, files in drawn:
        pictures.update(enumerate(files, made.first))
    ordered = [pictures[index] for index in sorted(pictures)]
    size = f"{ordered[0].width}x{ordered[0].height}"
    return ImagesResponse(created, await _data(request, body, ordered), _format(body), size)


async def show(request: Request) -> Annotated[Bytes, "image/*"]:
    """A picture behind its URL, to whoever has that. Raises 403 or 404."""
    gateway = request.gateway
    file = await gateway.files.find(request.path_params["id"], request.scope["query_string"])
    left = max((file.expires_at - gateway.clock()) // 1_000_000, 0)
    headers = [
        (b"content-type", file.media_type.encode()),
        (b"cache-control", b"private, max-age=%d" % left),
    ]
    return Bytes(file.content, headers)


async def _drawn(request: Request, body: ImageRequest, drawing: Drawing) -> AsyncIterator[tuple[Made, list[Drawn]]]:
    """What is made, as soon as it is, as files."""
    format, compression = _format(body), body.output_compression
    quality = None if format == "png" or compression is None else max(compression, 1)
    while True:
        started = time.perf_counter()
        made = await drawing.read()
        request.upstream_seconds += time.perf_counter() - started
        if made is None:
            return
        yield made, await asyncio.to_thread(drawing.files, made, format, quality)


async def _data(request: Request, body: ImageRequest, drawn: list[Drawn]) -> list[Picture]:
    if body.response_format != "url":
        return [Picture(b64_json=each.data) for each in drawn]
    kept = await request.gateway.files.keep([each.data for each in drawn], CONTENT_TYPES[_format(body)])
    return [Picture(url=f"{origin(request)}/v1/images/files/{each}") for each in kept]


async def _events(
    body: ImageRequest, drawn: AsyncIterator[tuple[Made, list[Drawn]]], created: int
) -> AsyncIterator[bytes]:
    """The SSE frames, each of one picture, named as the API names them."""
    background, format = body.background or "auto", _format(body)
    quality = body.quality if body.quality in EVENT_QUALITIES else "auto"
    async for made, files in drawn:
        frames = []
        for file in files:
            told = (background, created, format, quality, f"{file.width}x{file.height}")
            if made.partial is None:
                frames.append(event(CompletedImageEvent(file.data, *told)))
            else:
                frames.append(event(PartialImageEvent(file.data, made.partial, *told)))
        yield b"".join(frames)


def _job(request: Request, body: ImageRequest, deployment: Deployment) -> Draw:
    """What the request asks of the model. Raises 400 for what the deployment cannot honour."""
    for field, source, plain in FIELDS:
        value = getattr(body, field)
        if value is not None and value not in plain and source not in deployment.sources:
            raise unsupported(field, deployment)
    check_extra(request, deployment.sources)
    _check(request, body, deployment)
    size = _size(body, deployment)
    return Draw(
        body.prompt,
        negative_prompt=body.negative_prompt,
        size=body.size if size is not None else None,
        width=size[0] if size is not None else None,
        height=size[1] if size is not None else None,
        steps=body.num_inference_steps,
        guidance=body.guidance_scale,
        seed=body.seed,
        quality=None if body.quality == "auto" else body.quality,
        style=body.style,
        background=None if body.background == "auto" else body.background,
        partial_images=body.partial_images or None,
        extra=request.extra,
    )


def _check(request: Request, body: ImageRequest, deployment: Deployment) -> None:
    """The bounds of this model, and the rules that join two fields."""
    image = request.gateway.models[deployment.id].image
    bounds = (
        ("n", body.n, image.max_n),
        ("num_inference_steps", body.num_inference_steps, image.max_steps),
        ("guidance_scale", body.guidance_scale, image.max_guidance),
    )
    for param, value, most in bounds:
        if value is not None and value > most:
            raise _invalid(param, f"{param!r} is {value}; the model {deployment.id!r} takes at most {most}.")
    if body.partial_images and not body.stream:
        raise _invalid("partial_images", "'partial_images' is only allowed with 'stream': true.")
    if body.stream and body.response_format == "url":
        raise _invalid("response_format", "A stream carries pictures as base64; leave 'response_format' out.")
    if _format(body) == "png" and body.output_compression not in (None, 100):
        raise _invalid("output_compression", "'output_compression' is for jpeg and webp; a png loses nothing.")


def _size(body: ImageRequest, deployment: Deployment) -> tuple[int, int] | None:
    """Width and height in pixels; None leaves them to the model."""
    if body.size in (None, "auto"):
        return None
    found = SIZE.fullmatch(body.size)
    if found is None:
        raise _invalid("size", "Invalid 'size': write WIDTHxHEIGHT in pixels, such as '512x512', or 'auto'.")
    binding = deployment.binding
    assert isinstance(binding, DrawBinding)
    width, height = int(found[1]), int(found[2])
    if not binding.sizes:
        raise unsupported("size", deployment)
    if not binding.allows(width, height):
        known = ", ".join(list(binding.sizes)[:12])
        raise _invalid("size", f"The model {deployment.id!r} does not draw {body.size}; it draws: {known}.")
    return width, height


def _format(body: ImageRequest) -> ImageFormat:
    return body.output_format or "png"


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")
