"""Qwen3-Coder: <tool_call><function=name><parameter=key>value</parameter></function></tool_call>, repeated."""

import re
from collections.abc import Mapping
from typing import Any

from upstream.tools.markup import Markup, parameters
from upstream.tools.pieces import Parser, Writer
from upstream.tools.source import Malformed, Source, Steps, Tags

OPEN, CLOSE, FUNCTION = "<tool_call>", "</tool_call>", "<function="
TAGS = Tags(OPEN, CLOSE, FUNCTION)  # some models forget the outer tag
NAME = re.compile(r"[\w.\-]*")
MARKUP = Markup(
    parameter="<parameter=",
    end_of_header=Tags(">"),
    end_of_value=Tags("</parameter>"),
    inside=Tags("<parameter=", "</function>", CLOSE),
    framed=True,
)


def start(tools: Mapping[str, Any]) -> Parser:
    def grammar(source: Source, writer: Writer) -> Steps[None]:
        unclosed = False
        while tag := (yield from source.until(TAGS, writer.text)):
            if tag == CLOSE:
                if not unclosed:
                    writer.text(tag)
                unclosed = False
                continue
            source.keep(tag)
            try:
                yield from _call(source, writer, tools, named=tag == FUNCTION)
                unclosed = True
                yield from source.blanks()
            except Malformed:
                writer.text(source.forget())

    return Parser(grammar)


def _call(source: Source, writer: Writer, tools: Mapping[str, Any], *, named: bool) -> Steps[None]:
    if not named:
        yield from source.blanks()
        if not (yield from source.literal(FUNCTION)):
            raise Malformed
    name = yield from source.run(NAME)
    if not name or not (yield from source.literal(">")):
        raise Malformed
    source.forget()
    writer.start(name)
    properties = tools.get(name, {}).get("properties")
    known = properties if isinstance(properties, dict) else {}
    yield from parameters(source, writer, MARKUP, lambda key: (key, known.get(key)))
