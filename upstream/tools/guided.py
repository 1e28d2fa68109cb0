"""An answer that guided decoding has made a list of calls: [{"name": …, "parameters": {…}}, …] and nothing else."""

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
        if (yield from source.blanks()) == "[":
            yield from calls(source, writer)
    except Malformed:
        pass  # the text says it all
    left = source.forget()
    if left != ",":  # behind a call, where the list was cut
        writer.text(left)
    while (yield from source.peek()):
        writer.text(source.rest())
