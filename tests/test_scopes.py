"""Who may reach what: pipelines, aliases, allow-lists, workspaces, and a key's life as the command line changes it."""

import json
import re
import time
from typing import Any

import pytest

from tests.gateway import Conch
from tests.raw import Answer, Wire, bearer

MESSAGES = [{"role": "user", "content": "hi"}]
SECRET = re.compile(r"rp_live_[0-9a-f]{64}")


def models(conch: Conch, key: str, path: str = "/v1/models") -> Answer:
    """The answer to GET /models."""
    with Wire(conch.url) as wire:
        wire.request("GET", path, b"", **bearer(key))
        return wire.answer()


def listed(conch: Conch, key: str, path: str = "/v1/models") -> list[str]:
    """The ids that GET /models shows."""
    answer = models(conch, key, path)
    assert answer.status == 200, answer
    return [model["id"] for model in answer.json["data"]]


def chat(conch: Conch, key: str, path: str = "/v1", **fields: Any) -> Answer:
    """The answer to a chat request with these fields."""
    with Wire(conch.url) as wire:
        body = json.dumps({"messages": MESSAGES, **fields}).encode()
        wire.request("POST", f"{path}/chat/completions", body, content_type="application/json", **bearer(key))
        return wire.answer()


def served(conch: Conch, key: str, path: str = "/v1", **fields: Any) -> str:
    """The model that answered a chat request."""
    answer = chat(conch, key, path, **fields)
    assert answer.status == 200, answer
    model: str = answer.json["model"]
    return model


@pytest.fixture(scope="module")
def piped(conch: Conch) -> str:
    """A key bound to the pipeline pipe_support, whose chat model is the assistant."""
    return conch.key("acme", "--pipeline", "pipe_support")


@pytest.fixture(scope="module")
def others(conch: Conch) -> str:
    """A workspace key of other."""
    return conch.key("other")


@pytest.mark.parametrize("base", ["/v1", "/api/v1"])
@pytest.mark.parametrize("name", [None, "default", "assistant", "gpt-4o-mini", "acme/assistant"])
@pytest.mark.parametrize("path", ["", "/pipe_support"])
def test_a_pipeline_key_reaches_its_model(conch: Conch, piped: str, base: str, path: str, name: str | None) -> None:
    assert served(conch, piped, base + path, max_tokens=1, **({} if name is None else {"model": name})) == "assistant"


@pytest.mark.parametrize("base", ["/v1", "/api/v1"])
@pytest.mark.parametrize("path", ["/pipe_sales", "/pipe_other", "/pipe_nowhere", "/models"])
def test_a_pipeline_key_reaches_no_other_pipeline(conch: Conch, piped: str, base: str, path: str) -> None:
    error = chat(conch, piped, base + path).error(403)
    assert (error["type"], error["code"]) == ("permission_denied", "pipeline_scope_mismatch")


@pytest.mark.parametrize("path", ["/v1", "/v1/pipe_support"])
@pytest.mark.parametrize("model", ["vllm", "private", "nothing", ""])
def test_a_pipeline_key_reaches_no_other_model(conch: Conch, piped: str, path: str, model: str) -> None:
    assert chat(conch, piped, path, model=model).error(403)["code"] == "pipeline_scope_mismatch"


def test_a_pipeline_key_sees_its_models(conch: Conch, piped: str) -> None:
    assert listed(conch, piped) == ["assistant"]
    assert listed(conch, piped, "/api/v1/pipe_support/models") == ["assistant"]
    assert models(conch, piped, "/v1/models/gpt-4o-mini").json["id"] == "assistant"
    assert models(conch, piped, "/v1/models/vllm").error(404, "model")["code"] == "model_not_found"
    assert models(conch, piped, "/v1/pipe_sales/models").error(403)["code"] == "pipeline_scope_mismatch"


@pytest.mark.parametrize("base", ["/v1", "/api/v1"])
def test_a_workspace_key_reaches_every_pipeline_of_its_own(conch: Conch, key: str, base: str) -> None:
    assert served(conch, key, f"{base}/pipe_support", max_tokens=1) == "assistant"
    assert served(conch, key, f"{base}/pipe_sales", model="default") == "vllm"
    assert listed(conch, key, f"{base}/pipe_sales/models") == ["vllm"]
    assert chat(conch, key, f"{base}/pipe_sales", model="assistant").error(403)["code"] == "pipeline_scope_mismatch"
    for pipeline in ("pipe_other", "pipe_nowhere", "models"):
        assert chat(conch, key, f"{base}/{pipeline}").error(404, "pipeline")["code"] == "pipeline_not_found"
        if pipeline != "models":
            models(conch, key, f"{base}/{pipeline}/models").error(404, "pipeline")


def test_a_workspace_key_names_its_model(conch: Conch, key: str) -> None:
    assert served(conch, key, "/api/v1", model="gpt-4o-mini", max_tokens=1) == "assistant"
    assert chat(conch, key).error(400, "model")["code"] == "missing_required_parameter"
    assert chat(conch, key, model="default").error(404, "model")["code"] == "model_not_found"


def test_a_model_is_visible_in_its_workspaces(conch: Conch, key: str, others: str) -> None:
    assert "private" in listed(conch, others)
    assert served(conch, others, model="private") == "private"
    assert served(conch, others, "/v1/pipe_other") == "private"
    assert "private" not in listed(conch, key)
    models(conch, key, "/v1/models/private").error(404, "model")
    hidden, unknown = (chat(conch, key, model=name).error(404, "model") for name in ("private", "unknown"))
    assert hidden["message"].replace("private", "unknown") == unknown["message"], "hidden is as if it were not there"


def test_a_key_with_an_allow_list(conch: Conch) -> None:
    key = conch.key("acme", "--model", "vllm", "--model", "ensemble")
    assert listed(conch, key) == ["vllm", "ensemble"]
    assert served(conch, key, model="ensemble") == "ensemble"
    assert served(conch, key, "/v1/pipe_sales") == "vllm"
    for name in ("assistant", "gpt-4o-mini"):
        assert chat(conch, key, model=name).error(404, "model")["code"] == "model_not_found"
        models(conch, key, f"/v1/models/{name}").error(404, "model")
    chat(conch, key, "/v1/pipe_support").error(404, "model")


def test_revocation_is_immediate(conch: Conch) -> None:
    made = conch.command("keys", "create", "--workspace", "acme")
    assert models(conch, made["key"]).status == 200
    conch.command("keys", "revoke", made["id"])
    assert models(conch, made["key"]).error(401)["code"] == "invalid_api_key"
    assert chat(conch, made["key"], model="vllm").error(401)["type"] == "authentication_error"


def test_rotation_leaves_both_keys_working_on_one_budget(conch: Conch) -> None:
    old = conch.command("keys", "create", "--workspace", "acme", "--limit", "4", "--pipeline", "pipe_sales")
    new = conch.command("keys", "rotate", old["id"])
    assert SECRET.fullmatch(new["key"])
    assert new["key"] != old["key"]
    assert (new["rotated_from_id"], new["pipeline"], new["limit"]) == (old["id"], "pipe_sales", 4)
    left = [models(conch, key).headers["x-ratelimit-remaining"] for key in (old["key"], new["key"]) * 2]
    assert left == ["3", "2", "1", "0"]
    for key in (old["key"], new["key"]):
        assert models(conch, key).error(429)["code"] == "rate_limit_exceeded"


def test_rotation_ends_the_old_key_after_its_grace(conch: Conch) -> None:
    old = conch.command("keys", "create", "--workspace", "acme")
    new = conch.command("keys", "rotate", old["id"], "--grace", "0s")
    assert models(conch, old["key"]).error(401)["code"] == "expired_api_key"
    assert models(conch, new["key"]).status == 200
    assert "revoked or expired" in conch.command("keys", "rotate", old["id"], status=1)


def test_expiry_is_enforced_by_the_gateway(conch: Conch) -> None:
    made = conch.command("keys", "create", "--workspace", "acme", "--expires", "2s")
    until = made["expires_at"] / 1_000_000
    answer = models(conch, made["key"])
    assert answer.status == 200 or time.time() >= until
    while time.time() < until:
        time.sleep(0.02)
    assert models(conch, made["key"]).error(401)["code"] == "expired_api_key"


@pytest.fixture(scope="module")
def moving(conch: Conch) -> Any:
    """A key without a limit of its own in the workspace moving, on plan pro; each test leaves it there."""
    conch.workspace("moving", "pro")
    return conch.command("keys", "create", "--workspace", "moving")


def limit(conch: Conch, key: str) -> tuple[str, str]:
    """Tier and requests per minute of the next request."""
    headers = models(conch, key).headers
    return headers["x-ratelimit-tier"], headers["x-ratelimit-limit"]


def test_a_plan_acts_on_the_next_request(conch: Conch, moving: dict[str, Any]) -> None:
    key = moving["key"]
    assert limit(conch, key) == ("pro", "500")
    conch.command("workspaces", "set", "moving", "--plan", "team")
    assert limit(conch, key) == ("team", "5000")
    conch.command("workspaces", "set", "moving", "--plan", "starter")
    error = chat(conch, key, model="vllm").error(403)
    assert (error["type"], error["code"]) == ("permission_denied", "plan_required")
    for verb in (["create", "--workspace", "moving"], ["rotate", moving["id"]]):
        assert "'starter' of workspace 'moving' does not include keys" in conch.command("keys", *verb, status=1)
    conch.command("workspaces", "set", "moving", "--plan", "pro")
    assert limit(conch, key) == ("pro", "500")


def test_a_ceiling_acts_on_the_next_request(conch: Conch, moving: dict[str, Any]) -> None:
    asked = conch.key("moving", "--limit", "900")
    assert limit(conch, asked) == ("pro", "900")
    conch.command("workspaces", "set", "moving", "--ceiling", "3")
    assert [limit(conch, each) for each in (asked, moving["key"])] == [("pro", "3")] * 2
    conch.command("workspaces", "set", "moving", "--ceiling", "none")
    assert limit(conch, asked) == ("pro", "900")


def test_two_keys_have_two_budgets(conch: Conch) -> None:
    first, second = (conch.key("acme", "--limit", "1") for _ in range(2))
    assert models(conch, first).status == 200
    assert models(conch, first).status == 429
    assert models(conch, second).status == 200
