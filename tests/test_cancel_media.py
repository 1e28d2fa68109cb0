"""Pictures, speech, recordings and vectors whose client leaves: what Triton sees of it over gRPC and over HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.triton import Triton
from tests.gateway import CONFIG, Conch
from tests.observed import Model
from tests.raw import Wire, await_true, bearer
from tests.test_transcriptions import FEW, FORM, form

WAIT = "wait: 1500"
MODELS = {"sd": "sd", "f5": "f5_tts", "whisper": "whisper", "embed-text": "embed_text"}
CANCELLED, FINISHED = "cancelled", "finished"


@pytest.fixture(scope="module")
def ways(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Conch, str]]]:
    """Gateways that differ in what they say of each of the models, with a key."""
    texts = dict.fromkeys(("default", "none", "grpc"), CONFIG)
    for way in ("none", "grpc"):
        for model in MODELS.values():
            texts[way] = texts[way].replace(f'\nmodel = "{model}"\n', f'\nmodel = "{model}"\ncancel = "{way}"\n')
    found: dict[str, tuple[Conch, str]] = {}
    for way, text in texts.items():
        conch = Conch(tmp_path_factory.mktemp(way), triton.url, text, grpc=triton.grpc_url)
        conch.workspace("acme")
        conch.workspace("other")
        found[way] = conch, conch.key("acme")
    with found["default"][0].running(), found["none"][0].running(), found["grpc"][0].running():
        yield found


def ask(wire: Wire, id: str, key: str, said: str = WAIT, **headers: str) -> None:
    """A request to the model of this id that waits, if it is told to."""
    if id == "whisper":
        body = form([("model", id), ("prompt", said), ("file", FEW)])
        wire.request("POST", "/v1/audio/transcriptions", body, content_type=FORM, **headers, **bearer(key))
        return
    path, fields = {
        "sd": ("/v1/images/generations", {"prompt": said}),
        "f5": ("/v1/audio/speech", {"input": said, "voice": "stored", "response_format": "pcm"}),
        "embed-text": ("/v1/embeddings", {"input": said}),
    }[id]
    wire.request("POST", path, json.dumps({"model": id, **fields}).encode(), **headers, **bearer(key))


@pytest.mark.parametrize("way", ["default", "none", "grpc"])
@pytest.mark.parametrize("id", MODELS)
def test_its_client_leaves(ways: dict[str, tuple[Conch, str]], triton: Triton, id: str, way: str) -> None:
    conch, key = ways[way]
    with Wire(conch.url) as wire:
        ask(wire, id, key, "well")
        assert wire.answer().status == 200
    model = Model(triton, MODELS[id])
    with Wire(conch.url) as wire:
        ask(wire, id, key)
        await_true(lambda: model.since("started") == 1)
    await_true(lambda: model.since(CANCELLED) + model.since(FINISHED) == 1)
    stopped = way == "grpc" or (way == "default" and id != "embed-text")
    assert model.since(CANCELLED if stopped else FINISHED) == 1


@pytest.mark.parametrize("id", MODELS)
def test_its_time_is_over(ways: dict[str, tuple[Conch, str]], triton: Triton, id: str) -> None:
    """The same by X-Request-Timeout."""
    conch, key = ways["grpc"]
    model = Model(triton, MODELS[id])
    with Wire(conch.url) as wire:
        ask(wire, id, key, x_request_timeout="0.5")
        wire.answer().error(504)
    await_true(lambda: model.since(CANCELLED) == model.since("started"))
    assert model.since(FINISHED) == 0


def test_where_grpc_cannot_be_reached_http_serves(triton: Triton, tmp_path: Path) -> None:
    """Unless the configuration insists on it."""
    text = CONFIG.replace('\nmodel = "f5_tts"\n', '\nmodel = "f5_tts"\ncancel = "grpc"\n')
    conch = Conch(tmp_path, triton.url, text, grpc="127.0.0.1:9")
    conch.workspace("acme")
    conch.workspace("other")
    key = conch.key("acme")
    with conch.running(), Wire(conch.url) as wire:
        ask(wire, "sd", key, "well")
        assert wire.answer().status == 200
        ask(wire, "f5", key, "well")
        wire.answer().error(503)


def test_a_stream_over_http_is_no_way_to_stop_a_picture(triton: Triton, tmp_path: Path) -> None:
    conch = Conch(tmp_path, triton.url, CONFIG.replace('\nmodel = "sd"\n', '\nmodel = "sd"\ncancel = "stream"\n'))
    assert 'cancel = "stream" is for chat' in conch.command("workspaces", "create", "acme", "--plan", "pro", status=1)
