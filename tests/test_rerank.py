"""POST /rerank, on the cross-encoder of models/."""

import json
from typing import Any

import pytest

from tests.gateway import Conch
from tests.raw import Answer, Wire, bearer

PATH = "/v1/rerank"
QUERY = "How do I cook rice?"
DOCUMENTS = [
    "Interest rates rose again on Tuesday.",
    "To cook rice, simmer one cup of it in two cups of water.",
    "Rice is a grain that many people eat.",
]


def post(conch: Conch, key: str, **fields: Any) -> Answer:
    with Wire(conch.url, timeout=60) as wire:
        body = json.dumps({"model": "reranker", **fields}).encode()
        wire.request("POST", PATH, body, content_type="application/json", **bearer(key))
        return wire.answer()


def test_documents_are_ordered_by_relevance(conch: Conch, key: str) -> None:
    answer = post(conch, key, query=QUERY, documents=DOCUMENTS)
    assert answer.status == 200, answer.body
    body = answer.json
    assert [result["index"] for result in body["results"]] == [1, 2, 0]
    scores = [result["score"] for result in body["results"]]
    assert 1 > scores[0] > 0.5 > scores[2] > 0
    assert scores == sorted(scores, reverse=True) == [result["relevance_score"] for result in body["results"]]
    assert all(result.keys() == {"index", "score", "relevance_score"} for result in body["results"])
    assert list(body) == ["object", "model", "results", "document_count", "usage"]
    assert (body["object"], body["model"], body["document_count"]) == ("list", "reranker", 3)
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 40


def test_forms_of_documents(conch: Conch, key: str) -> None:
    plain = post(conch, key, query=QUERY, documents=DOCUMENTS).json
    assert post(conch, key, query=QUERY, texts=DOCUMENTS).json == plain
    assert post(conch, key, query=QUERY, documents=[{"text": text} for text in DOCUMENTS]).json == plain


def test_top_n_and_the_documents_themselves(conch: Conch, key: str) -> None:
    body = post(conch, key, query=QUERY, documents=DOCUMENTS, top_n=2, return_documents=True).json
    assert [result["document"] for result in body["results"]] == [{"text": DOCUMENTS[1]}, {"text": DOCUMENTS[2]}]
    assert body["document_count"] == 3
    assert len(post(conch, key, query=QUERY, documents=DOCUMENTS, top_n=99).json["results"]) == 3


def test_many_documents_keep_their_places(conch: Conch, key: str) -> None:
    documents = [f"Note {i} on the weather." + " It rained." * (i % 5) for i in range(500)]
    documents[317] = DOCUMENTS[1]
    body = post(conch, key, query=QUERY, documents=documents, top_n=1).json
    assert body["results"][0]["index"] == 317
    alone = post(conch, key, query=QUERY, documents=[DOCUMENTS[1]]).json["results"][0]["score"]
    assert body["results"][0]["score"] == pytest.approx(alone, abs=1e-4)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("no query", {"documents": ["a"]}, "query"),
    ("an empty query", {"query": "", "documents": ["a"]}, "query"),
    ("a query that is a list", {"query": ["a"], "documents": ["a"]}, "query"),
    ("no documents", {"query": "a"}, "documents"),
    ("null documents", {"query": "a", "documents": None}, "documents"),
    ("an empty list", {"query": "a", "documents": []}, "documents"),
    ("501 documents", {"query": "a", "documents": ["b"] * 501}, "documents"),
    ("501 texts", {"query": "a", "texts": ["b"] * 501}, "texts"),
    ("both names", {"query": "a", "documents": ["b"], "texts": ["b"]}, "texts"),
    ("an empty document", {"query": "a", "documents": ["b", ""]}, "documents[1]"),
    ("an empty text", {"query": "a", "texts": [{"text": ""}]}, "texts[0]"),
    ("a number", {"query": "a", "documents": ["b", 1]}, "documents[1]"),
    ("an object without a text", {"query": "a", "documents": [{"title": "b"}]}, "documents[0].title"),
    ("top_n 0", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
    ("a pair that is too long", {"query": "a", "documents": ["b", "word " * 600]}, "documents[1]"),
    ("a megabyte", {"query": "a", "documents": ["b", "c", "word " * 200_000]}, "documents[2]"),
    ("a query of a megabyte", {"query": "word " * 200_000, "texts": ["b"]}, "texts[0]"),
    ("an unknown field", {"query": "a", "documents": ["b"], "rank_fields": []}, "rank_fields"),
    ("an embedding model", {"query": "a", "documents": ["b"], "model": "minilm"}, "model"),
]


@pytest.mark.parametrize(("fields", "param"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input(conch: Conch, key: str, fields: dict[str, Any], param: str) -> None:
    assert post(conch, key, **fields).error(400, param)["type"] == "invalid_request_error"
