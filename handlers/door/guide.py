"""What guided decoding must hold the model to: the calls and the form that a conversation asks for, as one schema."""

from typing import Any, NamedTuple

import msgspec

from handlers.door.errors import InvalidRequest
from handlers.door.schemas.chat import ChatRequest, JsonSchemaFormat, NamedChoice, TextFormat, Tool
from upstream.deployment import Deployment

ANY_OBJECT = {"type": "object"}

HINT = (
    'Write one JSON object and nothing around it: {"calls": [{"name": "...", "parameters": {...}}]} to call functions,'
    ' in place of any other way to call them, or {"answer": ...} to answer.'
)
"""What a model is told that may call or answer: its template only knows how it calls where nothing guides it."""


class Guide(NamedTuple):
    """`forced` is the function whose arguments the text is. `calls`: the text is the calls, or may be. `hint` is for
    the model to read."""

    schema: str | None = None
    forced: str | None = None
    calls: bool = False
    hint: str = ""


FREE = Guide()


def guide(body: ChatRequest, deployment: Deployment) -> Guide:
    """How the answer is to be guided, if at all. Raises 400 for what the deployment cannot honour."""
    choice, tools = body.tool_choice, body.tools or []
    form = None if isinstance(body.response_format, TextFormat) else body.response_format
    if tools and choice != "none" and deployment.settings.chat.tools == "none":
        raise unsupported("tools", deployment)
    if choice in (None, "none", "auto") and form is None:
        return FREE
    guided = "json_schema" in deployment.sources
    single = body.parallel_tool_calls is False
    if isinstance(choice, NamedChoice) or choice == "required":
        if not guided:
            raise unsupported("tool_choice", deployment)
        if isinstance(choice, NamedChoice):
            return _named(choice.function.name, tools)
        calls, definitions = _calls(tools, single=single)
        return Guide(_text(calls | {"$defs": definitions}), calls=True)
    if not guided:
        raise unsupported("response_format", deployment)
    answer = form.json_schema.schema or {} if isinstance(form, JsonSchemaFormat) else ANY_OBJECT
    if tools and choice != "none":
        return Guide(_text(_either(tools, answer, single=single)), calls=True, hint=HINT)
    return Guide(_text(answer))


def hinted(messages: list[dict[str, Any]], hint: str) -> list[dict[str, Any]]:
    """A conversation whose instructions end with a hint."""
    first, *rest = messages
    if first["role"] not in ("system", "developer"):
        return [{"role": "system", "content": hint}, *messages]
    told = first["content"]
    more = f"{told}\n\n{hint}" if isinstance(told, str) else [*told, {"type": "text", "text": hint}]
    return [first | {"content": more}, *rest]


def unsupported(param: str, deployment: Deployment) -> InvalidRequest:
    """400 for a field that this deployment's model has no way to honour."""
    return InvalidRequest(
        f"The model {deployment.id!r} does not support {param!r}; leave it out.",
        param=param,
        code="unsupported_parameter",
    )


def _named(name: str, tools: list[Tool]) -> Guide:
    for tool in tools:
        if tool.function.name == name:
            return Guide(_text(tool.function.parameters or ANY_OBJECT), forced=name)
    raise InvalidRequest(
        f"'tool_choice' names {name!r}, which is none of the 'tools'.", param="tool_choice", code="invalid_value"
    )


def _either(tools: list[Tool], answer: Any, *, single: bool) -> dict[str, Any]:
    """The schema of an object with calls or with an answer: which of the two, its only key tells."""
    calls, definitions = _calls(tools, single=single)
    name = "answer"
    while name in definitions:
        name += "_"
    definitions[name] = _moved(answer, f"#/$defs/{name}")
    return {
        "anyOf": [_only("calls", calls), _only("answer", {"$ref": f"#/$defs/{name}"})],
        "$defs": definitions,
    }


def _only(key: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {key: value}, "required": [key], "additionalProperties": False}


def _calls(tools: list[Tool], *, single: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of a list of calls and its definitions: each function's own, whose references stay within it."""
    items, definitions = [], {}
    for name, parameters in ((tool.function.name, tool.function.parameters) for tool in tools):
        place = f"#/$defs/{name}"
        definitions[name] = _moved(parameters or ANY_OBJECT, place)
        properties = {"name": {"const": name}, "parameters": {"$ref": place}}
        items.append({"type": "object", "properties": properties, "required": ["name", "parameters"]})
    calls = {"type": "array", "minItems": 1, "items": {"anyOf": items}}
    return calls | ({"maxItems": 1} if single else {}), definitions


def _moved(schema: Any, place: str) -> Any:
    """A schema with its references to itself as they must be where it lies at `place` of another."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    leads = {"$ref": place + reference[1:]} if isinstance(reference, str) and reference.startswith("#") else {}
    return {key: _moved(value, place) for key, value in schema.items()} | leads


def _text(schema: dict[str, Any]) -> str:
    return msgspec.json.encode(schema).decode()
