"""Hermes, Qwen2.5 and Qwen3: <tool_call>{"name": …, "arguments": {…}}</tool_call>, repeated."""

from collections.abc import Mapping
from typing import Any

from upstream.tools.calls import call
from upstream.tools.pieces import Parser, Writer
from upstream.tools.source import Malformed, Source, Steps, Tags

OPEN, CLOSE = "<tool_call>", "</tool_call>"
TAGS = Tags(OPEN, CLOSE)


def start(_: Mapping[str, Any]) -> Parser:
    return Parser(_grammar)


def _grammar(source: Source, writer: Writer) -> Steps[None]:
    unclosed = False
    while tag := (yield from source.until(TAGS, writer.text)):
        if tag == CLOSE:
            if not unclosed:
                writer.text(tag)
            unclosed = False
            continue
        source.keep(tag)
        try:
            yield from call(source, writer)
            unclosed = True
            while (yield from source.blanks()) == "}":  # models close one bracket too many
                source.skip()
        except Malformed:
            writer.text(source.forget())
