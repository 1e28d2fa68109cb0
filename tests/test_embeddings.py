"""POST /embeddings through the official SDK, on MiniLM and on the contract models of each preset."""

import base64
import json
import math
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI

from tests.gateway import Conch
from tests.raw import Answer, Wire, bearer

PATH = "/v1/embeddings"
TEXTS = ["Triton serves models.", "The sea god blows a conch.", "Trumpets, and other shells: 🐚 ünïcödé"]
CLS, SEP = 101, 102


@pytest.fixture(scope="module")
def lax(conch: Conch, key: str) -> Iterator[OpenAI]:
    """The SDK asks for base64 and decodes it after its validation, whose strict form wants numbers: so not strict."""
    with OpenAI(base_url=f"{conch.url}/v1", api_key=key, max_retries=0) as sdk:
        yield sdk


def post(conch: Conch, key: str, **fields: Any) -> Answer:
    with Wire(conch.url, timeout=60) as wire:
        body = json.dumps(fields).encode()
        wire.request("POST", PATH, body, content_type="application/json", **bearer(key))
        return wire.answer()


def numbers(conch: Conch, key: str, **fields: Any) -> list[list[float]]:
    answer = post(conch, key, **fields)
    assert answer.status == 200, answer.body
    body = answer.json
    assert [each["index"] for each in body["data"]] == list(range(len(body["data"])))
    return [each["embedding"] for each in body["data"]]


def spelt(text: str, size: int = 1024) -> list[float]:
    """What embed_text says of a text."""
    data = text.encode()
    return [float(len(data)), *map(float, data[: size - 1]), *[0.0] * (size - 1 - len(data))]


def close(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-5, abs_tol=1e-6) for x, y in zip(a, b, strict=True))


def test_base64_and_float_are_the_same_vectors(lax: OpenAI, client: OpenAI) -> None:
    by_default = lax.embeddings.create(model="minilm", input=TEXTS)
    assert [each.index for each in by_default.data] == [0, 1, 2]
    assert by_default.model == "minilm"
    floats = client.embeddings.create(model="minilm", input=TEXTS, encoding_format="float")
    for each, other in zip(by_default.data, floats.data, strict=True):
        assert len(each.embedding) == 384
        assert math.isclose(sum(x * x for x in each.embedding), 1, rel_tol=1e-5)
        assert [struct.unpack("<f", struct.pack("<f", x))[0] for x in other.embedding] == each.embedding
    assert by_default.usage.prompt_tokens == by_default.usage.total_tokens > 15


def test_the_answer_has_openais_shape(conch: Conch, key: str) -> None:
    answer = post(conch, key, model="minilm", input="hello", encoding_format="base64", user="me")
    body = answer.json
    vector = body["data"][0].pop("embedding")
    assert len(base64.b64decode(vector, validate=True)) == 384 * 4
    usage = {"prompt_tokens": 3, "total_tokens": 3}  # [CLS] hello [SEP]
    assert body == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0}],
        "model": "minilm",
        "usage": usage,
    }
    timing = answer.headers["server-timing"]
    assert float(timing.rpartition("dur=")[2]) > 0


async def test_async(async_client: AsyncOpenAI) -> None:
    answer = await async_client.embeddings.create(model="minilm", input="a shell", encoding_format="float")
    assert len(answer.data[0].embedding) == 384


def test_like_texts_are_near(lax: OpenAI) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose again."]
    cat, kitten, rates = (each.embedding for each in lax.embeddings.create(model="minilm", input=texts).data)
    near, far = (sum(x * y for x, y in zip(cat, other, strict=True)) for other in (kitten, rates))
    assert near > 0.5 > 0.3 > far


def test_many_inputs_keep_their_order(conch: Conch, key: str) -> None:
    texts = [f"text {i} " + "x" * (i * 7 % 90) for i in range(1000)]  # 17 batches of 60
    answer = numbers(conch, key, model="embed-text", input=texts)
    assert answer == [spelt(text) for text in texts]


def test_2048_inputs_are_the_most(conch: Conch, key: str) -> None:
    assert len(numbers(conch, key, model="embed-text", input=["x"] * 2048)) == 2048
    for count in (2049, 3000):
        error = post(conch, key, model="embed-text", input=["x"] * count).error(400, "input")
        assert "2048" in error["message"]


def test_matryoshka_vectors_are_cut_and_scaled(conch: Conch, key: str) -> None:
    [vector] = numbers(conch, key, model="embed-text", input="abc", dimensions=3)
    length = math.hypot(3, 97, 98)
    assert close(vector, [3 / length, 97 / length, 98 / length])
    assert numbers(conch, key, model="embed-text", input="abc", dimensions=1024) == [spelt("abc")]
    error = post(conch, key, model="embed-text", input="abc", dimensions=1025).error(400, "dimensions")
    assert "1024" in error["message"]


def test_dimensions_that_cannot_be_changed(conch: Conch, key: str) -> None:
    assert len(numbers(conch, key, model="minilm", input="abc", dimensions=384)[0]) == 384
    error = post(conch, key, model="minilm", input="abc", dimensions=128).error(400, "dimensions")
    assert error["code"] == "unsupported_parameter"
    assert "384" in error["message"]


def test_tokens_are_made_and_pooled(conch: Conch, key: str) -> None:
    # A state is (id, mask, type, position, rows, length of the batch, 1, 0): the mean is over a text's own tokens.
    answer = post(conch, key, model="onnx-embed", input=["hello", "hello hello hello"])
    vectors = [each["embedding"] for each in answer.json["data"]]
    hello = 7592
    assert close(vectors[0], [(CLS + hello + SEP) / 3, 1, 0, 1, 2, 5, 1, 0])
    assert close(vectors[1], [(CLS + 3 * hello + SEP) / 5, 1, 0, 2, 2, 5, 1, 0])
    assert answer.json["usage"] == {"prompt_tokens": 8, "total_tokens": 8}


def test_batches_of_tokens_are_alike_in_length(conch: Conch, key: str) -> None:
    texts = ["hello " * (1 + i * 13 % 40) for i in range(40)]  # 16 to a batch
    vectors = numbers(conch, key, model="onnx-embed", input=texts)
    lengths = [text.count("hello") + 2 for text in texts]
    assert [round(vector[3] * 2) + 1 for vector in vectors] == lengths  # the mean position tells the length
    order = sorted(lengths)
    assert sorted({vector[5] for vector in vectors}) == sorted({order[15], order[31], order[39]})


def test_token_ids_of_a_client(conch: Conch, key: str) -> None:
    assert close(numbers(conch, key, model="onnx-embed", input=[5, 7])[0], [6, 1, 0, 0.5, 1, 2, 1, 0])
    two = numbers(conch, key, model="onnx-embed", input=[[5, 7], [9]])
    assert close(two[0], [6, 1, 0, 0.5, 2, 2, 1, 0])
    assert close(two[1], [9, 1, 0, 0, 2, 2, 1, 0])
    error = post(conch, key, model="onnx-embed", input=[[5], [999_999]]).error(400, "input[1]")
    assert "30521" in error["message"]
    error = post(conch, key, model="onnx-embed", input=[[5], [6] * 513]).error(400, "input[1]")
    assert "512 tokens" in error["message"]


@pytest.mark.parametrize("model", ["vllm-embed", "vllm-embed-grpc"])
def test_vllm_takes_one_input_per_request(lax: OpenAI, model: str) -> None:
    answer = lax.embeddings.create(model=model, input=["ab", "c", "dé"])
    assert [each.embedding[:4] for each in answer.data] == [[2, 97, 98, 0], [1, 99, 0, 0], [3, 100, 195, 169]]
    assert {len(each.embedding) for each in answer.data} == {32}
    assert answer.usage.prompt_tokens == 6
    cut = lax.embeddings.create(model=model, input="abcdef", dimensions=5)
    assert cut.data[0].embedding == [6, 97, 98, 99, 100]
    ids = lax.embeddings.create(model=model, input=[[1000, 2000], [7]])
    assert [each.embedding[:3] for each in ids.data] == [[2, 1000, 2000], [1, 7, 0]]


LONG = "word " * 300
BAD: list[tuple[str, dict[str, Any], str | None]] = [
    ("no input", {}, "input"),
    ("null input", {"input": None}, "input"),
    ("a number", {"input": 5}, "input"),
    ("an object", {"input": {"text": "x"}}, "input"),
    ("an empty text", {"input": ""}, "input"),
    ("an empty list", {"input": []}, "input"),
    ("an empty text in a list", {"input": ["a", "b", ""]}, "input[2]"),
    ("an empty list of tokens", {"input": [[1], []], "model": "onnx-embed"}, "input[1]"),
    ("one empty list of tokens", {"input": [[]], "model": "onnx-embed"}, "input"),
    ("texts and tokens", {"input": ["a", 5]}, "input[1]"),
    ("tokens and texts", {"input": [5, "a"]}, "input[1]"),
    ("texts and lists", {"input": ["a", [5]]}, "input[1]"),
    ("lists and texts", {"input": [[5], "a"], "model": "onnx-embed"}, "input[1]"),
    ("a negative token", {"input": [[5, -1]]}, "input[0][1]"),
    ("a huge token", {"input": [2**31]}, "input[0]"),
    ("half a token", {"input": [1.5]}, "input[0]"),
    ("true", {"input": [True]}, "input[0]"),
    ("null in a list", {"input": ["a", None]}, "input[1]"),
    ("token ids where texts are wanted", {"input": [5, 6]}, "input"),
    ("lists of token ids where texts are wanted", {"input": [[5], [6]]}, "input"),
    ("too long", {"input": LONG}, "input"),
    ("one that is too long", {"input": ["a", LONG]}, "input[1]"),
    ("a megabyte", {"input": ["a", "b", "word " * 200_000]}, "input[2]"),
    ("a megabyte without a space", {"input": "界" * 350_000}, "input"),
    ("a megabyte, token-in", {"input": "word " * 200_000, "model": "onnx-embed"}, "input"),
    ("dimensions 0", {"input": "a", "dimensions": 0}, "dimensions"),
    ("dimensions -1", {"input": "a", "dimensions": -1}, "dimensions"),
    ("dimensions 1.5", {"input": "a", "dimensions": 1.5}, "dimensions"),
    ("many dimensions", {"input": "a", "dimensions": 10**9}, "dimensions"),
    ("a strange encoding", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ("an unknown field", {"input": "a", "normalise": True}, "normalise"),
    ("a chat model", {"input": "a", "model": "vllm"}, "model"),
]


@pytest.mark.parametrize(("fields", "param"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input(conch: Conch, key: str, fields: dict[str, Any], param: str | None) -> None:
    answer = post(conch, key, **{"model": "minilm", **fields})
    assert answer.error(400, param)["type"] == "invalid_request_error"


def test_what_just_fits_is_taken_whole(lax: OpenAI) -> None:
    answer = lax.embeddings.create(model="minilm", input="hello " * 254)
    assert answer.usage.prompt_tokens == 256
    with pytest.raises(BadRequestError, match="256 tokens"):
        lax.embeddings.create(model="minilm", input="hello " * 255)
