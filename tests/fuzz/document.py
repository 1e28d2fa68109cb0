"""/v1/openapi.json, told what there is behind the gateway: else hardly a request would reach a model or an object."""

import json
import tomllib
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

from tests.fuzz.sound import wav
from tests.gateway import CONFIG, Conch
from tests.raw import Wire, bearer

PIPELINES = {
    "pipe_whole": '{{ chat = "ensemble", embedding = "minilm", rerank = "reranker", image = "sd", speech = "voice", '
    'transcription = "whisper" }}',
    "pipe_more": '{{ chat = "vllm", embedding = "embed-text", rerank = "reranker", image = "sd-bls", speech = "f5", '
    'transcription = "wav-asr" }}',
}
ENTRY = '\n[[pipelines]]\nid = "{}"\nworkspace = "acme"\nmodels = {}\n'
SETTINGS = CONFIG + "".join(ENTRY.format(*each) for each in PIPELINES.items())

STARTS = {
    "chat": ("Chat", "Completion", "Response"),
    "image": ("Image",),
    "embedding": ("Embedding",),
    "rerank": ("Rerank",),
    "speech": ("Speech",),
    "transcription": ("Transcription", "Translation"),
}
"""How the names of each task's requests begin."""

FILE = {"type": "string", "format": "binary"}
BOUND = "OfPipeline"  # behind the name of a request's schema: the model is the pipeline's
MANY = 400  # objects of a kind that some operation takes away


def reachable(conch: Conch, key: str, token: str) -> dict[str, Any]:
    """The document of a running gateway, with the names of its models, its pipelines, and of objects made here."""
    with urlopen(f"{conch.url}/v1/openapi.json", timeout=30) as reply:
        text = reply.read().decode()
    # The assistant searches for what it says, which takes its time: let it be one model of several.
    document: dict[str, Any] = json.loads(text.replace('"model":"assistant"', '"model":"vllm"'))
    by_task = _models(conch, key)
    schemas, bound = document["components"]["schemas"], {}
    for name, schema in schemas.items():
        for task, start in STARTS.items():
            if name.startswith(start) and name.endswith("Request"):
                bound[name] = schema | {"properties": schema["properties"] | {"model": {"enum": ["default", None]}}}
                schema["properties"]["model"] = {"enum": by_task[task]}
                schema["required"] = [*schema["required"], "model"]
    schemas |= {name + BOUND: schema for name, schema in bound.items()}
    _turn(schemas, document["paths"])
    for name in ("NewWorkspace", "WorkspaceChange"):
        schemas[name]["properties"]["plan"] = {"enum": ["pro", "team", "enterprise"]}
    known = _objects(conch, key, token)
    for path, id, operation in _each(document):
        if "{pipeline}" in path:
            for media in operation.get("requestBody", {}).get("content", {}).values():
                media["schema"]["$ref"] += BOUND * (media["schema"]["$ref"].rpartition("/")[2] in bound)
        for parameter in operation.get("parameters", []):
            if parameter.get("in") != "path":
                continue
            if parameter["name"] == "pipeline":
                parameter["schema"] = {"enum": list(PIPELINES)}
            elif found := known.get(id) or known.get(path.partition(f"/{{{parameter['name']}}}")[0].rpartition("/")[2]):
                parameter["schema"] = {"anyOf": [{"enum": found}, parameter["schema"]]}
    return document


def _turn(schemas: dict[str, Any], paths: dict[str, Any]) -> None:
    """A voice turn has one recording: of a form its `file`, of JSON its `audio`."""
    whole = schemas["PipelineRequest"]
    for kind, has, lacks in (("multipart/form-data", "file", "audio"), ("application/json", "audio", "file")):
        properties = {name: each for name, each in whole["properties"].items() if name != lacks}
        sound = {"enum": [b64encode(wav(0.4)).decode()]}
        properties[has] = FILE if has == "file" else {"anyOf": [sound, {"type": "string"}]}
        schemas[f"PipelineRequest_{has}"] = whole | {"properties": properties, "required": [has]}
        for path in ("/v1/pipeline", "/v1/{pipeline}/pipeline"):
            schema = paths[path]["post"]["requestBody"]["content"][kind]["schema"]
            schema["$ref"] = f"#/components/schemas/PipelineRequest_{has}"


def operations(document: dict[str, Any]) -> list[str]:
    """Their ids, in the document's order."""
    return [id for _, id, _ in _each(document)]


def _each(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in item.keys() - {"servers"}:
            yield path, item[method]["operationId"], item[method]


def _models(conch: Conch, key: str) -> dict[str, list[str]]:
    """The ids of each task's models that are served."""
    with Wire(conch.url) as wire:
        wire.request("GET", "/v1/models", **bearer(key))
        served = {each["id"] for each in wire.answer().json["data"]}
    found: dict[str, list[str]] = {}
    for model in reversed(tomllib.loads(conch.config.read_text())["models"]):
        if model["id"] in served:
            found.setdefault(model["task"], []).append(model["id"])
    return found


def _objects(conch: Conch, key: str, token: str) -> dict[str, list[str]]:
    """What there is to show, by the segment before its id in a path; to take away, by the operation that does."""
    pipelines = [f"/{id}" for id in PIPELINES]
    with Wire(conch.url) as wire:

        def make(path: str, authority: str, **body: Any) -> Any:
            wire.request("POST", path, json.dumps(body).encode(), content_type="application/json", **bearer(authority))
            answer = wire.answer()
            assert answer.status == 200, answer
            return answer.json

        def response(within: str = "") -> str:
            asked = {"model": "default" if within else "vllm", "input": "Hello", "max_output_tokens": 2}
            id: str = make(f"/v1{within}/responses", key, **asked)["id"]
            return id

        def webhook(url: str = "https://example.com/hook") -> str:
            id: str = make("/admin/webhooks", token, workspace="spare", url=url, events=["key.expiring"])["id"]
            return id

        def secret() -> str:
            id: str = make("/admin/keys", token, workspace="spare")["id"]
            return id

        make("/admin/workspaces", token, name="spare", plan="enterprise")
        tested = webhook()
        delivery = make(f"/admin/webhooks/{tested}/test", token)
        drawn = make("/v1/images/generations", key, model="sd", prompt="a boat", response_format="url")
        return {
            "responses": [response()],
            "models": ["assistant", "minilm"],
            "keys": [secret()],
            "workspaces": ["spare"],
            "webhooks": [tested],
            "deliveries": [delivery["id"]],
            "docs": ["page.css", "page.js"],
            "files": [drawn["data"][0]["url"].rpartition("/")[2].partition("?")[0]],
            "responses_delete": [response() for _ in range(MANY)],
            "responses_show_in_pipeline": [response(each) for each in pipelines],
            "responses_input_items_in_pipeline": [response(each) for each in pipelines],
            "responses_delete_in_pipeline": [response(each) for each in pipelines for _ in range(MANY)],
            "admin_delete_webhook": [webhook() for _ in range(50)],
            "admin_revoke_key": [secret() for _ in range(MANY)],
            "admin_rotate_key": [secret() for _ in range(MANY)],
        }
