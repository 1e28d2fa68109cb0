"""Values that a model wrote bare, as JSON text: Python literals, and words typed by a tool's schema."""

import ast
import json
from typing import Any


def from_python(written: str) -> str:
    """A Python (or JSON) literal as JSON text; what is neither, as a JSON string."""
    written = written.strip()
    for read in (ast.literal_eval, json.loads):
        try:
            text = json.dumps(_plain(read(written)), ensure_ascii=False, allow_nan=False)
            text.encode()  # half a surrogate could not be sent
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        return text
    return quoted(written)


def cut_string(written: str) -> str:
    """The JSON text, without its last quote, of a Python string that was cut."""
    for cut in range(11):  # 10: a long escape but for its last digit
        try:
            text = quoted(str(ast.literal_eval(written[: len(written) - cut] + written[0])))
            text.encode()
        except (ValueError, SyntaxError):
            continue
        return text.removesuffix('"')
    return quoted(written[1:]).removesuffix('"')


def from_words(written: str, schema: Any) -> str:
    """Words as JSON text by the type that `schema` gives; words that are not of that type, as a JSON string."""
    types = kinds(schema)
    words = written.strip()
    if not types or "string" in types:
        return "null" if words == "null" and "null" in types else quoted(written)
    try:
        json.loads(words)
    except (ValueError, RecursionError):
        return from_python(words)
    return words


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def kinds(schema: Any) -> set[str]:
    """The JSON types that a schema allows; "any" where it says it elsewhere ($ref, allOf); none if it says nothing."""
    if not isinstance(schema, dict):
        return set()
    match schema:
        case {"type": str(kind)}:
            return {kind}
        case {"type": list(several)}:
            return set(map(str, several))
        case {"enum": list(values)}:
            return {"string" if isinstance(value, str) else "any" for value in values}
        case {"anyOf": list(inner)} | {"oneOf": list(inner)}:
            return set().union(*map(kinds, inner))
        case {"$ref": _} | {"allOf": _} | {"properties": _} | {"items": _}:
            return {"any"}
    return set()


def _plain(value: Any) -> Any:
    """`value` if JSON can write all of it: a set or a tuple becomes a list."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else json.dumps(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value
