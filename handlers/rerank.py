"""POST /rerank: documents by their relevance to a query."""

from handlers.door.admission import reach
from handlers.door.billing import Units, hold
from handlers.door.conversation import check_extra
from handlers.door.errors import InvalidRequest
from handlers.door.lifetime import Request
from handlers.door.schemas.embeddings import EmbeddingUsage
from handlers.door.schemas.rerank import RerankDocument, Reranking, RerankRequest, RerankResult
from upstream.ranking import rank
from upstream.rows import Abandoned, Progress
from upstream.tokens import TooLong


async def create(request: Request, body: RerankRequest) -> Reranking:
    """The best `top_n` documents, or all, the best one first."""
    deployment = await reach(request, body.model, "rerank")
    check_extra(request, deployment.sources)
    name, documents = _documents(body)
    query = len(body.query.encode()) + 4  # a token has a byte or more, and each pair some of its own
    bound = Units(input_tokens=sum(query + len(each.encode()) for each in documents))
    await hold(request, deployment.id, bound, stoppable=deployment.stops_inferences)
    progress = Progress(request.is_awaited)
    request.used = lambda: Units(input_tokens=progress.tokens)
    try:
        ranking = await rank(deployment, body.query, documents, request.extra, progress)
    except Abandoned:
        await request.abandon()
        raise
    except TooLong as error:
        where = name if error.index is None else f"{name}[{error.index}]"
        most = f"the {error.limit} tokens" if error.limit is not None else "the tokens"
        raise InvalidRequest(
            f"Invalid {where!r}: with the query it has more than {most} that this model takes; shorten or split it.",
            param=where,
            code="context_length_exceeded",
        ) from error
    request.upstream_seconds = ranking.seconds
    best = sorted(range(len(documents)), key=lambda index: -ranking.scores[index])[: body.top_n]
    results = [RerankResult(index, ranking.scores[index], ranking.scores[index]) for index in best]
    if body.return_documents:
        for result in results:
            result.document = RerankDocument(documents[result.index])
    usage = EmbeddingUsage(ranking.prompt_tokens, ranking.prompt_tokens)
    return Reranking(deployment.id, results, len(documents), usage)


def _documents(body: RerankRequest) -> tuple[str, list[str]]:
    """The documents, and what the request calls them. Raises 400."""
    if body.documents is not None and body.texts is not None:
        raise InvalidRequest("Send 'documents' or 'texts', not both.", param="texts", code="invalid_value")
    name, given = ("texts", body.texts) if body.texts is not None else ("documents", body.documents)
    if given is None:
        raise InvalidRequest(
            "Missing required parameter: 'documents'.", param="documents", code="missing_required_parameter"
        )
    documents = [each if isinstance(each, str) else each.text for each in given]
    for where, text in (("query", body.query), *((f"{name}[{i}]", text) for i, text in enumerate(documents))):
        if not text:
            raise InvalidRequest(f"Invalid {where!r}: it is empty.", param=where, code="invalid_value")
    return name, documents
