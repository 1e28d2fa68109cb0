"""multipart/form-data in pieces of every size: the parts whole and in order, the limits kept, large files on disk."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.door.errors import InvalidRequest
from handlers.door.multipart import MAX_FIELD, MAX_PREAMBLE, SPOOL, Form, Upload, fields, read_form

TYPE = b'multipart/form-data; charset=utf-8; boundary="x--y"'
FILES = frozenset({"file"})
FILE = b'Content-Disposition: form-data; name="file"; filename="a b.wav"\r\nContent-Type: audio/wav'


def named(name: bytes) -> bytes:
    return b'Content-Disposition: form-data; name="%b"' % name


def body(*parts: tuple[bytes, bytes]) -> bytes:
    """Each part is its headers and its content."""
    return b"".join(b"--x--y\r\n%b\r\n\r\n%b\r\n" % part for part in parts) + b"--x--y--\r\n"


def read(data: bytes, size: int = 65_536, content_type: bytes = TYPE) -> list[tuple[str, str | bytes]]:
    """The parts, files by their bytes, read in pieces of `size`; everything that was taken has been closed."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]
        yield b""  # as uvicorn ends some bodies

    async def whole() -> list[tuple[str, str | bytes]]:
        closes: list[Callable[[], Awaitable[None]]] = []
        try:
            form = await read_form(content_type, pieces(), FILES, closes.append)
            assert len(closes) == sum(isinstance(value, Upload) for _, value in form)
            return [(name, value if isinstance(value, str) else value.open().read()) for name, value in form]
        finally:
            for close in closes:
                await close()

    return asyncio.run(whole())


PARTS = [
    (named(b"model"), b"whisper"),
    (FILE, b"\r\n--x--\r\n--x-\x00\xff"),
    (named(b"a[]"), b""),
    (named(b"a[]"), b"\xc3\xa9"),
]
FOUND: list[tuple[str, str | bytes]] = [("model", "whisper"), ("file", PARTS[1][1]), ("a[]", ""), ("a[]", "é")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_pieces_of_any_size(size: int) -> None:
    assert read(body(*PARTS), size) == FOUND


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_content(content: bytes, size: int) -> None:
    if b"\r\n--x--y" not in b"\r\n" + content:
        assert read(body((FILE, content), (named(b"model"), b"m")), size) == [("file", content), ("model", "m")]


@pytest.mark.parametrize("size", [1, 20, 1000])
def test_a_bare_line_feed_in_a_header_is_refused_however_it_comes(size: int) -> None:
    header = FILE.replace(b"audio/wav", b"\nContent-Length: 3")
    with pytest.raises(InvalidRequest, match="line break"):
        read(body((header, b"sound")), size)


def test_what_stands_before_the_first_boundary_is_bounded() -> None:
    with pytest.raises(InvalidRequest, match="no boundary in its first 4096 bytes"):
        read(b"x" * MAX_PREAMBLE + b"\r\n" + body(*PARTS), 100)


def test_a_large_file_goes_to_disk() -> None:
    content = bytes(range(256)) * (3 * SPOOL // 256) + b"end"
    assert read(body((FILE, content)), 100_000) == [("file", content)]


async def test_an_upload_keeps_little_in_memory() -> None:
    upload = Upload("a.wav")
    for _ in range(40):
        await upload.write(b"x" * 100_000)
        assert len(upload._head) < SPOOL
    file = upload.open()
    assert upload.size == len(file.read()) == 4_000_000
    await upload.close()
    assert file.closed


async def test_a_write_that_is_cancelled_leaves_no_file() -> None:
    for _ in range(20):
        upload = Upload("a.wav")
        writing = asyncio.create_task(upload.write(b"x" * SPOOL))
        await asyncio.sleep(0)
        writing.cancel()
        await upload.close()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert upload._disk is not None
        assert upload._disk.closed


FINE = {
    "a preamble": b"hello\r\n" + body(*PARTS),
    "an epilogue": body(*PARTS) + b"hello",
    "no line after the end": body(*PARTS)[:-2],
}


@pytest.mark.parametrize("data", FINE.values(), ids=FINE)
def test_what_the_standard_allows(data: bytes) -> None:
    assert read(data, 10) == FOUND


def test_names_are_decoded() -> None:
    other = b'form-data; filename="a\\"b"; name=file'
    assert read(body((b"Content-Disposition: " + other, b"x"))) == [("file", b"x")]


WRONG: dict[str, tuple[bytes, str | None]] = {
    "empty": (b"", None),
    "no multipart": (b"model=whisper", None),
    "no end": (body(*PARTS)[:-6], None),
    "cut in a header": (body(*PARTS)[:30], None),
    "cut in a file": (body(*PARTS)[:160], None),
    "a header without a colon": (body((b"hello", b"")), None),
    "no disposition": (body((b"Content-Type: text/plain", b"x")), None),
    "an attachment": (body((b'Content-Disposition: attachment; name="model"', b"x")), None),
    "a header of 10 KB": (body((named(b"model") + b"\r\nX-A: " + b"x" * 10_000, b"x")), None),
    "a header without an end": (b"--x--y\r\n" + b"x" * 10_000, None),
    "100 headers": (body((named(b"model") + b"\r\nX-A: x" * 100, b"x")), None),
    "100 parts": (body(*[(named(b"model"), b"x")] * 100), None),
    "a length that lies": (body((named(b"model") + b"\r\nContent-Length: 9", b"x")), None),
    "a long field": (body((named(b"model"), b"x" * (MAX_FIELD + 1))), "model"),
    "no UTF-8": (body((named(b"model"), b"\xff")), "model"),
    "a file of no use": (body((FILE.replace(b'"file"', b'"other"'), b"x")), "other"),
    "a file as text": (body((named(b"file"), b"x")), "file"),
}


@pytest.mark.parametrize(("data", "param"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("size", [1, 65_536])
def test_wrong(data: bytes, param: str | None, size: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(data, size)
    assert caught.value.param == param
    assert caught.value.code == ("invalid_value" if param else "invalid_multipart")
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    "content_type", [b"multipart/form-data", b"multipart/form-data; boundary=", b'multipart/form-data; boundary="a\n"']
)
def test_no_boundary(content_type: bytes) -> None:
    with pytest.raises(InvalidRequest, match="multipart/form-data"):
        read(body(*PARTS), content_type=content_type)


def test_fields() -> None:
    upload: Any = Upload("a")
    form: Form = [("a[]", "1"), ("model", "m"), ("a[]", "2"), ("file", upload)]
    assert fields(form, frozenset({"a[]"})) == {"a[]": ["1", "2"], "model": "m", "file": upload}
    with pytest.raises(InvalidRequest, match="more than once"):
        fields([("model", "m"), ("model", "m")], frozenset({"a[]"}))
