"""The text of one response as it arrives, read by grammars: generators that yield where they need more of it."""

import json
import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
Sink = Callable[[str], object]

QUOTES = "\"'"
INSIDE = {quote: re.compile(rf"{quote}|\\.", re.DOTALL) for quote in QUOTES}
JSON = re.compile(r'["{}\[\]]|[^\s\w.,:+\-]')  # quotes and brackets, and what JSON has nowhere outside a string
PYTHON = re.compile(r"[\"'{}\[\](),]")
SCALAR = re.compile(r"[\w.+\-]*")
BLANK = re.compile(r"\s*")


class Malformed(Exception):
    """What was read is no call."""


class Tags:
    """A set of tags to look for, none a prefix of another."""

    def __init__(self, *tags: str) -> None:
        self._tags = tags
        self._longest = max(map(len, tags))
        self._first = re.compile(f"[{re.escape(''.join({tag[0] for tag in tags}))}]")
        self.pattern = re.compile("|".join(map(re.escape, tags)))

    def undecided(self, text: str, start: int) -> int:
        """Where the end of `text` may be the beginning of a tag; its length if nowhere."""
        at = max(start, len(text) - self._longest + 1)
        while match := self._first.search(text, at):
            at = match.start()
            if any(tag.startswith(text[at:]) for tag in self._tags):
                return at
            at += 1
        return len(text)


class Source:
    """Text that has come and is not read yet. Of what is read, it remembers what `keep` asked for."""

    def __init__(self) -> None:
        self.ended = False
        self._text = ""
        self._at = 0
        self._kept: list[str] | None = None

    def push(self, text: str) -> None:
        self._text = self._text[self._at :] + text
        self._at = 0

    def keep(self, tag: str = "") -> None:
        """Remember `tag` and what is read from here on, in case it is no call."""
        self._kept = [tag]

    def forget(self) -> str:
        """What was kept."""
        kept, self._kept = self._kept, None
        return "".join(kept or ())

    def take(self, end: int) -> str:
        piece = self._text[self._at : end]
        self._at = end
        if self._kept is not None:
            self._kept.append(piece)
        return piece

    def skip(self) -> None:
        """Read the character that was peeked at."""
        self.take(self._at + 1)

    def rest(self) -> str:
        """Read all that has come."""
        return self.take(len(self._text))

    def peek(self) -> Steps[str]:
        """The next character, not read; "" at the end."""
        while self._at == len(self._text):
            if self.ended:
                return ""
            yield
        return self._text[self._at]

    def run(self, characters: re.Pattern[str]) -> Steps[str]:
        """All that matches `characters` from here."""
        pieces = []
        while True:
            match = characters.match(self._text, self._at)
            pieces.append(self.take(match.end() if match else self._at))
            if self._at < len(self._text) or self.ended:
                return "".join(pieces)
            yield

    def blanks(self) -> Steps[str]:
        """Read white space; the next character as `peek` gives it."""
        yield from self.run(BLANK)
        return (yield from self.peek())

    def literal(self, text: str) -> Steps[bool]:
        """Read `text` if it is what comes next."""
        while not self._text.startswith(text, self._at):
            if self.ended or not text.startswith(self._text[self._at :]):
                return False
            yield
        self.take(self._at + len(text))
        return True

    def until(self, tags: Tags, sink: Sink) -> Steps[str]:
        """Give what comes before the next of `tags` to `sink`; the tag, read, or "" at the end."""
        while True:
            match = tags.pattern.search(self._text, self._at)
            if match:
                sink(self.take(match.start()))
                return self.take(match.end())
            end = len(self._text) if self.ended else tags.undecided(self._text, self._at)
            if end > self._at:
                sink(self.take(end))
            if self.ended:
                return ""
            yield

    def span(self, sink: Sink, outside: re.Pattern[str], stops: str = "") -> Steps[bool]:
        """Give an expression to `sink` as it comes: brackets balanced, strings whole.

        It ends behind the bracket or quote that closes its first, or, given `stops`, before one of them outside all
        brackets. False if it is cut or breaks off before a character that `outside` finds and no expression has.
        """
        depth, quote = 0, ""
        while True:
            at = self._at
            while match := (INSIDE[quote] if quote else outside).search(self._text, at):
                found, at = match[0], match.end()
                if quote:
                    if found != quote:
                        continue
                    quote = ""
                elif found in QUOTES:
                    quote = found
                    continue
                elif found in "([{":
                    depth += 1
                    continue
                elif found in ")]}" and depth:
                    depth -= 1
                elif not depth or found != ",":
                    sink(self.take(match.start()))
                    return found in stops
                if depth == 0 and not stops:
                    sink(self.take(at))
                    return True
            waits = bool(quote) and self._text.endswith("\\", at) and not self.ended  # for what it escapes
            sink(self.take(len(self._text) - waits))
            if self.ended:
                return False
            yield

    def json(self, sink: Sink) -> Steps[bool]:
        """Give a JSON value, as it is written, to `sink`; whether it is whole."""
        first = yield from self.blanks()
        if first and first in '"{[':
            return (yield from self.span(sink, JSON))
        scalar = yield from self.run(SCALAR)
        sink(scalar)
        return bool(scalar)

    def string(self) -> Steps[str]:
        """A whole JSON string, decoded. Raises Malformed."""
        pieces: list[str] = []
        if (yield from self.blanks()) != '"' or not (yield from self.json(pieces.append)):
            raise Malformed
        try:
            return decoded("".join(pieces))
        except ValueError:
            raise Malformed from None


def decoded(written: str) -> str:
    """The text of a JSON string; line breaks may stand in it bare. Raises ValueError, also for half a surrogate."""
    text = str(json.loads(written, strict=False))
    text.encode()
    return text
