"""The OpenAPI document, read from the routes: their paths, the signatures and docstrings of their handlers."""

import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
from starlette.routing import Route

from config import Config
from handlers.door.admission import admit
from handlers.door.gateway import VERSION
from handlers.door.later import Later
from handlers.door.schemas.body import FormBody
from handlers.door.schemas.errors import Error
from handlers.door.wire import Bytes, ByteStream, Endpoint, Stream
from handlers.ops.openapi import examples, words
from handlers.ops.openapi.schemas import BINARY, Schemas, without_null

ALIAS = "/api"  # before a path of /v1: the same routes
IN_PIPELINE = "/{pipeline}/"
MODEL = {400, 402, 403, 404, 502, 503, 504}  # what a request that names a model may come to
BODY = {400, 408, 413, 415}
IDEMPOTENT = {409, 422}


def document(routes: Iterable[Route], config: Config) -> dict[str, Any]:
    """The whole document. Examples name the models of `config` that every workspace sees."""
    schemas = Schemas()
    error = schemas.of(Error)
    models: dict[str, str] = {model.task: model.id for model in reversed(config.models) if "*" in model.workspaces}
    served = sorted((route for route in routes if isinstance(route.endpoint, Later)), key=_rank)
    known = {route.path for route in served}
    paths: dict[str, Any] = {}
    tags: dict[str, str] = {}
    for route in served:
        if route.path.startswith(f"{ALIAS}/"):
            continue
        path = re.sub(r"{(\w+):\w+}", r"{\1}", route.path)
        item = paths.setdefault(path, {} if ALIAS + route.path in known else {"servers": [{"url": "/"}]})
        operation = _Operation(_endpoint(route), path, schemas, models)
        tags.setdefault(operation.tag, operation.about)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            item[method.lower()] = operation.described(method)
    told = {str(type(event).__struct_config__.tag): _webhook(event, schemas) for event in examples.EVENTS}
    components = schemas.components()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Conch",
            "version": VERSION,
            "summary": "An OpenAI-compatible gateway in front of NVIDIA Triton Inference Server.",
            "description": words.ABOUT,
        },
        "servers": [{"url": "/"}, {"url": ALIAS, "description": "The same routes."}],
        "tags": [{"name": name, "description": about} for name, about in tags.items()],
        "paths": paths,
        "webhooks": told,
        "components": {
            "schemas": components,
            "responses": {f"Error{status}": _refusal(status, error) for status in words.STATUSES},
            "headers": words.HEADERS,
            "parameters": words.PARAMETERS,
            "securitySchemes": words.SECURITY,
        },
    }


def _webhook(event: msgspec.Struct, schemas: Schemas) -> dict[str, Any]:
    """An event as the request that its receiver gets."""
    tag = str(event.__struct_config__.tag)
    content = {"schema": schemas.of(type(event)), "example": msgspec.to_builtins(event)}
    told = {
        "operationId": f"webhook_{tag.replace('.', '_')}",
        "summary": (inspect.getdoc(type(event)) or "").rstrip("."),
        "parameters": [words.SIGNATURE],
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": words.RECEIVED,
        "security": [],
    }
    return {"post": told}


class _Operation:
    """One route as an operation."""

    def __init__(self, endpoint: Endpoint, path: str, schemas: Schemas, models: dict[str, str]) -> None:
        handler = endpoint.handler
        self._endpoint = endpoint
        self._path = path
        self._schemas = schemas
        self._models = models
        self._hints = get_type_hints(handler, include_extras=True)
        self._name = handler.__name__
        self._piped = IN_PIPELINE in path
        self._said, self._raised = _read(inspect.getdoc(handler) or "")
        module = handler.__module__
        self.tag = module.rpartition(".")[2]
        self.about = (sys.modules[module].__doc__ or "").partition("\n\n")[0].replace("\n", " ")

    def described(self, method: str) -> dict[str, Any]:
        """The operation object."""
        gate, body = self._endpoint.gate, self._endpoint.body
        idempotent = method == "POST" and body is not None and not self._endpoint.shown_once
        summary, _, rest = self._said.partition(". ")
        told: dict[str, Any] = {
            "operationId": f"{self.tag}_{self._name}{'_in_pipeline' if self._piped else ''}",
            "tags": [self.tag],
            "summary": summary.rstrip(".").replace("`", ""),
        }
        if rest:
            told["description"] = rest
        told["security"] = [] if gate is None else [{"key": []}] if gate is admit else [{"admin": []}]
        statuses = self._statuses(idempotent)
        parameters = [*self._in_path(), *self._in_query(), *_in_header(idempotent, timed=504 in statuses)]
        if parameters:
            told["parameters"] = parameters
        if body is not None:
            told["requestBody"] = self._request_body(body)
        told["responses"] = {"200": self._success(idempotent)} | {
            str(status): {"$ref": f"#/components/responses/Error{status}"} for status in statuses
        }
        return told

    def _in_path(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "in": "path", "required": True, **words.PATH[name]}
            for name in re.findall(r"{(\w+)}", self._path)
        ]

    def _in_query(self) -> list[dict[str, Any]]:
        query = self._hints.get("query")
        if query is None:
            return []
        schemas = Schemas()
        schemas.of(query)
        (schema,) = schemas.components().values()
        required = schema.get("required", [])
        parameters = []
        for name, field in schema["properties"].items():
            kind = without_null(field)
            parameter = {"name": f"{name}[]" if kind.get("type") == "array" else name, "in": "query", "schema": kind}
            parameters.append(parameter | ({"required": True} if name in required else {}))
        return parameters

    def _request_body(self, body: type[msgspec.Struct]) -> dict[str, Any]:
        shown = examples.requests(body, self._models)
        if not issubclass(body, FormBody):
            content = {"application/json": shown}
        elif not getattr(body, "or_json", False):
            content = {"multipart/form-data": shown}
        else:
            files = {name: each for name, each in shown.items() if "file" in each["value"]}
            content = {
                "multipart/form-data": files,
                "application/json": {name: each for name, each in shown.items() if name not in files},
            }
        return {
            "required": self._endpoint.needs_body,
            "content": {
                kind: {"schema": self._schemas.of(body)} | ({"examples": each} if each else {})
                for kind, each in content.items()
            },
        }

    def _success(self, idempotent: bool) -> dict[str, Any]:
        content: dict[str, Any] = {}
        structs: list[Any] = []
        for kind in _members(self._hints["return"]):
            if get_origin(kind) is Stream:
                (event,) = get_args(kind)
                content["text/event-stream"] = {
                    "schema": _events(self._schemas.of(event), self._schemas.of(Error))
                } | examples.event(event)
                continue
            plain, *media = get_args(kind) if get_origin(kind) is Annotated else (kind,)
            if plain in (Bytes, ByteStream):
                for name in media or ["application/octet-stream"]:
                    content[name] = {"schema": _schema_of_bytes(name)}
            else:
                structs.append(kind)
        if structs:
            schemas = [self._schemas.of(kind) for kind in structs]
            schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
            content["application/json"] = {"schema": schema} | examples.answer(structs[0])
        names = [*words.EVERY, *(words.LIMITED if self._endpoint.gate is admit else ())]
        if idempotent:
            names.append("X-RunInfra-Idempotent-Replay")
        return {
            "description": words.STREAMED if "text/event-stream" in content else "The answer.",
            "headers": _headers(names),
            "content": dict(sorted(content.items())),
        }

    def _statuses(self, idempotent: bool) -> list[int]:
        gate, body = self._endpoint.gate, self._endpoint.body
        found = {500} | self._raised
        if gate is not None:
            found |= {401, 503} | ({403, 429} if gate is admit else set())
        if self._piped:
            found.add(404)
        if body is not None:
            found |= BODY
            if "model" in body.__struct_fields__:
                found |= MODEL
        if "query" in self._hints:
            found.add(400)
        if idempotent:
            found |= IDEMPOTENT
        return sorted(found)


def _rank(route: Route) -> int:
    """Clients' routes come first, then the operator's."""
    gate = _endpoint(route).gate
    return 0 if gate is admit else 1 if gate is not None else 2


def _endpoint(route: Route) -> Endpoint:
    assert isinstance(route.endpoint, Later)
    return route.endpoint.made


def _read(text: str) -> tuple[str, set[int]]:
    """What a docstring says, and the statuses that it raises."""
    raised = {int(status) for clause in re.findall(r"Raises ([^.]*)", text) for status in re.findall(r"\d{3}", clause)}
    said = re.sub(r"\s*Raises \d[^.]*\.", "", text)
    return " ".join(said.split()), raised


def _members(hint: Any) -> Sequence[Any]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _events(schema: dict[str, Any], error: dict[str, Any]) -> dict[str, Any]:
    """Server-sent events whose data are JSON of a schema; the last one's are [DONE], or an error that broke it off."""
    json = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [schema, error]}}
    data = {"type": "string", "anyOf": [json, {"const": "[DONE]"}]}
    return {"type": "object", "properties": {"event": {"type": "string"}, "data": data}, "required": ["data"]}


def _schema_of_bytes(media: str) -> dict[str, Any]:
    if media.startswith("text/"):
        return {"type": "string"}
    return {"type": "object"} if media == "application/json" else dict(BINARY)


def _in_header(idempotent: bool, timed: bool) -> list[dict[str, Any]]:
    names = ["ClientRequestId", *(["IdempotencyKey"] if idempotent else []), *(["RequestTimeout"] if timed else [])]
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _refusal(status: int, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": words.STATUSES[status],
        "headers": _headers([*words.EVERY, *words.LIMITED, *words.REFUSED.get(status, ())]),
        "content": {"application/json": {"schema": schema, "examples": examples.errors(status)}},
    }
