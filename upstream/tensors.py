"""Triton's binary tensor extension: values to the body of an /infer request, and its reply to arrays.

Source: server docs/protocol/extension_binary_data.md. Little-endian, row-major; BOOL is one byte, a BYTES element a
uint32 length and its bytes. No numpy: an array keeps its bytes, and hands them on without a copy.
"""

import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import orjson

from upstream.errors import BadReply, ModelFailed

# The array type code of each dtype that Python's array can hold as it is.
CODES = {
    "INT8": "b",
    "UINT8": "B",
    "INT16": "h",
    "UINT16": "H",
    "INT32": "i",
    "UINT32": "I",
    "INT64": "q",
    "UINT64": "Q",
    "FP32": "f",
    "FP64": "d",
}
WIDTHS = {"BOOL": 1, "FP16": 2, "BF16": 2} | {dtype: array(code).itemsize for dtype, code in CODES.items()}
INTEGERS = frozenset(dtype for dtype in CODES if "INT" in dtype)


class Array(msgspec.Struct, frozen=True):
    """A tensor's value: dtype as the protocol names it, the whole shape, and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    @property
    def size(self) -> int:
        """The number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    def items(self) -> list[Any]:
        """The elements in row-major order: numbers, bools, or bytes. ValueError for a dtype without a Python form.

        BadReply for texts that are not what the shape says.
        """
        if self.dtype == "BYTES":
            return _split(self.data, self.size)
        if self.dtype == "BOOL":
            return [bool(byte) for byte in bytes(self.data)]
        if self.dtype == "FP16":
            return list(struct.unpack(f"<{len(self.data) // 2}e", self.data))
        if self.dtype not in CODES:
            raise ValueError(f"{self.dtype} has no Python form")
        return memoryview(self.data).cast("B").cast(CODES[self.dtype]).tolist()  # type: ignore[call-overload,no-any-return]


def received(name: str, dtype: str, shape: Sequence[int], data: bytes | memoryview) -> Array:
    """An Array as a server tells it. Raises BadReply where it has other bytes than its shape asks for."""
    made = Array(dtype, tuple(shape), data)
    if dtype != "BYTES" and made.size * WIDTHS.get(dtype, -1) != len(data):
        raise BadReply(f"the output {name!r} came as {dtype}{list(shape)} in {len(data)} bytes")
    return made


def total(name: str, array: Array) -> int:
    """The sum of the counts in a tensor. Raises BadReply where these are no counts."""
    if array.dtype not in INTEGERS:
        raise BadReply(f"{name!r} came as {array.dtype}, which counts nothing")
    return int(sum(array.items()))


def pack(dtype: str, shape: Sequence[int], values: Iterable[Any]) -> Array:
    """An Array of flat `values`; text is encoded as UTF-8. OverflowError or struct.error: a value that does not fit."""
    if dtype == "BYTES":
        data = b"".join(_element(value) for value in values)
    elif dtype == "BOOL":
        data = bytes(bool(value) for value in values)
    elif dtype == "FP16":
        flat = list(values)
        data = struct.pack(f"<{len(flat)}e", *flat)
    else:
        data = array(CODES[dtype], values).tobytes()
    return Array(dtype, tuple(shape), data)


def request(tensors: Mapping[str, Array], outputs: Iterable[str], parameters: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The body of an /infer request, and the header line that says where its JSON ends."""
    head: dict[str, Any] = {
        "inputs": [
            {
                "name": name,
                "shape": tensor.shape,
                "datatype": tensor.dtype,
                "parameters": {"binary_data_size": len(tensor.data)},
            }
            for name, tensor in tensors.items()
        ],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
    }
    if parameters:
        head["parameters"] = dict(parameters)
    json = orjson.dumps(head)
    body = b"".join([json, *(tensor.data for tensor in tensors.values())])
    return body, b"Inference-Header-Content-Length: %d\r\n" % len(json)


class _Parameters(msgspec.Struct, frozen=True):
    binary_data_size: int | None = None


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: _Parameters = _Parameters()


class _Reply(msgspec.Struct):
    outputs: list[_Output] = []
    error: str | None = None


_decode = msgspec.json.Decoder(_Reply).decode


def reply(headers: Mapping[bytes, bytes], body: bytes) -> dict[str, Array]:
    """The outputs of an /infer reply, by name. Raises BadReply, or ModelFailed for an error that came as 200."""
    length = headers.get(b"inference-header-content-length")
    view = memoryview(body)
    try:
        head = _decode(view[: int(length)] if length is not None else view)
    except ValueError as error:
        raise BadReply(f"an /infer reply that cannot be read: {error}") from error
    if head.error is not None:
        raise ModelFailed(head.error)
    arrays, at = {}, int(length or 0)
    for output in head.outputs:
        size = output.parameters.binary_data_size
        if size is None or min(at, size) < 0 or at + size > len(body):
            raise BadReply(f"the output {output.name!r} of an /infer reply is not there as binary data")
        arrays[output.name] = received(output.name, output.datatype, output.shape, view[at : at + size])
        at += size
    return arrays


def _element(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<I", len(data)) + data


def _split(data: bytes | memoryview, count: int) -> list[bytes]:
    elements, at = [], 0
    while at + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        elements.append(bytes(data[at : at + size]))
        at += size
    if at != len(data) or len(elements) != count:
        raise BadReply(f"{len(data)} bytes of texts, which are not the {count} that they should be")
    return elements
