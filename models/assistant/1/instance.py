"""A minimal valid instance of a JSON schema, filled from a text where the text holds something that fits."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from findings import MISSING, Findings
from pattern import example, find
from serving import Refusal

DEEPEST = 24
# Characters and steps, and seconds, that one instance may take.
MOST, SECONDS = 50_000, 2.0
LARGEST = 1e100
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
SHAPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("properties", "$defs"), dict),
    **dict.fromkeys(("required", "enum", "allOf", "anyOf", "oneOf", "prefixItems"), list),
    **dict.fromkeys(("$ref", "pattern"), str),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), int),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), (int, float)),
}


class Instance:
    """Builds values for one schema: required properties always, optional ones when the text names them."""

    def __init__(self, root: dict[str, Any] | bool, findings: Findings, spare: str) -> None:
        self.root = root
        self.findings = findings
        # What a free string says when the text holds nothing for it.
        self.spare = spare
        self.left = MOST
        self.deadline = time.monotonic() + SECONDS

    def build(self) -> Any:
        """Return the instance; Refusal for a schema that cannot be met or is not understood."""
        return self._value("", self.root, 0)

    def _spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0 or time.monotonic() > self.deadline:
            raise _refusal("the JSON schema asks for more than this model can say")

    def _find(self, name: str, schema: dict[str, Any]) -> Any:
        self._spend(10 * len(schema.get("enum", ())) + 1)  # a search for each
        return self.findings.find(name, schema)

    def _value(self, name: str, schema: Any, depth: int) -> Any:
        if depth > DEEPEST:
            raise _refusal("the JSON schema requires itself without end")
        schema = self._resolve(schema)
        if "const" in schema:
            self._spend(len(str(schema["const"])))
            return schema["const"]
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._any_of(name, schema, key, depth)
        if schema.get("enum"):
            found = self._find(name, schema)
            self._spend(len(str(schema["enum"][0])))
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
            found = self._find(name, {"type": "boolean"})
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

    def _resolve(self, schema: Any, seen: tuple[str, ...] = ()) -> dict[str, Any]:
        """Follow $ref and merge allOf; `seen` are the references that led here."""
        self._spend(1)
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            raise _refusal(f"no value fits the schema {json.dumps(schema)[:100]}")
        _check(schema)
        parts = []
        if "$ref" in schema:
            reference = str(schema["$ref"])
            if reference in seen:
                raise _refusal(f"$ref {reference} leads back to itself")
            parts.append(self._resolve(self._target(reference), (*seen, reference)))
        parts += [self._resolve(part, seen) for part in schema.get("allOf", ())]
        if not parts:
            return schema
        return self._merge([*parts, {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}])

    def _merge(self, schemas: list[dict[str, Any]]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for schema in schemas:
            self._spend(len(schema))
            for key, value in schema.items():
                if key == "properties":
                    merged[key] = {**merged.get(key, {}), **value}
                elif key == "required":
                    merged[key] = list(dict.fromkeys([*merged.get(key, []), *value]))
                elif key not in BARE or key not in merged:
                    merged[key] = value
        return merged

    def _target(self, reference: str) -> Any:
        if not reference.startswith("#"):
            raise _refusal(f"$ref {reference[:100]} is not within the schema")
        found: Any = self.root
        for part in reference[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                raise _refusal(f"$ref {reference[:100]} leads nowhere")
        return found

    def _any_of(self, name: str, schema: dict[str, Any], key: str, depth: int) -> Any:
        rest = {entry: value for entry, value in schema.items() if entry not in (key, *BARE)}
        # What the text says comes first, then whatever ends soonest: null, then the others in their order.
        options = [self._merge([rest, self._resolve(option)]) for option in schema[key]]
        for option in options:
            found = MISSING if depth > DEEPEST else self._find(name, option)
            if found is not MISSING:
                return found
        refusal: Refusal | None = None
        for option in sorted(options, key=lambda option: option.get("type") != "null"):
            try:
                return self._value(name, option, depth + 1)
            except Refusal as error:
                self._spend(1)  # raises where it was the budget that ended
                refusal = error
        raise refusal or _refusal(f"{key} is empty")

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties: dict[str, Any] = schema.get("properties", {})
        required = schema.get("required", [])
        built: dict[str, Any] = {}
        for name, entry in properties.items():
            if name in required:
                built[name] = self._value(name, entry, depth + 1)
            elif isinstance(entry, dict):
                found = self._find(name, self._resolve(entry))
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
        entry = self._resolve(items) if items is not False else {}
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
            self._spend(len(built))
            if isinstance(value, bool) or not isinstance(value, (str, int, float)):
                raise _refusal("uniqueItems is for more values than this model can tell apart")
            value = f"{value}+" if isinstance(value, str) else value + schema.get("multipleOf", 1)
        return value

    def _number(self, name: str, schema: dict[str, Any], kind: str) -> float | int:
        found = self._find(name, {"type": kind})
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
        raise _refusal(f"no {kind} fits {json.dumps(schema)[:100]}")

    def _string(self, name: str, schema: dict[str, Any]) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        pattern = schema.get("pattern")
        self._spend(max(least, 1))
        if pattern:
            said = find(pattern, self.findings.text) or example(pattern, least)
            self._spend(len(said))
            return said
        found = self._find(name, {**schema, "type": "string"})
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


def _refusal(why: str) -> Refusal:
    return Refusal(f"Error generating stream: structured_outputs: {why}")


def _check(schema: dict[str, Any]) -> None:
    """Refusal for a keyword whose value is not of the kind that it must be."""
    for key in schema.keys() & SHAPES.keys():
        value = schema[key]
        if not isinstance(value, SHAPES[key]) or isinstance(value, bool):
            raise _refusal(f"{key} must not be {json.dumps(value)[:100]}")
        if isinstance(value, (int, float)) and not abs(value) <= LARGEST:
            raise _refusal(f"{key} is out of range")
    if not all(isinstance(name, str) for name in schema.get("required", ())):
        raise _refusal("required must name properties")
    if schema.get("multipleOf", 1) < 1 / LARGEST:
        raise _refusal("multipleOf must be more than 0")
