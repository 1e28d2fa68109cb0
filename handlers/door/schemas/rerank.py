"""Rerank: a query and documents in, the documents by relevance out."""

from typing import Annotated, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from handlers.door.schemas.body import Body
from handlers.door.schemas.embeddings import EmbeddingUsage


class DocumentText(Body):
    text: str


Documents = Annotated[list[str | DocumentText], Meta(min_length=1, max_length=500)]


class RerankRequest(Body):
    """POST /rerank: `documents`, or `texts`, which means the same."""

    takes_extra: ClassVar[bool] = True  # a profile may bind fields of its own, as extra.NAME

    query: str
    documents: Documents | None = None
    texts: Documents | None = None
    model: str | None = None
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None
    user: str | None = None  # advisory


class RerankDocument(msgspec.Struct):
    text: str


class RerankResult(msgspec.Struct):
    """`score` is between 0 and 1; `index` is the document's place in the request."""

    index: int
    score: float
    relevance_score: float  # what Cohere's and Jina's clients call the score
    document: RerankDocument | UnsetType = UNSET


class Reranking(msgspec.Struct, tag_field="object", tag="list"):
    """The best documents, the best one first."""

    model: str
    results: list[RerankResult]
    document_count: int
    usage: EmbeddingUsage
