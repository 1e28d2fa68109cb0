"""Llama 3.1 to 3.3: {"name": …, "parameters": {…}} as the whole answer or behind <|python_tag|>, ;-separated."""

from collections.abc import Mapping
from typing import Any

from upstream.tools.calls import call
from upstream.tools.pieces import Parser, Writer
from upstream.tools.source import Malformed, Source, Steps, Tags

TAG = "<|python_tag|>"
TAGS = Tags(TAG)


def start(parameters: Mapping[str, Any]) -> Parser:
    def grammar(source: Source, writer: Writer) -> Steps[None]:
        source.keep()
        if (yield from source.blanks()) == "{":
            yield from _calls(source, writer, parameters)
        else:
            writer.text(source.forget())
        while tag := (yield from source.until(TAGS, writer.text)):
            source.keep(tag)
            yield from _calls(source, writer, parameters)

    return Parser(grammar)


def _calls(source: Source, writer: Writer, parameters: Mapping[str, Any]) -> Steps[None]:
    """Calls from here on; what is none goes back to the text."""
    try:
        while True:
            yield from call(source, writer, parameters.keys(), bare=True)
            source.keep()
            following = yield from source.blanks()
            if following and following in ";,":
                source.skip()
                following = yield from source.blanks()
            if following != "{":
                break
    except Malformed:
        pass  # the text says it all
    writer.text(source.forget())
