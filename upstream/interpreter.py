"""A model's text to what it means: reasoning, tool calls, words for the user. One interpreter reads one choice."""

from collections.abc import Sequence
from typing import Any

import msgspec

from upstream.tools import CallArguments, CallStart, Piece, Reasoning, Text, parser
from upstream.tools.pieces import call_id
from upstream.tools.reasoning import ReasoningSplitter

# What begins a call: of one that was cut, this is no word for the user.
TAGS = ("<tool_call>", "<function=", "<|python_tag|>", "[TOOL_CALLS]", "<｜tool▁calls▁begin｜>", "<|channel|>")

__all__ = ["CallArguments", "CallStart", "Interpreter", "Piece", "Reasoning", "Text"]


class Interpreter:
    """Feeds text through the splitter of reasoning and the parser of calls that the profile and the request ask for.

    `family`: the profile's tool format, where the request has `tools`; `reasoning`: the text may begin with <think>,
    and with `opened` the prompt has written that tag already. `forced`: the text is the arguments of this function,
    by guided decoding. `single`: the first call ends what is passed on of calls.
    """

    def __init__(
        self,
        family: str | None = None,
        tools: Sequence[dict[str, Any]] = (),
        *,
        reasoning: bool = False,
        opened: bool = False,
        forced: str | None = None,
        single: bool = False,
    ) -> None:
        self._splitter = ReasoningSplitter(opened=opened) if reasoning else None
        self._parser = parser(family, tools) if family and not forced else None
        self._forced, self._single = forced, single
        self._family = family
        self._arguments: list[str] = []  # of the newest call
        self.called = False  # whether any call was passed on

    @property
    def called_whole(self) -> bool:
        """Whether a call was passed on, and the newest is not one that was cut."""
        try:
            return self.called and msgspec.json.decode("".join(self._arguments) or "{}") is not None
        except msgspec.DecodeError:
            return False

    def feed(self, text: str) -> list[Piece]:
        """The pieces that `text` decides."""
        pieces: Sequence[Piece] = self._splitter.feed(text) if self._splitter else [Text(text)]
        return self._parse(pieces)

    def finish(self) -> list[Piece]:
        """The pieces that the end of the text decides."""
        pieces = self._parse(self._splitter.finish()) if self._splitter else []
        if self._parser is None:
            return pieces
        held = [each for each in self._parser.finish() if not (isinstance(each, Text) and self._cut_call(each.text))]
        return pieces + self._keep(held)

    def _cut_call(self, text: str) -> bool:
        """Whether a held text is the beginning of a call that never came to be one."""
        text = text.lstrip()
        if self._family == "guided":
            return text[:1] in ("", "[", "{")  # else it is the end of an answer
        return len(text) > 1 and any(tag.startswith(text) or text.startswith(tag) for tag in TAGS)

    def _parse(self, pieces: Sequence[Piece]) -> list[Piece]:
        if self._forced:
            return self._force(pieces, self._forced)
        if self._parser is None:
            return list(pieces)
        parsed: list[Piece] = []
        for piece in pieces:
            parsed += self._parser.feed(piece.text) if isinstance(piece, Text) else [piece]
        return self._keep(parsed)

    def _force(self, pieces: Sequence[Piece], name: str) -> list[Piece]:
        made: list[Piece] = []
        for piece in pieces:
            if not isinstance(piece, Text):
                made.append(piece)
                continue
            if not self.called:
                self.called = True
                made.append(CallStart(0, call_id(), name))
            made.append(CallArguments(0, piece.text))
            self._arguments.append(piece.text)
        return made

    def _keep(self, pieces: list[Piece]) -> list[Piece]:
        for piece in pieces:
            if isinstance(piece, CallStart):
                self.called = True
                self._arguments = []
            elif isinstance(piece, CallArguments):
                self._arguments.append(piece.fragment)
        if not self._single:
            return pieces
        return [piece for piece in pieces if not isinstance(piece, CallStart | CallArguments) or piece.index == 0]
