"""POST /embeddings: texts, or token ids, to vectors as base64 or numbers."""

from typing import cast

import msgspec
import orjson

from handlers.door.admission import reach
from handlers.door.billing import Units, hold
from handlers.door.conversation import check_extra
from handlers.door.errors import InvalidRequest
from handlers.door.lifetime import Request
from handlers.door.schemas.embeddings import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from upstream.embedding import embed, in_bulk
from upstream.errors import ModelFailed
from upstream.rows import Abandoned, Progress
from upstream.tokens import TooLong


async def create(request: Request, body: EmbeddingRequest) -> EmbeddingList:
    """A vector for each input, in their order."""
    deployment = await reach(request, body.model, "embedding")
    check_extra(request, deployment.sources)
    inputs = _inputs(body.input)
    most = _most(inputs, request.gateway.models[deployment.id].embedding.prefix)
    await hold(request, deployment.id, most, stoppable=deployment.stops_inferences)
    progress = Progress(request.is_awaited)
    request.used = lambda: Units(input_tokens=progress.tokens)
    try:
        vectors = await embed(deployment, inputs, body.dimensions, request.extra, progress)
    except TooLong as error:
        raise _too_long(body.input, error) from error
    except Abandoned:
        await request.abandon()
        raise
    request.upstream_seconds = vectors.seconds
    rows: list[list[float] | bytes] = [*vectors.rows]  # the encoder writes bytes as base64
    if body.encoding_format != "base64":
        rows = await in_bulk(lambda: _numbers(vectors.rows), sum(map(len, vectors.rows)))
    data = [Embedding(index, row) for index, row in enumerate(rows)]
    return EmbeddingList(data, deployment.id, EmbeddingUsage(vectors.prompt_tokens, vectors.prompt_tokens))


def _most(inputs: list[str] | list[list[int]], prefix: str) -> Units:
    """What they can take: a token has a byte or more, and each input two tokens of its own."""
    added = len(prefix.encode()) + 2
    sizes = (len(each.encode()) + added if isinstance(each, str) else len(each) for each in inputs)
    return Units(input_tokens=sum(sizes))


def _inputs(given: str | list[str | int | list[int]]) -> list[str] | list[list[int]]:
    """The texts, or the lists of token ids. Raises 400 for a mixture, and for one that is empty."""
    many = [given] if isinstance(given, str) else given
    kind = type(many[0])
    for index, each in enumerate(many):
        where = f"input[{index}]" if len(many) > 1 else "input"
        if type(each) is not kind:
            raise _invalid(where, "a list holds texts, or token ids, or lists of token ids, not several of these")
        if each in ("", []):
            raise _invalid(where, "it is empty")
    return cast("list[str] | list[list[int]]", [many] if kind is int else many)


def _invalid(where: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid {where!r}: {why}.", param=where, code="invalid_value")


def _too_long(given: str | list[str | int | list[int]], error: TooLong) -> InvalidRequest:
    one = isinstance(given, str) or isinstance(given[0], int) or error.index is None
    where = "input" if one else f"input[{error.index}]"
    most = f"the {error.limit} tokens" if error.limit is not None else "the tokens"
    return InvalidRequest(
        f"Invalid {where!r}: it has more than {most} that this model takes; shorten or split it.",
        param=where,
        code="context_length_exceeded",
    )


def _numbers(rows: list[bytes]) -> list[list[float] | bytes]:
    """Each vector as JSON, its numbers as short as a float32 can be told apart: half of what a float64 takes."""
    import numpy as np

    vectors = [np.frombuffer(row, "<f4") for row in rows]
    if not all(np.isfinite(vector).all() for vector in vectors):
        raise ModelFailed("a vector that is not made of finite numbers")
    texts = [msgspec.Raw(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)) for vector in vectors]
    return cast("list[list[float] | bytes]", texts)
