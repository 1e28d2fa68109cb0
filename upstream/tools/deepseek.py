"""DeepSeek: V3 and R1 (a fenced JSON block), V3.1 (name<｜tool▁sep｜>{…}), V3.2 and later (DSML markup)."""

import re
from collections.abc import Mapping
from typing import Any

from upstream.tools.calls import arguments
from upstream.tools.markup import Markup, parameters
from upstream.tools.pieces import Parser, Writer
from upstream.tools.source import Malformed, Source, Steps, Tags

CALL, END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
FRAME = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", END)
INVOKE = '<｜DSML｜invoke name="'
DSML_FRAME = tuple(f"<{slash}｜DSML｜{block}>" for slash in ("", "/") for block in ("function_calls", "tool_calls"))
TAGS = Tags(CALL, *FRAME, INVOKE, *DSML_FRAME)
NAME = re.compile(r"[\w.\-]*")
HEADER = re.compile(r'(.*?)"(?: string="(\w+)")?$', re.DOTALL)
MARKUP = Markup(
    parameter='<｜DSML｜parameter name="',
    end_of_header=Tags(">"),
    end_of_value=Tags("</｜DSML｜parameter>"),
    inside=Tags('<｜DSML｜parameter name="', "</｜DSML｜invoke>", *DSML_FRAME[2:]),
    framed=False,
)
STRING, OTHER = {"type": "string"}, {"type": "object"}


def start(_: Mapping[str, Any]) -> Parser:
    return Parser(_grammar)


def _grammar(source: Source, writer: Writer) -> Steps[None]:
    while tag := (yield from source.until(TAGS, writer.text)):
        if tag not in (CALL, INVOKE):
            continue  # what frames calls says nothing
        source.keep(tag)
        try:
            yield from (_call if tag == CALL else _invoke)(source, writer)
        except Malformed:
            writer.text(source.forget())


def _call(source: Source, writer: Writer) -> Steps[None]:
    yield from source.blanks()
    name = yield from source.run(NAME)
    if not (yield from source.literal(SEPARATOR)):
        raise Malformed
    fenced = False
    if (yield from source.blanks()) != "{":  # V3: what stood there was the call's type
        name = yield from source.run(NAME)
        yield from source.blanks()
        fenced = yield from source.literal("```json")
    if not name or (yield from source.blanks()) != "{":
        raise Malformed
    source.forget()
    writer.start(name)
    yield from arguments(source, writer.arguments)
    yield from source.blanks()
    if fenced:
        yield from source.literal("```")


def _invoke(source: Source, writer: Writer) -> Steps[None]:
    name = yield from source.run(NAME)
    if not name or not (yield from source.literal('">')):
        raise Malformed
    source.forget()
    writer.start(name)
    yield from parameters(source, writer, MARKUP, _header)


def _header(written: str) -> tuple[str, Any]:
    """name" string="true": the words are text; string="false": they are JSON."""
    match = HEADER.match(written)
    if match is None:
        return written, STRING
    return match[1], OTHER if match[2] == "false" else STRING
