"""What a response is made of: text, reasoning, calls; and the parser that a family's grammar drives."""

import secrets
import string
from collections.abc import Callable

import msgspec

from upstream.tools.source import Source, Steps

ALPHABET = string.ascii_letters + string.digits


class Text(msgspec.Struct, frozen=True, gc=False):
    """Words for the user."""

    text: str


class Reasoning(msgspec.Struct, frozen=True, gc=False):
    """The model's thinking."""

    text: str


class CallStart(msgspec.Struct, frozen=True, gc=False):
    """A tool call begins; its arguments follow."""

    index: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True, gc=False):
    """The next fragment of a call's arguments (JSON text)."""

    index: int
    fragment: str


Piece = Text | Reasoning | CallStart | CallArguments


def call_id() -> str:
    """An id as OpenAI's: call_ and 24 characters."""
    return "call_" + short_id(24)


def short_id(length: int = 9) -> str:
    """Random letters and digits; nine of them are what Mistral's templates demand of an id."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


class Writer:
    """Collects the pieces of one response. White space at a response's start or between calls is not text."""

    def __init__(self, new_id: Callable[[], str] = call_id) -> None:
        self._new_id = new_id
        self._pieces: list[Piece] = []
        self._blank: list[str] | None = []  # white space that is text only if text follows
        self._calls = 0

    def text(self, text: str) -> None:
        if not text:
            return
        if self._blank is not None:
            if text.isspace():
                self._blank.append(text)
                return
            text = "".join((*self._blank, text))
            self._blank = None
        self._pieces.append(Text(text))

    def reasoning(self, text: str) -> None:
        if text:
            self._pieces.append(Reasoning(text))

    def start(self, name: str) -> None:
        self._pieces.append(CallStart(self._calls, self._new_id(), name))
        self._blank = []
        self._calls += 1

    def arguments(self, fragment: str) -> None:
        if fragment:
            self._pieces.append(CallArguments(self._calls - 1, fragment))

    def take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def close(self) -> None:
        """The response has ended: if white space was all of it, that is its text."""
        if self._blank and not self._calls:
            self._pieces.append(Text("".join(self._blank)))


Grammar = Callable[[Source, Writer], Steps[None]]


class Parser:
    """Reads one response. O(total text); what may be the beginning of a tag is held until it is decided."""

    def __init__(self, grammar: Grammar, new_id: Callable[[], str] = call_id) -> None:
        self._source = Source()
        self._writer = Writer(new_id)
        self._steps = grammar(self._source, self._writer)
        next(self._steps)  # up to its first wait for text

    def feed(self, text: str) -> list[Piece]:
        """The pieces that `text` decides."""
        self._source.push(text)
        next(self._steps)
        return self._writer.take()

    def finish(self) -> list[Piece]:
        """The pieces that the response's end decides."""
        self._source.ended = True
        for _ in self._steps:
            raise AssertionError("a grammar waits for text after the end")
        self._writer.close()
        return self._writer.take()
