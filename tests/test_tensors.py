"""What a server says of its tensors, and what it sends, must agree: what does not is no answer, and nobody's bug."""

import struct
from collections.abc import Callable
from typing import Any

import pytest

from tests.test_binding import FINISH, reader
from upstream.errors import BadReply, ModelFailed
from upstream.grpc import _arrays
from upstream.tensors import Array, pack, received, reply, total

TEXT = struct.pack("<I", 2) + b"ab"


def response(dtype: str, shape: tuple[int, ...], data: bytes) -> Any:
    """What gRPC tells of one output."""
    from tritonclient.grpc import service_pb2

    made = service_pb2.ModelInferResponse(model_name="m")
    made.outputs.add(name="x", datatype=dtype, shape=shape)
    made.raw_output_contents.append(data)
    return made


LIES = [
    ("FP32", (2,), bytes(7)),
    ("FP32", (2,), bytes(4)),
    ("FP32", (-1,), bytes(4)),
    ("INT8", (1, 3), bytes(4)),
    ("FP16", (1,), bytes(4)),
    ("BOOL", (2,), bytes(1)),
    ("FLOAT", (1,), bytes(4)),
    ("BYTES", (2,), TEXT),
    ("BYTES", (1,), TEXT[:-1]),
    ("BYTES", (1,), TEXT + b"x"),
]


@pytest.mark.parametrize(("dtype", "shape", "data"), LIES)
def test_a_tensor_that_is_not_what_it_is_said_to_be(dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    head = b'{"outputs":[{"name":"x","datatype":"%b","shape":%b,"parameters":{"binary_data_size":%d}}]}'
    head %= dtype.encode(), str(list(shape)).encode(), len(data)
    reads: list[Callable[[], Array]] = [
        lambda: received("x", dtype, shape, data),
        lambda: reply({b"inference-header-content-length": b"%d" % len(head)}, head + data)["x"],
        lambda: _arrays(response(dtype, shape, data))["x"],
    ]
    for read in reads:
        with pytest.raises(BadReply):
            read().items()


def test_what_is_what_it_is_said_to_be() -> None:
    assert received("x", "FP32", [2, 1], struct.pack("<2f", 1, 2)).items() == [1, 2]
    assert received("x", "BYTES", [2], TEXT + struct.pack("<I", 0)).items() == [b"ab", b""]
    assert received("x", "FP64", [], bytes(8)).items() == [0]
    assert total("x", pack("UINT32", [2], [3, 4])) == 7


@pytest.mark.parametrize("dtype", ["FP32", "BOOL"])
def test_what_counts_nothing(dtype: str) -> None:
    with pytest.raises(BadReply, match="counts nothing"):
        total("x", pack(dtype, [1], [1]))


WORDS = {"text_output": pack("BYTES", [1], ["a"]), "finish_reason": pack("BYTES", [1], ["stop"])}


@pytest.mark.parametrize(
    "arrays",
    [
        {**WORDS, "text_output": pack("INT64", [1], [7])},
        {**WORDS, "finish_reason": pack("FP32", [1], [7])},
        {**WORDS, "text_output": Array("BYTES", (1,), b"\1\0\0\0\xc3")},
        {**WORDS, "text_output": Array("BF16", (1,), b"ab")},
    ],
)
def test_a_grpc_response_that_is_no_text(arrays: dict[str, Array]) -> None:
    binding = reader(FINISH).binding
    assert binding.event(WORDS).text == ["a"]
    with pytest.raises(BadReply):
        binding.event(arrays)


@pytest.mark.parametrize("payload", [b'{"text_output":7}', b'{"text_output":[["a"]]}', b'{"finish_reason":{"why":1}}'])
def test_an_event_that_is_no_text(payload: bytes) -> None:
    with pytest.raises(ModelFailed, match="not the expected JSON"):
        reader(FINISH).read([payload])
