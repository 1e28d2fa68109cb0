"""What guided decoding has made of a model that must call, or may.

Who must writes a list of calls: [{"name": …, "parameters": {…}}, …]. Who may writes that list or an answer as the only
value of an object: {"calls": […]} or {"answer": …}; the answer is passed on as it is written, without its object.
"""

from collections.abc import Mapping
from typing import Any

from upstream.tools.calls import calls
from upstream.tools.pieces import Parser, Writer
from upstream.tools.source import Malformed, Source, Steps


def start(_: Mapping[str, Any]) -> Parser:
    return Parser(_grammar)


def _grammar(source: Source, writer: Writer) -> Steps[None]:
    source.keep()
    try:
        first = yield from source.blanks()
        if first == "[":
            yield from calls(source, writer)
        elif first == "{":
            yield from _either(source, writer)
    except Malformed:
        pass  # the text says it all
    left = source.forget()
    if left != ",":  # behind a call, where the list was cut
        writer.text(left)
    while (yield from source.peek()):
        writer.text(source.rest())


def _either(source: Source, writer: Writer) -> Steps[None]:
    """The object, from its brace on. Raises Malformed where it has neither key."""
    source.skip()
    key = yield from source.string()
    if key not in ("calls", "answer") or (yield from source.blanks()) != ":":
        raise Malformed
    source.skip()
    first = yield from source.blanks()
    if key == "answer":
        source.forget()
        yield from source.json(writer.text)
    elif first == "[":
        yield from calls(source, writer)
    else:
        raise Malformed
    if (yield from source.blanks()) == "}":
        source.skip()
        yield from source.blanks()
