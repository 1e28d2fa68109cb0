"""JSON Schemas of the Structs, as components of the document."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, get_origin

import msgspec
from msgspec import NODEFAULT

from handlers.door.multipart import Upload

PREFIX = "#/components/schemas/"
BINARY = {"type": "string", "format": "binary"}
NULL = {"type": "null"}


class Schemas:
    """Collects types, and makes the schemas of all of them at once: those of one name are told apart then."""

    def __init__(self) -> None:
        self._asked: list[tuple[Any, dict[str, Any]]] = []

    def of(self, kind: Any) -> dict[str, Any]:
        """The schema of a type, which is empty until `components` has been called."""
        schema: dict[str, Any] = {}
        self._asked.append((kind, schema))
        return schema

    def components(self) -> dict[str, Any]:
        """Every Struct's by its name. From here on, what `of` gave is complete."""
        kinds = [kind for kind, _ in self._asked]
        structs = _structs(msgspec.inspect.multi_type_info(kinds))
        given, named = msgspec.json.schema_components(
            [*kinds, *structs], schema_hook=_hook, ref_template=PREFIX + "{name}"
        )
        names = [schema["$ref"].removeprefix(PREFIX) for schema in given[len(kinds) :]]
        for name, struct in zip(names, structs.values(), strict=True):
            _complete(named[name], struct)
        better = {name: _better(name) for name in named}
        for (_, schema), found in zip(self._asked, given, strict=False):
            schema.update(_mended(found, better))
        return {better[name]: _mended(schema, better) for name, schema in sorted(named.items())}


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Of a field that comes as text, where there is no null."""
    if "anyOf" in schema:
        return schema | {"anyOf": [each for each in schema["anyOf"] if each != NULL]}
    if not isinstance(schema.get("type"), list):
        return schema
    (kind,) = (each for each in schema["type"] if each != "null")
    values = {"enum": [each for each in schema["enum"] if each is not None]} if "enum" in schema else {}
    return schema | {"type": kind} | values


def _hook(kind: type) -> dict[str, Any]:
    if kind is Upload:
        return dict(BINARY)
    raise NotImplementedError(f"{kind} has no JSON Schema: say in handlers/ops/openapi/schemas.py what it is.")


def _structs(nodes: Iterable[msgspec.inspect.Type]) -> dict[Any, msgspec.inspect.StructType]:
    """Every Struct in these types, by its class (of a generic one: with its parameters)."""
    found: dict[Any, msgspec.inspect.StructType] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(node, msgspec.inspect.StructType):
            if node.cls in found:
                continue
            found[node.cls] = node
        waiting += _within(node)
    return found


def _within(node: Any) -> Iterator[Any]:
    """The types that a type is made of."""
    for name in node.__struct_fields__:
        value = getattr(node, name)
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, msgspec.inspect.Type | msgspec.inspect.Field):
                yield each


def _complete(schema: dict[str, Any], struct: msgspec.inspect.StructType) -> None:
    """An answer has every field but those that are UNSET, also where its Struct has a default for them."""
    if getattr(struct.cls, "null_leaves_out", False):
        for field in struct.fields:
            known = schema["properties"][field.encode_name]
            if not field.required and NULL not in known.get("anyOf", ()):
                schema["properties"][field.encode_name] = {"anyOf": [known, NULL]}
    if getattr(struct.cls, "type_left_out", False):
        schema["required"].remove("type")
    config = (get_origin(struct.cls) or struct.cls).__struct_config__
    if config.forbid_unknown_fields or config.omit_defaults:
        return
    left_out = {
        field.encode_name
        for field in struct.fields
        if not field.required and field.default is NODEFAULT and field.default_factory is NODEFAULT
    }
    schema["required"] = [name for name in schema["properties"] if name not in left_out]


def _better(name: str) -> str:
    """`Page_KeyCard_`, `handlers.door.schemas.chat.FunctionCall` as a client would call them."""
    generic = re.fullmatch(r"(\w+?)_(\w+)_", name)
    if generic:
        return f"{generic[2]}{generic[1]}"
    return "".join(part[0].upper() + part[1:] for part in name.split(".")[-2:])


def _mended(node: Any, names: dict[str, str]) -> Any:
    """With the better names; without titles, which only repeat them, and without the default that nothing was sent."""
    if isinstance(node, list):
        return [_mended(each, names) for each in node]
    if isinstance(node, str) and node.startswith(PREFIX):
        return PREFIX + names[node.removeprefix(PREFIX)]
    if not isinstance(node, dict):
        return node
    kept = {key: _mended(value, names) for key, value in node.items() if (key, value) != ("default", None)}
    if isinstance(kept.get("title"), str) and "type" in kept:
        del kept["title"]
    if isinstance(kept.get("enum"), list) and all(isinstance(each, str) for each in kept["enum"]):
        kept["type"] = "string"
    if kept.get("enum") in ([True], [False]):  # which generators of clients do not take
        kept = {"type": "boolean", "const": kept["enum"][0]}
    choices = kept.get("anyOf")
    if isinstance(choices, list) and len(choices) == 2 and choices[1] == NULL:
        return kept if choices[0].keys() & {"$ref", "const"} else _or_null(kept, choices[0])
    return kept


def _or_null(schema: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`anyOf` of a schema and null, as one schema."""
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    if "anyOf" in other:
        return rest | other | {"anyOf": [*other["anyOf"], NULL]}
    values = {"enum": [*other["enum"], None]} if "enum" in other else {}
    return rest | other | {"type": [other["type"], "null"]} | values
