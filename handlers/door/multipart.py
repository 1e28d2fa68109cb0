"""multipart/form-data (RFC 7578), read as it streams: fields in memory, a file on disk once it is large."""

import asyncio
import contextlib
import hashlib
import io
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import IO, BinaryIO, Final

from handlers.door.errors import InvalidRequest

SPOOL = 1 << 20  # bytes of a file that are kept in memory, and written at once
MAX_FIELD = 64 << 10  # bytes
MAX_NAME = 64  # characters
MAX_PARTS = 64
MAX_HEADERS = 8  # of a part
MAX_HEADER = 4 << 10  # bytes
MAX_PREAMBLE = 4 << 10  # bytes that may stand before the first boundary

BOUNDARY: Final = re.compile(r"[\w'()+,./:=? -]{0,69}[\w'()+,./:=?-]", re.ASCII)  # RFC 2046, section 5.1.1

Form = list[tuple[str, "str | Upload"]]


class Upload:
    """A file that was sent. What is beyond a mebibyte lies in a temporary file without a name, gone with `close`."""

    def __init__(self, filename: str, *, digested: bool = False) -> None:
        self.filename = filename
        self.digest = hashlib.sha256() if digested else None  # of what was written
        self.size = 0
        self._head = bytearray()
        self._disk: IO[bytes] | None = None
        self._writing: asyncio.Future[None] | None = None

    async def write(self, data: bytes) -> None:
        """Append; once a mebibyte has come together, in a thread to the disk."""
        if self.digest is not None:
            self.digest.update(data)
        self._head += data
        self.size += len(data)
        if len(self._head) >= SPOOL:
            block, self._head = self._head, bytearray()
            self._writing = asyncio.get_running_loop().run_in_executor(None, self._append, block)
            await asyncio.shield(self._writing)  # a thread cannot be stopped half-way: `close` waits for it

    def open(self) -> BinaryIO:
        """The whole file, from its beginning, in a worker thread and once; it lives until `close`."""
        if self._disk is None:
            return io.BytesIO(self._head)
        self._append(self._head)
        self._disk.seek(0)
        return self._disk  # type: ignore[return-value]

    async def close(self) -> None:
        """Give back the memory and the disk."""
        if self._writing is not None:
            with contextlib.suppress(OSError):
                await self._writing
        if self._disk is not None:
            self._disk.close()
        self._head = bytearray()

    def _append(self, block: bytearray) -> None:
        if self._disk is None:
            self._disk = tempfile.TemporaryFile(prefix="conch-", buffering=0)  # noqa: SIM115 - `close` closes it
        view = memoryview(block)
        while view:
            view = view[self._disk.write(view) :]


async def read_form(
    content_type: bytes,
    pieces: AsyncIterator[bytes],
    files: frozenset[str],
    on_end: Callable[[Callable[[], Awaitable[None]]], None],
    *,
    digested: bool = False,
) -> Form:
    """The parts in their order: a text, or for the names in `files` an Upload, whose `close` goes to `on_end` at once.

    `digested`: for `fingerprint`.
    Raises InvalidRequest for what is not multipart, breaks off, or goes beyond a limit.
    """
    from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

    form: Form = []
    name, upload, text = "", None, bytearray()
    try:
        boundary = parse_options_header(content_type.decode("latin-1"))[1].get("boundary", "")
        if not BOUNDARY.fullmatch(boundary):
            raise MultipartError("the content type names no good boundary")
        parser = PushMultipartParser(
            boundary, max_segment_count=MAX_PARTS, max_header_count=MAX_HEADERS, max_header_size=MAX_HEADER
        )
        with parser:
            async for piece in _opened(pieces, f"--{boundary}".encode()):
                for event in parser.parse(piece) if piece else ():
                    if isinstance(event, MultipartSegment):
                        if any("\n" in value for _, value in event.headerlist):
                            raise MultipartError("Invalid line break in segment header")
                        name, upload = _begin(event.name or "", event.filename, files, digested)
                        if upload is not None:
                            on_end(upload.close)
                    elif event is None:
                        form.append((name, _text(name, text) if upload is None else upload))
                        text = bytearray()
                    elif upload is not None:
                        await upload.write(event)
                    else:
                        text += event
                        if len(text) > MAX_FIELD:
                            raise _wrong(name, f"it has more than {MAX_FIELD} bytes")
    except MultipartError as error:
        raise InvalidRequest(
            f"The body is not valid multipart/form-data: {error}.", code="invalid_multipart"
        ) from error
    return form


async def _opened(pieces: AsyncIterator[bytes], opening: bytes) -> AsyncIterator[bytes]:
    """The pieces, with all up to the first boundary in one: what the parser does with it depends on how it is cut.

    Raises InvalidRequest.
    """
    head, found = b"", False
    async for piece in pieces:
        if not found:
            head += piece
            found = opening in head
            if not found and len(head) > MAX_PREAMBLE:
                raise InvalidRequest(
                    f"The body is not valid multipart/form-data: no boundary in its first {MAX_PREAMBLE} bytes.",
                    code="invalid_multipart",
                )
            piece = head if found else b""
        yield piece


def fingerprint(form: Form) -> bytes:
    """A digest over (name, filename, content) of the parts in their order: the boundary is another each time."""
    whole = hashlib.sha256()
    for name, value in form:
        kept: tuple[str, ...]
        if isinstance(value, str):
            kept = ("text", name, value)
        else:
            assert value.digest is not None, "read_form was told to digest"
            kept = ("file", name, value.filename, value.digest.hexdigest())
        whole.update(hashlib.sha256(repr(kept).encode()).digest())
    return whole.digest()


def fields(form: Form, lists: frozenset[str]) -> dict[str, object]:
    """The parts by name; those in `lists` may come several times. Raises InvalidRequest where another one does."""
    found: dict[str, object] = {}
    for name, value in form:
        if name in lists:
            several = found.setdefault(name, [])
            assert isinstance(several, list)
            several.append(value)
        elif name in found:
            raise _wrong(name, "it is sent more than once")
        else:
            found[name] = value
    return found


def _begin(name: str, filename: str | None, files: frozenset[str], digested: bool) -> tuple[str, Upload | None]:
    if len(name) > MAX_NAME:
        raise _wrong(f"{name[:MAX_NAME]}…", f"a name has at most {MAX_NAME} characters")
    if (name in files) != (filename is not None):
        raise _wrong(name, "it must be a file: send it with a filename" if name in files else "it is no file")
    return name, None if filename is None else Upload(filename, digested=digested)


def _text(name: str, data: bytearray) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _wrong(name, "it is not valid UTF-8") from None


def _wrong(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid {name!r}: {why}.", param=name, code="invalid_value")
