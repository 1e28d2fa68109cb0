"""Embedding and rerank bindings as tables, without a server: inputs → exact tensors, outputs → vectors and scores."""

import asyncio
import json
import math
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from config import Model
from scripts.triton import fetch
from scripts.wheel import CACHE
from upstream import rows
from upstream.contract import NotBound, read_contract
from upstream.embedding import EmbeddingBinding, Vectors, embed
from upstream.errors import BadReply, ModelFailed, Unsupported
from upstream.ranking import RankBinding, Ranking, rank
from upstream.rows import Progress
from upstream.tensors import Array, pack
from upstream.tokens import Tokenizer, TooLong

Table = dict[str, Any]
TEXT = [{"name": "text", "data_type": "TYPE_STRING", "dims": [1]}]
HELLO, WORLD, CLS, SEP = 7592, 2088, 101, 102


@pytest.fixture(scope="module", autouse=True)
def tokenizer_file() -> Path:
    """MiniLM's, which is placed there when Triton is fetched."""
    fetch()
    return CACHE / "minilm" / "tokenizer.json"


def token(name: str, kind: str = "INT64", dims: tuple[int, ...] = (-1,), optional: bool = False) -> Table:
    return {"name": name, "data_type": f"TYPE_{kind}", "dims": dims, "optional": optional}


TOKENS = [token("input_ids"), token("attention_mask"), token("token_type_ids")]


class Recorder:
    """The calls of a Deployment that embed and rank make; each request's tensors are kept, and `answer` answers."""

    def __init__(self, task: str, profile: Table, inputs: list[Table], outputs: list[Table], batch: int, answer: Any):
        given = {"id": "m", "task": task, "upstream": "u", "model": "m", **profile}
        model = msgspec.convert(given, Model)
        contract = {"name": "m", "max_batch_size": batch, "input": inputs, "output": outputs}
        live = read_contract(json.dumps(contract).encode())
        self.binding = EmbeddingBinding(model, live) if task == "embedding" else RankBinding(model, live)
        settings = model.embedding if task == "embedding" else model.rerank
        self.prepared = (
            Tokenizer(Path(settings.tokenizer), settings.max_tokens, truncate=settings.truncate)
            if settings.tokenizer
            else None
        )
        self.settings = SimpleNamespace(transport="infer")
        self.sent: list[dict[str, Array]] = []
        self.parameters: list[Table] = []
        self._answer = answer

    async def infer(self, arrays: dict[str, Array], outputs: list[str], parameters: Table) -> dict[str, Array]:
        self.sent.append(arrays)
        self.parameters.append(parameters)
        answered: dict[str, Array] = self._answer(arrays)
        return answered

    async def embed(self, inputs: Any, dimensions: int | None = None, **extra: Any) -> Vectors:
        return await embed(self, inputs, dimensions, extra, Progress())  # type: ignore[arg-type]

    async def rank(self, query: str, *documents: str) -> Ranking:
        return await rank(self, query, list(documents), {}, Progress())  # type: ignore[arg-type]


def floats(row: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(row) // 4}f", row))


def fixed(dtype: str, *values: float) -> Any:
    """Answers with these values for each row."""

    def answer(arrays: dict[str, Array]) -> dict[str, Array]:
        count = next(iter(arrays.values())).shape[0]
        return {"v": pack(dtype, [count, len(values)], list(values) * count)}

    return answer


def text_model(batch: int = 8, dtype: str = "FP32", size: int = 2, answer: Any = None, **settings: Any) -> Recorder:
    profile = {"in": {"text": "input"}, "out": {"embedding": "v"}, "embedding": settings}
    output = [{"name": "v", "data_type": f"TYPE_{dtype}", "dims": [size]}]
    return Recorder("embedding", profile, TEXT, output, batch, answer or fixed(dtype, 3.0, 4.0))


def states(arrays: dict[str, Array]) -> dict[str, Array]:
    """Hidden states (id, 1) of each token; something large where there is none."""
    ids, mask = arrays["input_ids"], arrays["attention_mask"]
    values = [
        part
        for id, there in zip(ids.items(), mask.items(), strict=True)
        for part in ((id, 1.0) if there else (1e9, 1e9))
    ]
    return {"v": pack("FP32", [*ids.shape, 2], values)}


def token_model(
    batch: int = 8, inputs: list[Table] = TOKENS, dims: tuple[int, ...] = (-1, 2), **settings: Any
) -> Recorder:
    names = {"input_ids": "tokens.ids", "attention_mask": "tokens.mask", "token_type_ids": "tokens.types"}
    own = {"tokenizer": str(CACHE / "minilm" / "tokenizer.json"), "pooling": "mean", **settings}
    profile = {"in": names, "out": {"embedding": "v"}, "embedding": own}
    return Recorder(
        "embedding", profile, inputs, [{"name": "v", "data_type": "TYPE_FP32", "dims": dims}], batch, states
    )


async def test_texts_become_batches() -> None:
    model = text_model(batch=2, prefix="query: ")
    vectors = await model.embed(["a", "ü", "c"])
    assert [(each["text"].dtype, each["text"].shape, each["text"].items()) for each in model.sent] == [
        ("BYTES", (2, 1), [b"query: a", "query: ü".encode()]),
        ("BYTES", (1, 1), [b"query: c"]),
    ]
    assert [floats(row) for row in vectors.rows] == [[3, 4]] * 3
    assert vectors.prompt_tokens == 0  # no tensor tells, no tokenizer counts


async def test_a_tokenizer_counts_what_no_tensor_tells(tokenizer_file: Path) -> None:
    vectors = await text_model(tokenizer=str(tokenizer_file)).embed(["hello", "hello world"])
    assert vectors.prompt_tokens == 7


async def test_texts_of_a_model_without_batches() -> None:
    whole = Recorder(
        "embedding",
        {"in": {"text": "input"}, "out": {"embedding": "v"}},
        [{"name": "text", "data_type": "TYPE_STRING", "dims": [-1]}],
        [token("v", "FP32", (-1, 2))],
        0,
        fixed("FP32", 1.0, 2.0),
    )
    assert len((await whole.embed([str(i) for i in range(40)])).rows) == 40
    assert [each["text"].shape for each in whole.sent] == [(32,), (8,)]
    single = text_model(batch=0, answer=lambda arrays: {"v": pack("FP32", [2], [1.0, 2.0])})
    assert len((await single.embed(["a", "b"])).rows) == 2
    assert [each["text"].shape for each in single.sent] == [(1,), (1,)]


@pytest.mark.parametrize("kind", ["INT64", "INT32"])
async def test_tokens_are_padded_within_their_batch(kind: str) -> None:
    inputs = [token(each["name"], kind) for each in TOKENS]
    model = token_model(batch=2, inputs=inputs)
    vectors = await model.embed(["hello world hello", "hello", "hello world"])
    short, long = model.sent
    assert {each.dtype for each in short.values()} == {kind}
    assert short["input_ids"].shape == (2, 4)
    assert short["input_ids"].items() == [CLS, HELLO, SEP, 0, CLS, HELLO, WORLD, SEP]
    assert short["attention_mask"].items() == [1, 1, 1, 0, 1, 1, 1, 1]
    assert short["token_type_ids"].items() == [0] * 8
    assert long["input_ids"].items() == [CLS, HELLO, WORLD, HELLO, SEP]
    means = [floats(row)[0] for row in vectors.rows]
    assert means == pytest.approx(
        [(CLS + 2 * HELLO + WORLD + SEP) / 5, (CLS + HELLO + SEP) / 3, (CLS + HELLO + WORLD + SEP) / 4]
    )
    assert vectors.prompt_tokens == 12


async def test_a_fixed_length_is_filled() -> None:
    model = token_model(inputs=[token("input_ids", dims=(6,)), token("attention_mask", dims=(6,))], max_tokens=6)
    await model.embed(["hello"])
    assert model.sent[0]["input_ids"].items() == [CLS, HELLO, SEP, 0, 0, 0]
    assert model.sent[0]["attention_mask"].items() == [1, 1, 1, 0, 0, 0]


async def test_tokens_of_a_model_without_batches() -> None:
    model = token_model(batch=0, inputs=[token(each["name"], dims=(-1, -1)) for each in TOKENS], dims=(-1, -1, 2))
    await model.embed(["hello", "hello world"])
    assert [each["input_ids"].shape for each in model.sent] == [(2, 4)]


@pytest.mark.parametrize(("pooling", "expected"), [("mean", (CLS + HELLO + SEP) / 3), ("cls", CLS), ("last", SEP)])
async def test_pooling(pooling: str, expected: float) -> None:
    vectors = await token_model(pooling=pooling).embed(["hello", "hello world"])
    assert floats(vectors.rows[0]) == pytest.approx([expected, 1])


async def test_scaling_and_cutting() -> None:
    [row] = (await text_model(normalize=True).embed(["a"])).rows
    assert floats(row) == pytest.approx([0.6, 0.8])
    four = fixed("FP32", 3.0, 4.0, 12.0, 84.0)
    [row] = (await text_model(size=4, matryoshka=True, answer=four).embed(["a"], 2)).rows
    assert floats(row) == pytest.approx([0.6, 0.8])
    zero = fixed("FP32", 0.0, 0.0)
    assert (await text_model(normalize=True, answer=zero).embed(["a"])).rows == [bytes(8)]
    for size in (2, -1):
        with pytest.raises(Unsupported, match="have 2 numbers"):
            await text_model(size=size, matryoshka=True).embed(["a"], 3)
    with pytest.raises(Unsupported, match="cannot change it"):
        await text_model().embed(["a"], 1)


@pytest.mark.parametrize("dtype", ["FP16", "FP64"])
async def test_other_floats(dtype: str) -> None:
    [row] = (await text_model(dtype=dtype).embed(["a"])).rows
    assert floats(row) == [3, 4]


async def test_dimensions_go_into_a_tensor() -> None:
    profile = {"in": {"text": "input", "size": "dimensions"}, "out": {"embedding": "v"}}
    inputs = [*TEXT, token("size", "INT32", (1,), optional=True)]
    model = Recorder("embedding", profile, inputs, [token("v", "FP32", (-1,))], 4, fixed("FP32", 3.0, 4.0))
    assert len((await model.embed(["a", "b"], 2)).rows) == 2
    assert (model.sent[0]["size"].shape, model.sent[0]["size"].items()) == ((2, 1), [2, 2])
    with pytest.raises(BadReply, match="3 were asked for"):
        await model.embed(["a"], 3)


async def test_what_is_longer_than_allowed(tokenizer_file: Path) -> None:
    model = token_model(max_tokens=4)
    with pytest.raises(TooLong) as refusal:
        await model.embed(["hello", "hello hello hello"])
    assert (refusal.value.index, refusal.value.limit, model.sent) == (1, 4, [])
    cut = token_model(max_tokens=4, truncate=True)
    for text in ("hello world hello", "hello world " * 10_000):
        await cut.embed([text])
        assert cut.sent.pop()["input_ids"].items() == [CLS, HELLO, WORLD, SEP]
    spaces = token_model(max_tokens=4)
    await spaces.embed([" " * 10_000 + "hello"])  # long, and yet few tokens
    assert spaces.sent[0]["input_ids"].items() == [CLS, HELLO, SEP]


BAD_REPLIES: list[tuple[str, Any, type[Exception]]] = [
    ("no such output", lambda arrays: {}, BadReply),
    ("too few values", lambda arrays: {"v": pack("FP32", [1, 3], [1, 2, 3])}, BadReply),
    ("no values", lambda arrays: {"v": pack("FP32", [2, 0], [])}, BadReply),
    ("integers", lambda arrays: {"v": pack("INT32", [2, 1], [1, 2])}, BadReply),
]


@pytest.mark.parametrize(("answer", "error"), [row[1:] for row in BAD_REPLIES], ids=[row[0] for row in BAD_REPLIES])
async def test_replies_that_do_not_fit(answer: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await text_model(answer=answer).embed(["a", "b"])


@pytest.mark.parametrize(
    "answer", [pack("INT64", [1], [7]), pack("BYTES", [2], ["[1]", "[2]"]), pack("BYTES", [1], ["7"])]
)
async def test_json_that_is_no_vector(answer: Array) -> None:
    profile = {"in": {"text": "input"}, "out": {"embedding": {"tensor": "v", "encoding": "json"}}}
    model = Recorder("embedding", profile, TEXT, [token("v", "STRING", (1,))], 1, lambda arrays: {"v": answer})
    with pytest.raises(BadReply, match="not a JSON list"):
        await model.embed(["a"])


async def test_a_vector_of_nan_is_a_failure() -> None:
    with pytest.raises(ModelFailed):
        await text_model(normalize=True, answer=fixed("FP32", math.nan, 1.0)).embed(["a"])


OUT = [token("v", "FP32", (2,))]
UNBOUND: list[tuple[str, Table, list[Table], list[Table], str]] = [
    ("no input", {"in": {}, "out": {"embedding": "v"}}, [], OUT, "input or tokens.ids"),
    ("no output", {"in": {"text": "input"}}, TEXT, OUT, "add embedding"),
    ("another output", {"in": {"text": "input"}, "out": {"embedding": "w"}}, TEXT, OUT, "it has: v"),
    ("an input not filled", {"in": {}, "out": {"embedding": "v"}}, TEXT, OUT, "requires 'text'"),
    (
        "both",
        {"in": {"text": "input", "input_ids": "tokens.ids"}, "out": {"embedding": "v"}},
        [*TEXT, TOKENS[0]],
        OUT,
        "either input",
    ),
    ("no tokenizer", {"in": {"input_ids": "tokens.ids"}, "out": {"embedding": "v"}}, TOKENS[:1], OUT, "tokenizer.json"),
    (
        "a vector per token",
        {"in": {"input_ids": "tokens.ids"}, "out": {"embedding": "v"}, "embedding": {"tokenizer": "t"}},
        TOKENS[:1],
        [token("v", "FP32", (-1, 2))],
        "set pooling",
    ),
    (
        "tokens as floats",
        {"in": {"input_ids": "tokens.ids"}, "out": {"embedding": "v"}},
        [token("input_ids", "FP32")],
        OUT,
        "tokens are INT64",
    ),
    (
        "a shorter fixed length",
        {"in": {"input_ids": "tokens.ids"}, "out": {"embedding": "v"}},
        [token("input_ids", dims=(128,))],
        OUT,
        "max_tokens = 128",
    ),
    (
        "pooling of texts",
        {"in": {"text": "input"}, "out": {"embedding": "v"}, "embedding": {"pooling": "cls"}},
        TEXT,
        OUT,
        "pooling is for",
    ),
    ("bytes", {"in": {"text": "input"}, "out": {"embedding": "v"}}, TEXT, [token("v", "STRING")], "vectors are FP32"),
]


@pytest.mark.parametrize(
    ("profile", "inputs", "outputs", "why"), [row[1:] for row in UNBOUND], ids=[row[0] for row in UNBOUND]
)
def test_profiles_that_do_not_fit(profile: Table, inputs: list[Table], outputs: list[Table], why: str) -> None:
    with pytest.raises(NotBound, match=why):
        Recorder("embedding", profile, inputs, outputs, 4, None)


def logits(*values: float, dtype: str = "FP32", **out: Any) -> Recorder:
    """A cross-encoder that takes texts and gives these values."""
    profile = {"in": {"q": "query", "d": "document"}, "out": {"score": {"tensor": "v", **out}}}
    inputs = [token("q", "STRING", (1,)), token("d", "STRING", (1,))]
    output = [token("v", dtype, (-1,))]
    return Recorder("rerank", profile, inputs, output, 8, lambda _: {"v": pack(dtype, [len(values)], values)})


SCORES: list[tuple[str, Recorder, list[float]]] = [
    ("one logit", logits(0, math.log(3), -1000, 1000), [0.5, 0.75, 0, 1]),
    ("half precision", logits(0, 0, 0, 1000, dtype="FP16"), [0.5, 0.5, 0.5, 1]),
    ("two logits", logits(1, 1, 0, math.log(3), 5, 5, 5, 5), [0.5, 0.75, 0.5, 0.5]),
    ("scores already", logits(0.1, 0.2, 0.3, 0.4, activation="none"), [0.1, 0.2, 0.3, 0.4]),
    ("two scores already", logits(0.9, 0.1, 0.8, 0.2, 0, 1, 1, 0, activation="none"), [0.1, 0.2, 1, 0]),
]


@pytest.mark.parametrize(("model", "scores"), [row[1:] for row in SCORES], ids=[row[0] for row in SCORES])
async def test_scores(model: Recorder, scores: list[float]) -> None:
    ranking = await model.rank("who", "a", "b", "c", "d")
    assert ranking.scores == pytest.approx(scores, abs=1e-6)
    [sent] = model.sent
    assert (sent["q"].shape, sent["q"].items()) == ((4, 1), [b"who"] * 4)
    assert (sent["d"].shape, sent["d"].items()) == ((4, 1), [b"a", b"b", b"c", b"d"])


@pytest.mark.parametrize(("model", "error"), [(logits(1), BadReply), (logits(1, math.inf), ModelFailed)])
async def test_scores_that_are_none(model: Recorder, error: type[Exception]) -> None:
    with pytest.raises(error):
        await model.rank("who", "a", "b")


async def test_pairs_of_tokens(tokenizer_file: Path) -> None:
    names = {"input_ids": "tokens.ids", "attention_mask": "tokens.mask", "token_type_ids": "tokens.types"}
    profile = {"in": names, "out": {"score": "v"}, "rerank": {"tokenizer": str(tokenizer_file)}}

    def answer(arrays: dict[str, Array]) -> dict[str, Array]:
        types = arrays["token_type_ids"]
        return {"v": pack("FP32", types.shape[:1], map(sum, _split(types)))}

    model = Recorder("rerank", profile, TOKENS, [token("v", "FP32", (1,))], 2, answer)
    ranking = await model.rank("hello", "world world world", "world", "world world")
    assert model.sent[0]["input_ids"].items() == [CLS, HELLO, SEP, WORLD, SEP, 0, *[CLS, HELLO, SEP, WORLD, WORLD, SEP]]
    assert model.sent[0]["attention_mask"].items() == [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    assert model.sent[0]["token_type_ids"].items() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    assert ranking.scores == pytest.approx([1 / (1 + math.exp(-each)) for each in (4, 2, 3)])
    assert ranking.prompt_tokens == 5 + 6 + 7


def _split(array: Array) -> list[list[int]]:
    items, width = array.items(), array.shape[1]
    return [items[at : at + width] for at in range(0, len(items), width)]


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match="cannot be read"):
        Tokenizer(file, 8, truncate=False)
    for text in ("", "{}", "[1]", '{"model": '):
        file.write_text(text)
        with pytest.raises(ValueError, match="no tokenizer"):
            Tokenizer(file, 8, truncate=False)


async def test_gather_is_bounded_ordered_and_ends_at_an_error() -> None:
    under_way, most, ended = 0, 0, 0
    gate = asyncio.Event()

    async def work(index: int) -> int:
        nonlocal under_way, most, ended
        under_way += 1
        most = max(most, under_way)
        if under_way == rows.AT_ONCE:
            gate.set()
        try:
            await gate.wait()
            await asyncio.sleep(0)
            if index == 30:
                raise BadReply("the thirtieth")
            if index > 30:
                await asyncio.Event().wait()
        finally:
            under_way -= 1
            ended += 1
        return index

    assert await rows.gather([lambda index=i: work(index) for i in range(30)], lambda: True) == list(range(30))  # type: ignore[misc]
    assert most == rows.AT_ONCE
    with pytest.raises(BadReply, match="thirtieth"):
        await rows.gather([lambda index=i: work(index) for i in range(100)], lambda: True)  # type: ignore[misc]
    assert under_way == 0
    assert ended < 30 + 31 + rows.AT_ONCE
