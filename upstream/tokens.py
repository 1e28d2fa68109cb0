"""Texts to token ids by a model's own tokenizer.json: the home of the tokenizers library, imported at the first use."""

import asyncio
import threading
from array import array
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from upstream.contract import Contract, NotBound, Profile, Tensor
from upstream.errors import ContextExceeded, Unavailable, Unsupported
from upstream.tensors import CODES, Array

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Library

Text = str | tuple[str, str]  # a pair for cross-encoders
T = TypeVar("T")

SOURCES = frozenset({"tokens.ids", "tokens.mask", "tokens.types"})
INLINE = 512  # characters that are tokenised in less time than a thread takes to answer: some 0.3 ms
SPARSE = 16  # characters per token beyond which the head of a text tells whether it is too long
SPECIAL = 16  # more tokens than any tokenizer adds to a text


class TokenSettings(Protocol):
    """The part of [models.embedding] and [models.rerank] that says how texts become tokens."""

    @property
    def tokenizer(self) -> str | None: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def truncate(self) -> bool: ...


class TooLong(ContextExceeded):
    """The text at `index` has more than the `limit` tokens that the model takes; None: not known."""

    def __init__(self, index: int | None, limit: int | None = None) -> None:
        super().__init__(f"input {index} has more than {limit} tokens")
        self.index = index
        self.limit = limit


class _File(msgspec.Struct):
    """What every tokenizer.json has."""

    model: msgspec.Raw


class Tokenizer:
    """A tokenizer.json that cuts texts at `max_tokens`, or refuses longer ones. Safe to share between threads."""

    def __init__(self, file: Path, max_tokens: int, *, truncate: bool) -> None:
        """Raises ValueError for a file that is no tokenizer.json; the library reads it when it is first needed."""
        try:
            msgspec.json.decode(file.read_bytes(), type=_File)
        except OSError as error:
            raise ValueError(f"the tokenizer cannot be read: {error}") from error
        except msgspec.MsgspecError as error:
            raise ValueError(f"{file} is no tokenizer.json: {error}") from error
        self.file = file
        self.max_tokens = max_tokens
        self.truncate = truncate
        self.filler = 0  # what stands in place of a token; known when the file has been read
        self._library: Library | None = None
        self._reading = threading.Lock()

    async def encode(self, texts: Sequence[Text]) -> list["Encoding"]:
        """The tokens of each text or pair, special ones included. Raises TooLong."""
        return await self._run(lambda: self._encode(texts), sum(map(_characters, texts)))

    async def check(self, rows: Sequence[Sequence[int]]) -> None:
        """Token ids that a client made must be those of this vocabulary. Raises Unsupported."""
        size = await self._run(lambda: self._read().get_vocab_size(), 0)
        for index, row in enumerate(rows):
            if max(row) >= size:
                raise Unsupported(f"input[{index}]", f"this deployment's token ids go up to {size - 1}")

    def surely_fits(self, text: str) -> bool:
        """Whether a text must have fewer tokens than allowed: a token has at least one character of plain ASCII."""
        return len(text) + SPECIAL <= self.max_tokens and text.isascii()

    async def _run(self, work: Callable[[], T], characters: int) -> T:
        if self._library is not None and characters <= INLINE:
            return work()
        return await asyncio.to_thread(work)

    def _read(self) -> "Library":
        with self._reading:
            if self._library is None:
                from tokenizers import Tokenizer as Library

                try:
                    library = Library.from_file(str(self.file))
                except Exception as error:  # the library raises nothing narrower
                    raise Unavailable(f"{self.file} cannot be used: {error}") from error
                self.filler = _filler(library)
                library.no_padding()
                library.no_truncation()
                if self.truncate:
                    library.enable_truncation(self.max_tokens)
                self._library = library
            return self._library

    def _encode(self, texts: Sequence[Text]) -> list["Encoding"]:
        library = self._read()
        encodings = library.encode_batch_fast([self._head(library, text) for text in texts])
        check_lengths(encodings, self.max_tokens)
        return encodings

    def _head(self, library: "Library", text: Text) -> Text:
        """The head of a text that is far too long, so that megabytes are not tokenised to be refused or cut."""
        if isinstance(text, tuple):
            return self._head_of(library, text[0]), self._head_of(library, text[1])
        return self._head_of(library, text)

    def _head_of(self, library: "Library", text: str) -> str:
        end = SPARSE * self.max_tokens
        if len(text) <= end:
            return text
        tokens = len(library.encode(text[:end]))
        return text[:end] if tokens > self.max_tokens - self.truncate else text


def read_tokenizer(settings: TokenSettings) -> Tokenizer | None:
    """The tokenizer that the settings name, if they do. Raises ValueError."""
    if settings.tokenizer is None:
        return None
    return Tokenizer(Path(settings.tokenizer), settings.max_tokens, truncate=settings.truncate)


class TokenTensors:
    """The tensors that take tokens, each padded to the longest of a batch, or to the length that the model fixes.

    Raises NotBound for what cannot hold tokens.
    """

    def __init__(self, profile: Profile, contract: Contract, settings: TokenSettings) -> None:
        self.bound: dict[str, Tensor] = {
            source: tensor for source, tensor in bound(profile, contract).items() if source in SOURCES
        }
        self.length = 0
        for tensor in self.bound.values():
            if tensor.dtype not in ("INT32", "INT64"):
                raise NotBound(f"{tensor.name!r} is {tensor.dtype}: tokens are INT64 or INT32")
            self.length = max(self.length, tensor.dims[-1])
        if 0 < self.length < settings.max_tokens:
            raise NotBound(f"the model takes {self.length} tokens: set max_tokens = {self.length}")

    def arrays(self, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]], filler: int) -> dict[str, Array]:
        """The job's fields ids, mask and types for a batch, each [rows, tokens]."""
        length = self.length if self.length > 0 else max(map(len, ids))
        ones = [1] * length
        rows: Mapping[str, tuple[Sequence[Sequence[int]], int]] = {
            "tokens.ids": (ids, filler),
            "tokens.mask": ([ones[: len(row)] for row in ids], 0),
            "tokens.types": (types, 0),
        }
        return {
            source.removeprefix("tokens."): _padded(tensor.dtype, *rows[source], length)
            for source, tensor in self.bound.items()
        }


def bound(profile: Profile, contract: Contract) -> dict[str, Tensor]:
    """The live tensors that a source goes into as it is, by source."""
    found = {}
    for tensor in contract.inputs:
        entry: Any = profile.inputs.get(tensor.name) or None
        source = entry if isinstance(entry, str) or entry is None else entry.source
        if source is not None:
            found[source] = tensor
    return found


def check_lengths(rows: Sequence[Sized], most: int) -> None:
    """Raises TooLong for the first that has more than `most` tokens."""
    for index, row in enumerate(rows):
        if len(row) > most:
            raise TooLong(index, most)


def _padded(dtype: str, rows: Sequence[Sequence[int]], filler: int, length: int) -> Array:
    code = CODES[dtype]
    blank = array(code, [filler])
    data = b"".join((array(code, row) + blank * (length - len(row))).tobytes() for row in rows)
    return Array(dtype, (len(rows), length), data)


def _filler(library: "Library") -> int:
    """The id of the padding token: RoBERTa's positions go by it, whatever the mask says."""
    if library.padding is not None:
        return int(library.padding["pad_id"])
    for name in ("[PAD]", "<pad>", "<|endoftext|>"):
        if (id := library.token_to_id(name)) is not None:
            return id
    return 0


def _characters(text: Text) -> int:
    return len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
