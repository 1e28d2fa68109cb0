"""What `make fuzz` holds the parsers to: any bytes, cut anyhow, give the same, and raise nothing but what is told.

An input begins with a head that says how it is cut and what reads it. Each target raises where it is not so.
"""

import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, TypeVar

import msgspec

from config import Model
from handlers.door.errors import InvalidRequest
from handlers.door.multipart import Upload, fields, fingerprint, read_form
from tests.test_binding import LIVE, PROMPT, SAID, tensor
from tests.test_multipart import FILES, PARTS, TYPE, body
from tests.test_tools import CORPORA, THOUGHTS, TOOLS, parsed, thought
from tests.test_upstream_sse import TABLE
from upstream import tensors
from upstream.contract import read_contract
from upstream.errors import BadReply, ModelFailed, UpstreamError
from upstream.inference import Delta, Generation
from upstream.sse import Events
from upstream.text import TextBinding
from upstream.tools import FAMILIES

LONGEST = 2048
"""Bytes up to which an input is fed byte by byte, too."""

LISTS = frozenset({"a[]"})
DELTA = {"text": {"tensor": "text_output", "mode": "delta"}}
TOLD = {"finish": "finish_reason", "prompt_tokens": "n_in", "completion_tokens": "n_out", "logprobs": "logprobs"}
CUMULATIVE = {"text": {"tensor": "text_output", "mode": "cumulative", "trim_stop": True}}


def _bound(outputs: dict[str, Any]) -> TextBinding:
    given = {"id": "m", "task": "chat", "upstream": "u", "model": "m", "in": PROMPT, "out": outputs}
    contract = {"name": "m", "max_batch_size": 0, "input": LIVE, "output": (*SAID, tensor("logprobs", dims=(-1,)))}
    return TextBinding(msgspec.convert(given, Model), read_contract(json.dumps(contract).encode()))


BINDINGS = [_bound(each) for each in (DELTA, DELTA | TOLD, CUMULATIVE | TOLD)]

S = TypeVar("S", bytes, str)


def _cuts(data: S, places: bytes) -> Iterator[Sequence[S]]:
    """`data` whole, at some `places`, and one by one."""
    yield [data]
    at = sorted({place * len(data) // 256 for place in places} | {0, len(data)})
    yield [data[start:end] for start, end in pairwise(at)]
    if len(data) <= LONGEST:
        yield [data[at : at + 1] for at in range(len(data))]


def _same(results: Iterable[Any]) -> None:
    first, *others = results
    for other in others:
        assert other == first, f"{other!r} where the whole gave {first!r}"


def multipart(data: bytes) -> None:
    """Three places, the content type up to its line end, the body."""
    content_type, _, content = data[3:].partition(b"\n")
    results = [_form(content_type, pieces) for pieces in _cuts(content, data[:3])]
    if InvalidRequest in results and re.search(rb"(?<!\r)\n", content):
        return  # the parser passes over a bare line feed beside a header's name, unless it ends a piece
    _same(results)


def _form(content_type: bytes, cut: Sequence[bytes]) -> Any:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in cut:
            yield piece

    uploads: list[Upload] = []

    def keep(close: Callable[[], Any]) -> None:
        uploads.append(close.__self__)  # type: ignore[attr-defined]

    reading = read_form(content_type, pieces(), FILES, keep, digested=True)
    try:
        reading.send(None)  # nothing of it waits: files this small stay in memory
    except StopIteration as end:
        form = end.value
    except InvalidRequest as error:
        return type(error)
    else:
        raise AssertionError("it waits for something")
    found = [(name, each if isinstance(each, str) else (each.filename, each.open().read())) for name, each in form]
    assert len(uploads) == sum(isinstance(each, Upload) for _, each in form)
    try:
        named = sorted(fields(form, LISTS))
    except InvalidRequest:
        named = []
    return found, named, fingerprint(form)


def tools(data: bytes) -> None:
    """Three places, the family (or how reasoning begins), whether tools are known; the text."""
    if len(data) < 5:
        return
    text = data[5:].decode("utf-8", "ignore")
    known = TOOLS if data[4] % 2 else None
    results = [_read(data[3] % (len(FAMILIES) + 2), cut, known) for cut in _cuts(text, data[:3])]
    _same([(type(each), each) for each in result] for result in results)
    str(results[0]).encode()  # half a surrogate could not be sent


def _read(family: int, cut: Sequence[str], known: list[dict[str, Any]] | None) -> list[Any]:
    if family < len(FAMILIES):
        return [*parsed(FAMILIES[family], cut, known)]
    return [*thought(cut, opened=family > len(FAMILIES))]


def events(data: bytes) -> None:
    """Three places, which model's answers they are; the bytes of its server."""
    if len(data) < 4:
        return
    cuts = list(_cuts(data[4:], data[:3]))
    _same(_payloads(cut) for cut in cuts)
    for cut in cuts:
        try:
            _payloads(cut, limit=64)
        except BadReply:
            continue
    _same(_said(cut, data[3] % len(BINDINGS)) for cut in cuts)


def _payloads(cut: Sequence[bytes], limit: int = 1 << 24) -> Any:
    splitter = Events(limit)
    return [payload for piece in cut for payload in splitter.feed(piece)], splitter.partial


def _said(cut: Sequence[bytes], which: int) -> Any:
    """The deltas, neighbours of a choice joined, the usage, and with what it ended."""
    reader, splitter = BINDINGS[which].reader(Generation("hi", stream=True, stop=["end", "zz"], logprobs=1)), Events()
    deltas: list[Delta] = []
    try:
        for piece in cut:
            deltas += reader.read(splitter.feed(piece))
        deltas += reader.end()
        ended: Any = None
    except UpstreamError as error:
        ended = type(error)
    said: dict[int, tuple[str, list[str | None]]] = {}
    for delta in deltas:
        text, finishes = said.get(delta.index, ("", []))
        said[delta.index] = (text + delta.text, finishes + [delta.finish] * (delta.finish is not None))
    return said, reader.usage, ended


def replies(data: bytes) -> None:
    """What a server says of where its JSON ends, up to a line end; the body of an /infer reply."""
    length, _, body = data.partition(b"\n")
    try:
        arrays = tensors.reply({b"inference-header-content-length": length} if length else {}, body)
    except (BadReply, ModelFailed):
        return
    for array in arrays.values():
        with suppress(BadReply):
            array.items()
    with suppress(ModelFailed, BadReply):
        reader = BINDINGS[1].reader(Generation("hi"))
        reader.take(BINDINGS[1].event(arrays), [])


TARGETS: dict[str, Callable[[bytes], None]] = {
    "multipart": multipart,
    "tools": tools,
    "events": events,
    "replies": replies,
}


def seeds(name: str) -> list[bytes]:
    """Where the search begins: what the parsers' own tests read."""
    cut = bytes([64, 128, 200])
    if name == "multipart":
        whole = [body(*PARTS), body(PARTS[1], PARTS[1]), body(), body(*PARTS)[:-6]]
        return [cut + TYPE + b"\n" + each for each in whole]
    if name == "tools":
        outputs = [(FAMILIES.index(family), text) for family, each in CORPORA.items() for text, _ in each.values()]
        outputs += [(len(FAMILIES) + opened, text) for text, opened, _ in THOUGHTS.values()]
        return [cut + bytes([family, 1]) + text.encode() for family, text in outputs]
    if name == "replies":
        return [b"%d\n%b" % (length, reply) for length, reply in _replies()]
    answers = [*ANSWERS, *(data for data, _ in TABLE.values())]
    return [cut + bytes([which]) + answer for which in range(len(BINDINGS)) for answer in answers]


def _replies() -> Iterator[tuple[int, bytes]]:
    """The length of their JSON, and all of them."""
    kinds: dict[str, tuple[str, list[Any]]] = {
        "text_output": ("BYTES", ["é", ""]),
        "n_in": ("INT32", [1]),
        "n_out": ("FP32", [1.5]),
        "x": ("FP16", [1]),
    }
    for name, (dtype, values) in kinds.items():
        array = tensors.pack(dtype, (len(values),), values)
        told = {"name": name, "datatype": dtype, "shape": array.shape}
        head = json.dumps({"outputs": [told | {"parameters": {"binary_data_size": len(array.data)}}]}).encode()
        yield len(head), head + array.data


LOGPROBS = '[{"5":{"logprob":-0.5,"rank":1,"decoded_token":"a"}}]'
EVENTS: list[list[dict[str, Any]]] = [
    [{"text_output": "Hello", "finish_reason": "", "n_in": 3, "n_out": 1}, {"text_output": " you", "n_out": [2]}],
    [{"text_output": ["a", "b"], "n_in": [3], "finish_reason": "stop"}, {"error": "it failed"}],
    [{"text_output": "a", "logprobs": LOGPROBS}],
]
ANSWERS = [b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in events) for events in EVENTS]
"""What a model's server says in a stream."""
