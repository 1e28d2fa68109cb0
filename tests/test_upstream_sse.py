"""The event splitter: one table, fed whole, one byte at a time, and cut in two at every place."""

import pytest

from upstream.errors import BadReply
from upstream.sse import Events

TABLE = {
    "one": (b'data: {"a":1}\n\n', [b'{"a":1}']),
    "several": (b"data: 1\n\ndata: 2\n\ndata: 3\n\n", [b"1", b"2", b"3"]),
    "crlf": (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [b"1", b"2"]),
    "mixed ends": (b"data: 1\r\n\ndata: 2\n\r\n", [b"1", b"2"]),
    "no space": (b"data:1\n\ndata:  2\n\n", [b"1", b" 2"]),
    "two lines": (b"data: 1\ndata: 2\n\ndata: 3\n\n", [b"1\n2", b"3"]),
    "other fields": (b": ping\n\nevent: x\nid: 7\ndata: 1\nretry: 3\n\ndatabase: 2\n\n", [b"1"]),
    "field within": (b"data: 1\nid: 7\n\n", [b"1"]),
    "empty": (b"data:\n\ndata: \n\n", [b"", b""]),
    "no data": (b"event: x\n\n\n\n", []),
    "nothing": (b"", []),
    "data in data": (b"data: data: 1\n\ndata: \\n\\ndata: 2\n\n", [b"data: 1", b"\\n\\ndata: 2"]),
    "utf-8": ("data: {“é”}\n\n".encode(), ["{“é”}".encode()]),
    "blank lines between": (b"data: 1\n\n\n\ndata: 2\n\n", [b"1", b"2"]),
    "unfinished": (b"data: 1\n\ndata: 2\n", [b"1"]),
}


def split(parts: list[bytes], limit: int = 10_000) -> tuple[list[bytes], bool]:
    events = Events(limit)
    return [payload for part in parts for payload in events.feed(part)], events.partial


@pytest.mark.parametrize("case", TABLE)
def test_table(case: str) -> None:
    data, payloads = TABLE[case]
    expected = (payloads, case == "unfinished")
    assert split([data]) == expected
    assert split([data[i : i + 1] for i in range(len(data))]) == expected
    for cut in range(len(data)):
        assert split([data[:cut], data[cut:]]) == expected


@pytest.mark.parametrize("start", [b"", b"data: ", b"data: 1\n", b"data: 1\n\ndata: "])
def test_an_endless_event(start: bytes) -> None:
    more = [b"data: 23456789\n"] if start.endswith(b"1\n") else [b"x" * 15]
    with pytest.raises(BadReply):
        split([start, *more * 100], limit=1000)


def test_the_limit_is_of_one_event() -> None:
    data = b"data: 0123456789\r\n\r\n" * 100
    assert len(split([data[i : i + 7] for i in range(0, len(data), 7)], limit=20)[0]) == 100
