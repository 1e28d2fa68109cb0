"""A minimal valid instance of a JSON schema, filled from a text where the text holds something that fits."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from findings import MISSING, Findings
from pattern import example
from serving import Refusal

DEEPEST = 24
SAMPLES = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "email": "nobody@example.com",
    "hostname": "example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uri": "https://example.com",
    "url": "https://example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
# Keywords that describe, but constrain nothing.
BARE = frozenset({"title", "description", "default", "examples", "$schema", "$id", "$defs", "definitions", "strict"})


class Instance:
    """Builds values for one schema: required properties always, optional ones when the text names them."""

    def __init__(self, root: dict[str, Any] | bool, findings: Findings, spare: str) -> None:
        self.root = root
        self.findings = findings
        # What a free string says when the text holds nothing for it.
        self.spare = spare

    def build(self) -> Any:
        """Return the instance; Refusal for a schema that cannot be met or is not understood."""
        return self._value("", self.root, 0)

    def _value(self, name: str, schema: Any, depth: int) -> Any:
        if depth > DEEPEST:
            raise Refusal("Error generating stream: the JSON schema requires itself without end")
        schema = self._resolve(schema, depth)
        if "const" in schema:
            return schema["const"]
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._any_of(name, schema, key, depth)
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            found = self.findings.find(name, schema)
            return schema["enum"][0] if found is MISSING else found
        kind = self._kind(schema)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(name, schema, depth)
        if kind in ("integer", "number"):
            return self._number(name, schema, kind)
        if kind == "string":
            return self._string(name, schema)
        if kind == "boolean":
            found = self.findings.find(name, {"type": "boolean"})
            return found is not MISSING and found
        return None

    def _kind(self, schema: dict[str, Any]) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            return next((entry for entry in kind if entry != "null"), "null")
        if isinstance(kind, str):
            return kind
        for key, implied in (
            ("properties", "object"),
            ("required", "object"),
            ("items", "array"),
            ("prefixItems", "array"),
        ):
            if key in schema:
                return implied
        if schema.keys() & {"minimum", "maximum", "multipleOf", "exclusiveMinimum", "exclusiveMaximum"}:
            return "number"
        return "string"

    def _resolve(self, schema: Any, depth: int) -> dict[str, Any]:
        """Follow $ref and merge allOf."""
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            raise Refusal(f"Error generating stream: no value fits the schema {json.dumps(schema)}")
        if "$ref" in schema and depth <= DEEPEST:
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            return self._merge([self._resolve(self._target(str(schema["$ref"])), depth + 1), rest], depth)
        if "allOf" in schema:
            rest = {key: value for key, value in schema.items() if key != "allOf"}
            return self._merge([*schema["allOf"], rest], depth)
        return schema

    def _merge(self, schemas: list[Any], depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for schema in schemas:
            for key, value in self._resolve(schema, depth + 1).items():
                if key == "properties":
                    merged[key] = {**merged.get(key, {}), **value}
                elif key == "required":
                    merged[key] = list(dict.fromkeys([*merged.get(key, []), *value]))
                elif key not in BARE or key not in merged:
                    merged[key] = value
        return merged

    def _target(self, reference: str) -> Any:
        if not reference.startswith("#"):
            raise Refusal(f"Error generating stream: $ref {reference} is not within the schema")
        found: Any = self.root
        for part in reference[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                raise Refusal(f"Error generating stream: $ref {reference} leads nowhere")
        return found

    def _any_of(self, name: str, schema: dict[str, Any], key: str, depth: int) -> Any:
        rest = {entry: value for entry, value in schema.items() if entry not in (key, *BARE)}
        # What the text says comes first, then whatever ends soonest: null, then the others in their order.
        options = [self._merge([rest, option], depth) for option in schema[key]]
        for option in options:
            found = MISSING if depth > DEEPEST else self.findings.find(name, option)
            if found is not MISSING:
                return found
        refusal: Refusal | None = None
        for option in sorted(options, key=lambda option: option.get("type") != "null"):
            try:
                return self._value(name, option, depth + 1)
            except Refusal as error:
                refusal = error
        raise refusal or Refusal(f"Error generating stream: {key} is empty")

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties: dict[str, Any] = schema.get("properties", {})
        required = schema.get("required", [])
        built: dict[str, Any] = {}
        for name, entry in properties.items():
            if name in required:
                built[name] = self._value(name, entry, depth + 1)
            elif isinstance(entry, dict):
                found = self.findings.find(name, self._resolve(entry, depth))
                if found is not MISSING:
                    built[name] = found
        for name in [name for name in required if name not in properties]:
            built[name] = self._value(name, schema.get("additionalProperties") or {}, depth + 1)
        return built

    def _array(self, name: str, schema: dict[str, Any], depth: int) -> list[Any]:
        least, most = schema.get("minItems", 0), schema.get("maxItems", 8)
        prefix = schema.get("prefixItems", [])
        items = schema.get("items", {})
        built = [self._value(name, entry, depth + 1) for entry in prefix]
        entry = self._resolve(items, depth) if items is not False else {}
        # A list takes all of a kind, those that stand elsewhere in the instance too.
        findings = Findings(self.findings.text)
        while len(built) < most and items is not False:
            found = findings.find(name, entry)
            if found is MISSING or (isinstance(found, bool) or found in built):
                break
            built.append(found)
        while len(built) < least:
            value = self._value(name, items, depth + 1)
            built.append(self._distinct(value, built, entry) if schema.get("uniqueItems") else value)
        return built

    def _distinct(self, value: Any, built: list[Any], schema: dict[str, Any]) -> Any:
        for choice in schema.get("enum", []):
            if choice not in built:
                return choice
        while value in built:
            value = f"{value}+" if isinstance(value, str) else value + schema.get("multipleOf", 1)
        return value

    def _number(self, name: str, schema: dict[str, Any], kind: str) -> float | int:
        found = self.findings.find(name, {"type": kind})
        if found is not MISSING and _fits(found, schema):
            return float(found) if isinstance(found, float) else int(found)
        step = schema.get("multipleOf", 1 if kind == "integer" else None)
        low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
        high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
        middle = (low + high) / 2 if math.isfinite(low) and math.isfinite(high) else None
        for value in (0, 1, low, high, low + 1, high - 1, middle):
            if value is None or not math.isfinite(value):
                continue
            for snapped in [value] if not step else [math.ceil(value / step) * step, math.floor(value / step) * step]:
                if _fits(snapped, schema):
                    return int(snapped) if snapped == int(snapped) else float(snapped)
        raise Refusal(f"Error generating stream: no {kind} fits {json.dumps(schema)}")

    def _string(self, name: str, schema: dict[str, Any]) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        pattern = schema.get("pattern")
        if pattern:
            found = re.search(pattern.removeprefix("^").removesuffix("$"), self.findings.text)
            if found and found[0] and re.search(pattern, found[0]):
                return found[0]
            return example(pattern, least)
        found = self.findings.find(name, {**schema, "type": "string"})
        if found is MISSING:
            found = SAMPLES.get(str(schema.get("format")), self.spare)
        return str(found)[:most].ljust(least, ".")


def _fits(value: float, schema: dict[str, Any]) -> bool:
    step = schema.get("multipleOf")
    return (
        schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
        and schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf)
        and (not step or abs(value / step - round(value / step)) < 1e-9)
    )
