"""Harmony (gpt-oss) as text: channels analysis (reasoning), commentary to=functions.f (a call), final (text).

The openai-harmony library reads token ids, and loads a vocabulary over the network: nothing for a gateway of text.
"""

import re
from collections.abc import Mapping
from typing import Any

from upstream.tools.pieces import Parser, Writer
from upstream.tools.source import Sink, Source, Steps, Tags

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
IN_HEADER = Tags(MESSAGE, *ENDS)
IN_MESSAGE = Tags(START, CHANNEL, *ENDS)
NAMED = re.compile(r"<\|channel\|>\s*(\w+)")
RECIPIENT = re.compile(r"\bto=(functions\.)?([\w.\-]+)")


def start(_: Mapping[str, Any]) -> Parser:
    return Parser(_grammar)


def _grammar(source: Source, writer: Writer) -> Steps[None]:
    source.keep()
    header = yield from _opens(source)
    if not header:
        writer.text(source.forget())
    sink: Sink = writer.text
    while True:
        if header:
            tag = yield from source.until(IN_HEADER, _ignore)
            written = source.forget()
            if tag == MESSAGE:
                sink = yield from _body(source, writer, written)
            else:
                writer.text(written)
        tag = yield from source.until(IN_MESSAGE, sink)
        if not tag:
            return
        sink = writer.text
        header = tag in (START, CHANNEL)
        if header:
            source.keep(tag)


def _opens(source: Source) -> Steps[bool]:
    """Whether the response goes on with the header that the prompt began: <|start|>assistant."""
    yield from source.blanks()
    for beginning in (CHANNEL, START, "to="):
        if (yield from source.literal(beginning)):
            return True
    return False


def _body(source: Source, writer: Writer, header: str) -> Steps[Sink]:
    """Where the text of a message with this header goes."""
    recipient, channel = RECIPIENT.search(header), NAMED.search(header)
    if recipient and recipient[1]:
        writer.start(recipient[2])
        if (yield from source.blanks()) == "<":  # the end: no arguments
            writer.arguments("{}")
        return writer.arguments
    if recipient or (channel and channel[1] == "analysis"):
        return writer.reasoning
    return writer.text


def _ignore(text: str) -> None:
    """A header is kept, not written."""
