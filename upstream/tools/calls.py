"""Calls written as JSON objects: {"name": …, "arguments": …}, arguments streamed as they are written."""

from collections.abc import Collection

from upstream.tools.pieces import Writer
from upstream.tools.source import Malformed, Sink, Source, Steps, decoded

ARGUMENTS = ("arguments", "parameters")


def call(source: Source, writer: Writer, names: Collection[str] = (), *, bare: bool = False) -> Steps[None]:
    """One object. Raises Malformed if it is no call: then what was read is still kept, and nothing was written.

    A `bare` object may be an answer in JSON: it needs its arguments, and one of `names` if there are any.
    """
    name = ""
    held: list[str] = [] if bare else ["{}"]
    started = False
    if (yield from source.blanks()) != "{":
        raise Malformed
    source.skip()
    while (key := (yield from _key(source))) is not None:
        if key == "name" and not name:
            name = yield from source.string()
            if bare and names and name not in names:
                raise Malformed
        elif key not in ARGUMENTS or started:
            yield from source.json(_ignore)
        elif name:
            started = True
            _begin(source, writer, name)
            yield from arguments(source, writer.arguments)
        else:
            held = []
            yield from arguments(source, held.append)
        if (yield from source.blanks()) != ",":
            break
        source.skip()
    if (yield from source.peek()) == "}":
        source.skip()
    elif not started:
        raise Malformed
    if started:
        return
    if not name or not held:
        raise Malformed
    _begin(source, writer, name)
    writer.arguments("".join(held))


def calls(source: Source, writer: Writer) -> Steps[None]:
    """A list of such objects, from its bracket on. Raises Malformed where it is none."""
    source.skip()
    while True:
        yield from call(source, writer)
        source.keep()
        following = yield from source.blanks()
        if following and following in ",]":
            source.skip()
        if following != ",":
            break
    if following == "]":
        source.forget()
    elif following:
        raise Malformed


def _key(source: Source) -> Steps[str | None]:
    """The next member's name, read with its colon; None if there is no further one."""
    if (yield from source.blanks()) != '"':
        return None
    key = yield from source.string()
    if (yield from source.blanks()) != ":":
        raise Malformed
    source.skip()
    return key


def arguments(source: Source, sink: Sink) -> Steps[None]:
    """A call's arguments as JSON text: a value as written, the text of a string that holds one, {} for null."""
    first = yield from source.blanks()
    if first and first in "{[":
        yield from source.json(sink)
        return
    pieces: list[str] = []
    yield from source.json(pieces.append)
    written = "".join(pieces)
    if first == '"':
        sink(_unquoted(written))
    else:
        sink("{}" if written in ("", "null") else written)


def _unquoted(written: str) -> str:
    """The text of a JSON string; of one that was cut, what there is."""
    for whole in (written, *(written[: len(written) - cut] + '"' for cut in range(7))):  # 6: half an escape
        try:
            return decoded(whole)
        except ValueError:
            continue
    return written


def _begin(source: Source, writer: Writer, name: str) -> None:
    source.forget()
    writer.start(name)


def _ignore(text: str) -> None:
    """What a call has besides its name and arguments."""
