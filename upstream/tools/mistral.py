"""Mistral: [TOOL_CALLS][{"name": …, "arguments": {…}}, …] and the newer [TOOL_CALLS]name[ARGS]{…}, repeated."""

import re
from collections.abc import Mapping
from typing import Any

from upstream.tools.calls import arguments, call, calls
from upstream.tools.pieces import Parser, Writer, short_id
from upstream.tools.source import Malformed, Source, Steps, Tags

TAGS = Tags("[TOOL_CALLS]")
NAME = re.compile(r"[\w.\-]*")
ID = re.compile(r"\w*")


def start(_: Mapping[str, Any]) -> Parser:
    return Parser(_grammar, short_id)


def _grammar(source: Source, writer: Writer) -> Steps[None]:
    while tag := (yield from source.until(TAGS, writer.text)):
        source.keep(tag)
        try:
            match (yield from source.blanks()):
                case "[":
                    yield from calls(source, writer)
                case "{":
                    yield from call(source, writer)
                case _:
                    yield from _named(source, writer)
        except Malformed:
            writer.text(source.forget())


def _named(source: Source, writer: Writer) -> Steps[None]:
    name = yield from source.run(NAME)
    if (yield from source.literal("[CALL_ID]")):
        yield from source.run(ID)
    separated = yield from source.literal("[ARGS]")  # a special token: it may have been skipped
    if not name or ((yield from source.blanks()) != "{" and not separated):
        raise Malformed
    source.forget()
    writer.start(name)
    yield from arguments(source, writer.arguments)
