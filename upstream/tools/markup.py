"""Calls written as markup, a parameter to an element: what Qwen3-Coder's and DeepSeek's newer format share."""

from collections.abc import Callable
from typing import Any, NamedTuple

from upstream.tools.literals import from_words, kinds, quoted
from upstream.tools.pieces import Writer
from upstream.tools.source import Source, Steps, Tags


class Markup(NamedTuple):
    """The tags of a format. `header` reads a parameter's opening tag: its name, and the schema of its words."""

    parameter: str
    end_of_header: Tags
    end_of_value: Tags
    inside: Tags  # a parameter's beginning, and what ends the call
    framed: bool  # whether a line break stands before and after a value


Header = Callable[[str], tuple[str, Any]]


def parameters(source: Source, writer: Writer, markup: Markup, header: Header) -> Steps[None]:
    """The parameters of a call that has begun, and its end, as one JSON object."""
    begun = False
    while (tag := (yield from source.until(markup.inside, _ignore))) == markup.parameter:
        pieces: list[str] = []
        if not (yield from source.until(markup.end_of_header, pieces.append)):
            return
        name, schema = header("".join(pieces))
        writer.arguments(f"{', ' if begun else '{'}{quoted(name)}: ")
        begun = True
        if kinds(schema) in (set(), {"string"}):
            whole = yield from _string(source, writer, markup)
        else:
            whole = yield from _typed(source, writer, markup, schema)
        if not whole:
            return
    if tag:
        writer.arguments("}" if begun else "{}")


def _string(source: Source, writer: Writer, markup: Markup) -> Steps[bool]:
    """A string, escaped as it comes; a line break at its end waits, since it may belong to the frame."""
    first, waiting = markup.framed, ""

    def escape(text: str) -> None:
        nonlocal first, waiting
        if first and text:
            first = False
            text = text.removeprefix("\n")
        text = waiting + text
        waiting = "\n" if markup.framed and text.endswith("\n") else ""
        writer.arguments(quoted(text.removesuffix(waiting))[1:-1])

    writer.arguments('"')
    whole = yield from source.until(markup.end_of_value, escape)
    if whole:
        writer.arguments('"')
    return bool(whole)


def _typed(source: Source, writer: Writer, markup: Markup, schema: Any) -> Steps[bool]:
    pieces: list[str] = []
    whole = yield from source.until(markup.end_of_value, pieces.append)
    written = "".join(pieces)
    if markup.framed:
        written = written.removeprefix("\n").removesuffix("\n")
    writer.arguments(from_words(written, schema) if whole else written)
    return bool(whole)


def _ignore(text: str) -> None:
    """What stands between parameters."""
