"""docs/errors.md: every error of the code has its row, every row is true of it, and of requests that are wrong."""

import json
import re
from typing import Any

import pytest

from handlers.ops.openapi import words
from tests.gateway import ROOT, Conch
from tests.raw import Wire, bearer
from tests.refusals import Refusal, refusals

ROWS = [
    (Refusal(int(cells[0]), cells[1].strip("`"), code.strip("`") if code != "null" else None), cells[5])
    for line in (ROOT / "docs" / "errors.md").read_text().splitlines()
    if re.match(r"\| \d{3} \|", line)
    for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    for code in cells[2].split(", ")
]
HEAD_ONLY = {405, 414, 431, 501}  # which the OpenAPI document tells once, for all operations
HELLO: dict[str, Any] = {"model": "assistant", "messages": [{"role": "user", "content": "Hello"}]}


def test_every_error_has_a_row_and_every_row_an_error() -> None:
    told, made = [row for row, _ in ROWS], {each for each, _ in refusals()}
    assert len(told) == len(set(told)), "no row twice"
    assert made - set(told) == set(), "docs/errors.md does not tell of these"
    assert set(told) - made == set(), "nothing in the code answers with these"
    assert len(made) > 50


def test_again_is_what_the_headers_say() -> None:
    after: dict[Refusal, set[bool]] = {}
    for refusal, later in refusals():
        after.setdefault(refusal, set()).add(later)
    for row, again in ROWS:
        assert after[row] == {again == "later"}, row
        if again == "maybe":
            assert row.status in (408, 500, 502, 504), "the SDKs try those again"


def test_every_status_is_in_the_openapi_document() -> None:
    assert {row.status for row, _ in ROWS} - HEAD_ONLY == set(words.STATUSES)
    assert all(str(status) in words.ABOUT for status in HEAD_ONLY)


def chat(**fields: Any) -> bytes:
    return json.dumps({key: value for key, value in (HELLO | fields).items() if value is not None}).encode()


WRONG: list[tuple[str, str, bytes | None, dict[str, str]]] = [
    ("invalid_json", "/v1/chat/completions", b"{", {}),
    ("missing_required_parameter", "/v1/chat/completions", chat(messages=None), {}),
    ("unknown_parameter", "/v1/chat/completions", chat(temprature=1), {}),
    ("invalid_value", "/v1/chat/completions", chat(temperature="hot"), {}),
    ("unsupported_parameter", "/v1/chat/completions", chat(logit_bias={"1": 1}), {}),
    ("model_not_supported", "/v1/chat/completions", chat(model="minilm"), {}),
    ("model_not_found", "/v1/chat/completions", chat(model="gpt-9"), {}),
    ("pipeline_not_found", "/v1/pipe_nowhere/chat/completions", chat(), {}),
    ("invalid_image", "/v1/chat/completions", chat(messages=[{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]), {}),
    ("unsupported_media_type", "/v1/chat/completions", chat(), {"content-type": "text/plain"}),
    ("unknown_route", "/v1/files", None, {}),
    ("method_not_allowed", "/v1/chat/completions", None, {}),
    ("response_not_found", "/v1/responses/resp_1", None, {}),
    ("previous_response_not_found", "/v1/responses",
     json.dumps({"model": "assistant", "input": "a", "previous_response_id": "resp_1"}).encode(), {}),
    ("invalid_api_key", "/v1/models", None, {"authorization": "Bearer none"}),
    ("invalid_signature", "/v1/images/files/file-1?expires=1&signature=2", None, {}),
    ("url_too_long", f"/v1/models?{'a' * 9000}", None, {}),
    ("headers_too_large", "/v1/models", None, {"x-large": "a" * 70_000}),
    ("model_unavailable", "/v1/chat/completions", chat(model="absent"), {}),
    ("metrics_closed", "/metrics", None, {}),
]  # fmt: skip


@pytest.mark.parametrize(("code", "path", "body", "headers"), WRONG, ids=[each[0] for each in WRONG])
def test_what_is_wrong_is_answered_as_its_row_says(
    conch: Conch, key: str, code: str, path: str, body: bytes | None, headers: dict[str, str]
) -> None:
    expected = {row for row, _ in ROWS if row.code == code}
    with Wire(conch.url) as wire:
        sent = {"content-type": "application/json", **bearer(key), **headers}
        wire.request("POST" if body else "GET", path, body or b"", **sent)
        answer = wire.answer()
    error = answer.json["error"]
    assert Refusal(answer.status, error["type"], error["code"]) in expected, error
