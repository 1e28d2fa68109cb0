"""Pythonic calls (Llama 3.2 and 4, OLMo 3): [f(a=1), g()] as the answer, perhaps inside tags."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from upstream.tools.literals import cut_string, from_python, quoted
from upstream.tools.pieces import Parser, Writer
from upstream.tools.source import PYTHON, Malformed, Source, Steps, Tags

WRAPS = {"<|python_start|>": "<|python_end|>", "<function_calls>": "</function_calls>"}
TAGS = Tags(*WRAPS)
NAME = re.compile(r"[\w.\-]*")
WORD = re.compile(r"\w*")
QUOTES = ('"', "'")


def start(parameters: Mapping[str, Any]) -> Parser:
    names = parameters.keys()

    def grammar(source: Source, writer: Writer) -> Steps[None]:
        source.keep()
        if (yield from source.blanks()) == "[":
            yield from _calls(source, writer, names)
        else:
            writer.text(source.forget())
        while tag := (yield from source.until(TAGS, writer.text)):
            source.keep(tag)
            yield from _calls(source, writer, names, WRAPS[tag])

    return Parser(grammar)


def _calls(source: Source, writer: Writer, names: Collection[str], close: str = "") -> Steps[None]:
    """A list of calls, or inside tags one to a line; what is none goes back to the text."""
    try:
        listed = (yield from source.blanks()) == "["
        if listed:
            source.skip()
        while not (yield from _closes(source, "]" if listed else close)):
            yield from _call(source, writer, names)
            source.keep()
            if (yield from source.blanks()) == ",":
                source.skip()
        source.keep()
        if not listed or (close and (yield from _closes(source, close))):
            source.forget()
    except Malformed:
        pass  # the text says it all
    writer.text(source.forget())


def _closes(source: Source, end: str) -> Steps[bool]:
    yield from source.blanks()
    return (yield from source.literal(end))


def _call(source: Source, writer: Writer, names: Collection[str]) -> Steps[None]:
    """f(a=1, b="x"), its arguments written as a JSON object, one by one. Raises Malformed before it begins."""
    name = yield from source.run(NAME)
    if not name or (names and name not in names) or (yield from source.peek()) != "(":
        raise Malformed
    source.skip()
    begun = False
    while (yield from source.blanks()) != ")":
        key = yield from source.run(WORD)
        if not key or (yield from source.blanks()) != "=":
            raise Malformed
        source.skip()
        if not begun:
            source.forget()
            writer.start(name)
        writer.arguments(f"{', ' if begun else '{'}{quoted(key)}: ")
        begun = True
        yield from _value(source, writer)
        if (yield from source.blanks()) == ",":
            source.skip()
    source.skip()
    if not begun:
        source.forget()
        writer.start(name)
    writer.arguments("}" if begun else "{}")


def _value(source: Source, writer: Writer) -> Steps[None]:
    pieces: list[str] = []
    whole = yield from source.span(pieces.append, PYTHON, stops=",)")
    written = "".join(pieces).lstrip()
    if whole:
        writer.arguments(from_python(written))
        return
    writer.arguments(cut_string(written) if written[:1] in QUOTES else written)
    raise Malformed
