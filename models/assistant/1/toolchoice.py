"""Whether a question asks for a tool, which, and with what arguments."""

from __future__ import annotations

import json
import re
from typing import Any

from findings import MISSING, Findings
from instance import Instance
from retrieval import Library

# A question this near to a tool's name and description asks for it.
NEAR = 0.3
CLAUSE = re.compile(r"\s*;\s*|\s*,?\s+and\s+(?:also\s+|then\s+)?|\s*,\s+(?:then\s+)?", re.IGNORECASE)

Call = tuple[str, dict[str, Any]]


def choose_calls(question: str, tools: list[dict[str, Any]], library: Library) -> list[Call]:
    """Return the calls that the question asks for: none when no tool is near to it."""
    best = _nearest(question, tools, library)
    if best is None:
        return []
    calls: list[Call] = []
    tool = best
    for clause in CLAUSE.split(question):
        tool = _nearest(clause, tools, library) or tool
        arguments = _named(tool, clause, question)
        if arguments is not None and (tool["name"], arguments) not in calls:
            calls.append((tool["name"], arguments))
    if len(calls) > 1:
        return calls
    return [(best["name"], _arguments(best, question))]


def say_calls(calls: list[Call]) -> str:
    """Return the calls in Hermes' form."""
    said = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return "\n".join(f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in said)


def _nearest(text: str, tools: list[dict[str, Any]], library: Library) -> dict[str, Any] | None:
    scored = [(_score(text, tool, library), -index) for index, tool in enumerate(tools)]
    score, index = max(scored, default=(0.0, 0))
    return tools[-index] if score >= NEAR else None


def _score(text: str, tool: dict[str, Any], library: Library) -> float:
    name = str(tool["name"])
    words = re.sub(r"([a-z])([A-Z])", r"\1 \2", name).replace("_", " ").replace("-", " ")
    described = f"{words}: {tool.get('description') or words}"
    # Whoever says a tool's name means it.
    return 1.0 if re.search(rf"\b{re.escape(name)}\b", text) else library.similarity(text, described)


def _schema(tool: dict[str, Any]) -> dict[str, Any]:
    parameters = tool.get("parameters")
    if not isinstance(parameters, dict):
        return {}
    properties = parameters.get("properties", {})
    sound = isinstance(properties, dict) and all(isinstance(entry, dict) for entry in properties.values())
    return parameters if sound and isinstance(parameters.get("required", []), list) else {}


def _arguments(tool: dict[str, Any], text: str) -> dict[str, Any]:
    built = Instance({"type": "object", **_schema(tool)}, Findings(text), text).build()
    return built if isinstance(built, dict) else {}


def _named(tool: dict[str, Any], clause: str, question: str) -> dict[str, Any] | None:
    """Return the arguments if this clause alone names every required one; what it leaves open the question may say."""
    schema = _schema(tool)
    properties = schema.get("properties", {})
    findings, whole = Findings(clause, guess=False), Findings(question)
    arguments = {}
    for name, entry in properties.items():
        found = findings.find(name, entry)
        if found is MISSING and "enum" in entry:
            found = whole.find(name, entry)
        if found is not MISSING:
            arguments[name] = found
        elif name in schema.get("required", []):
            return None
    return arguments if findings.taken else None
