"""Images: the request, the answer whole, and the events of a streamed one."""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from handlers.door.schemas.body import Body

Words = Annotated[str, Meta(max_length=32_000)]


class ImageRequest(Body):
    """POST /images/generations."""

    takes_extra: ClassVar[bool] = True  # a profile may bind fields of its own, as extra.NAME

    prompt: Annotated[Words, Meta(min_length=1)]
    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    quality: Literal["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"] | None = None
    style: Literal["vivid", "natural"] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Meta(ge=0, le=3)] | None = None
    negative_prompt: Words | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    num_inference_steps: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    # Advisory: these do not change an answer.
    user: str | None = None
    safety_identifier: str | None = None
    moderation: Literal["auto", "low"] | None = None


class Picture(msgspec.Struct):
    """One of them, inline (bytes are base64 in JSON) or where it is kept for an hour."""

    b64_json: bytes | UnsetType = UNSET
    url: str | UnsetType = UNSET


class ImagesResponse(msgspec.Struct):
    """The answer, whole. It has no usage: models that draw count no tokens."""

    created: int
    data: list[Picture]
    output_format: str
    size: str


class TokenDetails(msgspec.Struct, frozen=True):
    image_tokens: int = 0
    text_tokens: int = 0


class ImageUsage(msgspec.Struct, frozen=True):
    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens: int = 0
    total_tokens: int = 0


class PartialImageEvent(msgspec.Struct, tag_field="type", tag="image_generation.partial_image"):
    """A picture on its way."""

    b64_json: bytes
    partial_image_index: int
    background: str
    created_at: int
    output_format: str
    quality: str
    size: str


class CompletedImageEvent(msgspec.Struct, tag_field="type", tag="image_generation.completed"):
    """A picture. The API's event always has a usage: a model that counts no tokens used none."""

    b64_json: bytes
    background: str
    created_at: int
    output_format: str
    quality: str
    size: str
    usage: ImageUsage = ImageUsage()
