"""Splits a response into reasoning and text at <think>…</think>, or tags like them, as it comes."""

from upstream.tools.pieces import Reasoning, Text
from upstream.tools.source import Source, Steps, Tags


class ReasoningSplitter:
    """Reads one response: reasoning, if it begins with it, then text. White space around both is dropped.

    `opened`: the prompt ends in the opening tag (many templates write it), so the response begins inside. An opening
    tag that the model repeats is dropped then. Later tags are text: the model may speak of them. A response that is
    cut before the closing tag is reasoning to its end.
    """

    def __init__(self, begin: str = "<think>", end: str = "</think>", *, opened: bool = False) -> None:
        self._begin, self._end, self._opened = begin, Tags(end), opened
        self._source = Source()
        self._pieces: list[Text | Reasoning] = []
        self._steps = self._split(self._source)
        next(self._steps)

    def feed(self, text: str) -> list[Text | Reasoning]:
        """The pieces that `text` decides."""
        self._source.push(text)
        next(self._steps)
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> list[Text | Reasoning]:
        """The pieces that the response's end decides."""
        self._source.ended = True
        for _ in self._steps:
            raise AssertionError("the splitter waits for text after the end")
        pieces, self._pieces = self._pieces, []
        return pieces

    def _split(self, source: Source) -> Steps[None]:
        source.keep()
        yield from source.blanks()
        begun = yield from source.literal(self._begin)
        before = source.forget()
        if begun or self._opened:
            self._blank: list[str] = []
            yield from source.blanks()
            yield from source.until(self._end, self._think)
            yield from source.blanks()
        elif before:
            self._pieces.append(Text(before))
        while (yield from source.peek()):
            self._pieces.append(Text(source.rest()))

    def _think(self, text: str) -> None:
        """White space waits: what stands before the closing tag is no reasoning."""
        words = text.rstrip()
        if words:
            self._pieces.append(Reasoning("".join((*self._blank, words))))
            self._blank.clear()
        self._blank.append(text[len(words) :])
