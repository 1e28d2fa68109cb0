"""/v1/openapi.json is valid, whole and true: its examples are sent, and what comes back is held against it."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import httpx2
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from playwright.async_api import async_playwright

import app
from config import load
from handlers.door.errors import ApiError
from handlers.door.later import Later
from handlers.door.schemas import chat
from handlers.ops.openapi import examples
from handlers.ops.openapi.document import document
from scripts.triton import Triton
from tests.gateway import ROOT, Conch
from tests.test_transcriptions import FEW

BREAKS = 'script: {"pieces": ["a", "b"], "fail_after": 1, "pace_ms": 20}'
TOKEN = "the operator of this test"
PLAIN = {  # headers that HTTP itself explains
    *("cache-control", "connection", "content-encoding", "content-length", "content-security-policy", "content-type"),
    *("date", "referrer-policy", "transfer-encoding", "vary", "x-accel-buffering", "x-content-type-options"),
}


class Shop(NamedTuple):
    """A gateway with an admin token, a key of a workspace, and what the gateway says of itself."""

    conch: Conch
    key: str
    document: dict[str, Any]

    def send(
        self, method: str, path: str, operation: dict[str, Any], headers: dict[str, str] | None = None, **options: Any
    ) -> httpx2.Response:
        """One request, with the token that its operation asks for."""
        tokens = [{"key": self.key, "admin": TOKEN}[name] for each in operation["security"] for name in each]
        sent = dict(headers or {}) | ({"authorization": f"Bearer {tokens[0]}"} if tokens else {})
        return httpx2.request(method, self.conch.url + path, headers=sent, timeout=60, **options)

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Method, path, operation."""
        return operations(self.document)

    def check(self, answer: httpx2.Response, operation: dict[str, Any]) -> None:
        """Hold an answer against its operation: status, headers, media type, body."""
        told = self.followed(operation["responses"][str(answer.status_code)])
        assert set(answer.headers) - PLAIN <= {each.lower() for each in told["headers"]}
        kind = answer.headers["content-type"].partition(";")[0]
        content = told["content"].get(kind) or told["content"][kind.partition("/")[0] + "/*"]
        if kind == "application/json":
            self.fits(content["schema"], answer.json())
        elif kind == "text/event-stream":
            frames = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
            assert frames[-1] == "[DONE]"
            assert frames[:-1]
            for frame in frames:
                self.fits(content["schema"], {"data": frame})
                fits_as_frame(self.document, content["schema"], frame)

    def fits(self, schema: dict[str, Any], value: Any) -> None:
        """Whether a value is what a schema of the document says."""
        fits(self.document, schema, value)

    def followed(self, node: dict[str, Any]) -> dict[str, Any]:
        """A response, by its reference where it is one."""
        if "$ref" in node:
            found: dict[str, Any] = self.document["components"]["responses"][node["$ref"].rpartition("/")[2]]
            return found
        return node


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path, operation."""
    for path, item in document["paths"].items():
        for method in item.keys() - {"servers"}:
            yield method.upper(), path, item[method]


def fits(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    Draft202012Validator(schema | {"components": document["components"]}).validate(value)


def fits_as_frame(document: dict[str, Any], events: dict[str, Any], data: str) -> None:
    """Whether the data of an event are [DONE], or JSON of its schema: what validators leave to who decodes them."""
    content, done = events["properties"]["data"]["anyOf"]
    if data != done["const"]:
        fits(document, content["contentSchema"], json.loads(data))


@pytest.fixture(scope="module")
def shop(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    conch = Conch(tmp_path_factory.mktemp("openapi"), triton.url, grpc=triton.grpc_url)
    conch.workspace("acme")
    key = conch.key("acme")
    with conch.running(CONCH_ADMIN_TOKEN=TOKEN):
        yield Shop(conch, key, httpx2.get(f"{conch.url}/v1/openapi.json").json())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document of config/conch.toml, as it is printed."""
    done = subprocess.run(
        [sys.executable, "app.py", "openapi"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        env={"CONCH_ADMIN_TOKEN": TOKEN, "CONCH_STORE__URL": "sqlite:/nowhere/conch.db"},
    )
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def test_it_is_an_openapi_document(shop: Shop, made: dict[str, Any]) -> None:
    assert made["openapi"].startswith("3.1")
    validate(shop.document)
    validate(made)
    ids = [operation["operationId"] for _, _, operation in operations(made)]
    assert len(ids) == len(set(ids))
    assert all(operation["summary"] for _, _, operation in operations(made))
    assert all(tag["description"] for tag in made["tags"])


def test_every_route_is_in_it(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCH_ADMIN_TOKEN", TOKEN)
    routes = app.build(load()).gateway.routes()
    told = {(method, path) for method, path, _ in operations(made)}
    aliases = {path for path, item in made["paths"].items() if "servers" not in item}
    for route in routes:
        if not isinstance(route.endpoint, Later):
            continue  # the dashboard's pages
        path = re.sub(r":\w+}", "}", route.path)
        for method in (route.methods or set()) - {"HEAD"}:
            assert (method, path) in told or path.removeprefix("/api") in aliases, route.path
    assert ("POST", "/v1/{pipeline}/chat/completions") in told
    assert ("POST", "/admin/keys") in told
    assert len(told) > 40


def test_admin_is_told_only_where_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONCH_ADMIN_TOKEN", raising=False)
    paths = document(app.build(load()).gateway.routes(), load())["paths"]
    assert "/v1/chat/completions" in paths
    assert not [path for path in paths if path.startswith("/admin")]


def test_every_answer_has_an_example(made: dict[str, Any]) -> None:
    """Those in JSON, errors too, and an event of every stream; the document is its own."""
    shown = 0
    for path, item in made["paths"].items():
        for method in item.keys() & {"get", "post", "patch", "delete"}:
            for status, answer in item[method]["responses"].items():
                name = answer.get("$ref", "").rpartition("/")[2]
                content = (made["components"]["responses"][name] if name else answer).get("content", {})
                for kind in content.keys() & {"application/json", "text/event-stream"}:
                    shown += 1
                    assert path == "/v1/openapi.json" or content[kind].keys() & {"example", "examples"}, (
                        f"{method} {path} {status} {kind}"
                    )
    assert shown > 500


def test_every_example_fits_its_schema(made: dict[str, Any]) -> None:
    count = 0
    for _, _, operation in operations(made):
        shown = [*operation.get("requestBody", {}).get("content", {}).values()]
        for response in operation["responses"].values():
            shown += response.get("content", {}).values()
        for media in shown:
            values = [each["value"] for each in media.get("examples", {}).values()]
            for value in [*values, *([media["example"]] if "example" in media else [])]:
                fits(made, media["schema"], value)
                if "event" in media["schema"].get("properties", {}):
                    fits_as_frame(made, media["schema"], value["data"])
                count += 1
    for response in made["components"]["responses"].values():
        media = response["content"]["application/json"]
        assert media["examples"]
        for each in media["examples"].values():
            fits(made, media["schema"], each["value"])
    assert count > 50
    for _, _, operation in operations(made):
        for media in operation.get("requestBody", {}).get("content", {}).values():
            assert media["examples"], operation["operationId"]


def test_every_request_example_is_answered_as_it_says(shop: Shop) -> None:
    """On the real gateway and Triton: what a reader copies out of the document works."""
    count = 0
    for method, path, operation in sorted(shop.operations(), key=lambda each: each[:2]):
        body = operation.get("requestBody")
        if body is None or "{id}" in path or "{pipeline}" in path or path == "/v1/pipeline":
            continue  # the last needs a key of a pipeline: tests/test_pipeline.py
        ((kind, media),) = body["content"].items()
        for name, example in media["examples"].items():
            sent = dict(example["value"])
            if "translations" in path:
                sent["model"] = "whisper"  # the listener of the example knows English only
            elif path == "/admin/workspaces":
                sent["name"] = "another"  # acme is there already
            options = _as_body(kind, sent)
            answer = shop.send(method, path.format(name="acme"), operation, **options)
            assert answer.status_code == 200, (path, name, answer.text)
            shop.check(answer, operation)
            streamed = answer.headers["content-type"].startswith("text/event-stream")
            assert streamed == bool(sent.get("stream")), (path, name)
            count += 1
    assert count >= 17


def test_every_get_is_answered_as_it_says(shop: Shop) -> None:
    kept = shop.send("POST", "/v1/responses", _security("key"), json={"model": "assistant", "input": "Hello"}).json()
    made_key = shop.send("POST", "/admin/keys", _security("admin"), json={"workspace": "acme"}).json()
    hook = shop.send("POST", "/admin/webhooks", _security("admin"), json={"url": "https://example.com/"}).json()
    found = 0
    for method, path, operation in shop.operations():
        if method != "GET":
            continue
        ids = {"responses": kept["id"], "models": "assistant", "files": "none", "keys": made_key["id"]}
        ids["webhooks"] = hook["id"]
        id = next((each for segment, each in ids.items() if f"/{segment}/" in path), "")
        if path.startswith("/v1/{pipeline}/responses/"):
            continue  # the response is the workspace's own
        answer = shop.send(method, path.format(pipeline="pipe_support", name="acme", file="page.css", id=id), operation)
        assert answer.status_code == (403 if "/files/" in path else 200), (path, answer.text)
        shop.check(answer, operation)
        found += 1
    assert found > 20


def _security(scheme: str) -> dict[str, Any]:
    return {"security": [{scheme: []}]}


@pytest.mark.parametrize("where", ["path", "query", "body", "media", "key"])
def test_what_is_refused_is_told_too(shop: Shop, where: str) -> None:
    """Each operation, wrong in one way: the status that comes is in the document, and so is the shape."""
    found = 0
    for method, path, operation in shop.operations():
        target = path.format(pipeline="pipe_none", name="none", file="none", id="none")
        body = operation.get("requestBody")
        options: dict[str, Any] = {}
        if where == "path" and "{" in path:
            options = _first_example(body) if body is not None else {}
        elif where == "query" and any(each.get("in") == "query" for each in operation.get("parameters", ())):
            options = {"params": {"no_such": "1"}}
        elif where in ("body", "media") and body is not None:
            kind = "text/plain" if where == "media" else next(iter(body["content"]))
            options = {"content": b"{}{", "headers": {"content-type": kind}}
        elif where != "key" or not operation["security"]:
            continue
        answer = shop.send(method, target, operation | ({"security": []} if where == "key" else {}), **options)
        assert answer.status_code >= 400, (method, path)
        shop.check(answer, operation)
        found += 1
    assert found > 3


def test_a_method_that_is_not_told_is_a_405(shop: Shop) -> None:
    for path in shop.document["paths"]:
        answer = httpx2.put(shop.conch.url + path.format(pipeline="pipe_none", name="none", file="none", id="none"))
        assert answer.status_code == 405, path
        told = {method.upper() for method in shop.document["paths"][path].keys() - {"servers"}}
        assert told <= set(answer.headers["allow"].split(", ")), path


def _first_example(body: dict[str, Any]) -> dict[str, Any]:
    kind, media = next(iter(body["content"].items()))
    return _as_body(kind, next(iter(media["examples"].values()))["value"])


def _as_body(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    """An example as httpx2 takes it; a file is one of ours."""
    if kind == "application/json":
        return {"json": value}
    return {
        "data": {name: each for name, each in value.items() if name != "file"},
        "files": {"file": ("a.wav", FEW)},
    }


def test_errors_raised_anywhere_have_a_status_that_is_described(made: dict[str, Any]) -> None:
    described = {int(name.removeprefix("Error")) for name in made["components"]["responses"]}

    def kinds(kind: type[ApiError]) -> Iterator[type[ApiError]]:
        yield kind
        for each in kind.__subclasses__():
            yield from kinds(each)

    assert {kind.status for kind in kinds(ApiError)} <= described
    named = {
        int(status)
        for path in (ROOT / "handlers").rglob("*.py")
        for status in re.findall(r"status=(\d{3})\b", path.read_text())
    }
    assert named - described <= {405, 414, 431, 501}, "words.ABOUT tells of these, which no operation has"


def test_examples_name_the_models_of_the_configuration(shop: Shop) -> None:
    body = shop.document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert body["examples"]["whole"]["value"]["model"] == "assistant"
    assert examples.requests(chat.ChatRequest, {"chat": "mine"})["whole"]["value"]["model"] == "mine"
    assert "model" not in examples.requests(chat.ChatRequest, {})["whole"]["value"]


def test_it_comes_compressed_and_under_both_bases(shop: Shop) -> None:
    plain = httpx2.get(f"{shop.conch.url}/api/v1/openapi.json", headers={"accept-encoding": "identity"})
    small = httpx2.get(f"{shop.conch.url}/v1/openapi.json", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert small.headers["content-encoding"] == "gzip"
    assert int(small.headers["content-length"]) < int(plain.headers["content-length"]) / 5
    assert small.content == plain.content
    assert plain.headers["vary"] == small.headers["vary"] == "accept-encoding"


def test_nothing_of_it_is_made_or_imported_before_it_is_asked_for() -> None:
    code = "import app, config, sys; app.build(config.load()); print([m for m in sys.modules if 'ops.openapi.' in m])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_is_ours_alone(shop: Shop) -> None:
    page = httpx2.get(f"{shop.conch.url}/docs")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["connect-src"] == "'self'"
    assert "//" not in page.text.replace("<!doctype", "").replace("</", "")
    assert "<script>" not in page.text
    for path in re.findall(r'(?:href|src)="(docs/[^"]+)"', page.text):
        asset = httpx2.get(f"{shop.conch.url}/{path}")
        assert asset.status_code == 200, path
        assert asset.headers["x-content-type-options"] == "nosniff"
    assert httpx2.get(f"{shop.conch.url}/docs/LICENSE").status_code == 404
    vendored = ROOT / "handlers" / "ops" / "openapi" / "viewer"
    assert (vendored / "viewer.js").stat().st_size < 1_000_000
    assert "Apache License" in (vendored / "LICENSE").read_text()


async def test_a_browser_shows_it(shop: Shop) -> None:
    found = shutil.which("chromium")
    assert found, "needs Chromium: python3 scripts/setup.py test installs it"
    said: list[str] = []
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=found)
        page = await chromium.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        await page.goto(f"{shop.conch.url}/docs#?route=post-/v1/chat/completions")
        for operation in ("/v1/chat/completions", "/v1/embeddings"):  # the bar beside, drawn from the document
            await page.get_by_text(operation).first.wait_for()
        await page.get_by_text(shop.document["paths"]["/v1/chat/completions"]["post"]["summary"]).first.wait_for()
        await chromium.close()
    assert said == []


def test_what_ends_a_stream_is_told(shop: Shop) -> None:
    """[DONE], which is no JSON, and the error of a model that broke off."""
    content = shop.document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]["text/event-stream"]
    data = content["schema"]["properties"]["data"]["anyOf"]
    assert data[1] == {"const": "[DONE]"}
    asked = {"model": "vllm", "stream": True, "messages": [{"role": "user", "content": BREAKS}]}
    told = shop.send("POST", "/v1/chat/completions", _security("key"), json=asked).text
    last = told.removesuffix("\n\n").rpartition("data: ")[2]
    assert json.loads(last).keys() == {"error"}
    shop.fits(data[0]["contentSchema"], json.loads(last))


def test_a_query_is_told_as_it_is_read(shop: Shop) -> None:
    parameters = shop.document["paths"]["/v1/responses/{id}"]["get"]["parameters"]
    (include,) = [each for each in parameters if each.get("name") == "include[]"]
    assert include["schema"]["type"] == "array"
    assert parse_qsl("include[]=a&include[]=b") == [("include[]", "a"), ("include[]", "b")]


def test_a_time_limit_is_told_of_whatever_waits_for_a_model(made: dict[str, Any]) -> None:
    limit = {"$ref": "#/components/parameters/RequestTimeout"}
    timed = {each["operationId"] for _, _, each in operations(made) if limit in each.get("parameters", [])}
    assert timed == {each["operationId"] for _, _, each in operations(made) if "504" in each["responses"]}
    assert {"chat_create", "pipeline_create", "pipeline_create_in_pipeline"} <= timed


@pytest.mark.parametrize("name", ["a", "acme.eu-1_X", "0" * 64, "-a", "", "a" * 65, "ä", "a b"])
def test_the_name_of_a_workspace_is_told_as_it_is_read(shop: Shop, name: str) -> None:
    told = shop.document["components"]["schemas"]["NewWorkspace"]["properties"]["name"]
    answer = shop.send("POST", "/admin/workspaces", _security("admin"), json={"name": name, "plan": "pro"})
    assert (answer.status_code == 200) == Draft202012Validator(told).is_valid(name), answer.text


@pytest.mark.parametrize("lacks", ["id", "status", "summary", "content", "encrypted_content", "phase", "call_id"])
def test_null_in_an_item_is_told_as_it_is_read(shop: Shop, lacks: str) -> None:
    """A client may send null for what an item may lack, and for nothing else."""
    message: dict[str, Any] = {"type": "message", "role": "user", "content": "Hello"}
    item: dict[str, Any] = {"type": "reasoning", "summary": [], lacks: None}
    if lacks == "phase":
        item = message | {"phase": None}
    elif lacks == "call_id":
        item = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": None}
    asked = {"model": "vllm", "input": [message, item], "max_output_tokens": 1, "store": False}
    told = {"$ref": "#/components/schemas/ResponseRequest", "components": shop.document["components"]}
    answer = shop.send("POST", "/v1/responses", _security("key"), json=asked)
    assert answer.status_code == (400 if lacks == "call_id" else 200), answer.text
    assert Draft202012Validator(told).is_valid(asked) == (answer.status_code == 200)


SAID = {"role": "user", "content": "Hello"}
UNTYPED: dict[str, dict[str, Any]] = {
    "message": {"input": [SAID]},
    "summary": {"input": [SAID, {"type": "reasoning", "summary": [{"text": "Well"}]}]},
    "thought": {"input": [SAID, {"type": "reasoning", "content": [{"text": "Well"}]}]},
    "tool": {"input": "Hello", "tools": [{"name": "f"}]},
    "null": {"input": [SAID | {"type": None}]},
    "call": {"input": [{"call_id": "c", "name": "f", "arguments": "{}"}]},
    "part": {"input": [{"role": "user", "content": [{"text": "Hello"}]}]},
}


@pytest.mark.parametrize("where", UNTYPED)
def test_a_type_that_may_be_left_out_is_told_so(shop: Shop, where: str) -> None:
    asked = UNTYPED[where] | {"model": "assistant", "store": False}
    told = {"$ref": "#/components/schemas/ResponseRequest", "components": shop.document["components"]}
    answer = shop.send("POST", "/v1/responses", _security("key"), json=asked)
    assert answer.status_code == (400 if where in ("null", "call", "part") else 200), answer.text
    assert Draft202012Validator(told).is_valid(asked) == (answer.status_code == 200)
