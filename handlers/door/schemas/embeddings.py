"""Embeddings: texts or token ids in, vectors out."""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from handlers.door.schemas.body import Body

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class EmbeddingRequest(Body):
    """POST /embeddings. A list is of texts, of the token ids of one text, or of lists of token ids."""

    takes_extra: ClassVar[bool] = True  # a profile may bind fields of its own, as extra.NAME

    input: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1, max_length=2048)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=2**16)] | None = None
    user: str | None = None  # advisory


class Embedding(msgspec.Struct, tag_field="object", tag="embedding"):
    """A vector: numbers, or the base64 of little-endian float32."""

    index: int
    embedding: list[float] | bytes


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, tag_field="object", tag="list"):
    """The vectors, in the order of the inputs."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
