"""What `make fuzz` has found, and where it begins: its targets on inputs that are known, without its environment."""

import json

import pytest

from tests.fuzz.targets import TARGETS, seeds
from tests.test_multipart import FILE, TYPE
from upstream.errors import BadReply
from upstream.tensors import Array

CUT = bytes([64, 128, 200])


def reply(name: str, dtype: str, data: bytes) -> bytes:
    """One output, and before it where its JSON ends."""
    told = {"name": name, "datatype": dtype, "shape": [1], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"outputs": [told]}).encode()
    return b"%d\n%b%b" % (len(head), head, data)


FOUND = {
    "a boundary right behind other text, which went through where a piece began with it": (
        "multipart",
        CUT + TYPE + b"\nsay what--x--y\r\n" + FILE + b"\r\n\r\ncontent\r\n--x--y--\r\n",
    ),
    "a boundary of two lines": (
        "multipart",
        CUT + b'x; boundary="a\rb"\n--a\rb\r\n' + FILE + b"\r\n\r\n\r\n--a\r\n--a\rb--",
    ),
    "a text that is a number": ("events", CUT + b'\x02data: {"text_output":[3]}\r\n\r\n'),
    "log probabilities of no token": ("events", CUT + b'\x01data: {"text_output":"a","logprobs":"[{}]"}\n\n'),
    "a count that is endless": ("events", CUT + b'\x01data: {"text_output":"a","n_out":[1e308,1e308]}\n\n'),
    "a tensor that ends before it begins": (
        "replies",
        b'\n{"outputs":[{"name":"x","datatype":"INT32","shape":[1],"parameters":{"binary_data_size":-9}}]}',
    ),
    "a number that is cut off": ("replies", reply("n_in", "INT32", b"abc")),
    "half a character": ("replies", reply("text_output", "BYTES", b"\x01\x00\x00\x00\xc3")),
    "an endless count": ("replies", reply("n_out", "FP32", b"\x00\x00\x80\x7f")),
}


@pytest.mark.parametrize(("target", "data"), FOUND.values(), ids=FOUND)
def test_what_was_found(target: str, data: bytes) -> None:
    TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_where_the_search_begins(target: str) -> None:
    assert seeds(target)
    for seed in seeds(target):
        TARGETS[target](seed)


def test_a_text_that_is_cut_off_is_none() -> None:
    with pytest.raises(BadReply, match="which are not the 1"):
        Array("BYTES", (1,), b"\x05\x00\x00\x00abc").items()
