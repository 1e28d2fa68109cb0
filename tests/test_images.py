"""Images by the official SDK over the real Triton: pictures, URLs, events, and everything that can be wrong."""

import base64
import io
import json
import sqlite3
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import AsyncOpenAI, BadRequestError, InternalServerError, OpenAI
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent
from PIL import Image

from config import load
from handlers.door.errors import ApiError, Forbidden, NotFound
from handlers.door.files import KEPT, Files
from scripts.triton import Triton
from store import Store, open_store
from tests.gateway import ROOT, Conch
from tests.raw import Answer, Wire, bearer

PATH = "/v1/images/generations"
BOAT = "a red sailboat on the sea at sunset"


pytestmark = pytest.mark.usefixtures("no_crash")


def opened(data: str | bytes | None) -> Image.Image:
    """A picture from base64, or from a file."""
    assert data is not None
    return Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data))


def spelt(data: str | None) -> dict[str, Any]:
    """What a contract model received, which its picture spells."""
    received: dict[str, Any] = json.loads(opened(data).tobytes().rstrip(b"\0"))
    return received


def drawn_by_triton(triton: Triton, **tensors: Any) -> bytes:
    """The pixels that Triton itself answers, without the gateway."""
    kinds: dict[type, str] = {str: "BYTES", int: "INT32"}
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "INT64" if name == "seed" else kinds[type(value)], "data": [value]}
        for name, value in tensors.items()
    ]
    request = urllib.request.Request(
        f"{triton.url}/v2/models/diffusion/infer",
        json.dumps({"inputs": inputs}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return bytes(json.load(reply)["outputs"][0]["data"])


def test_a_picture_is_what_the_model_drew(client: OpenAI, triton: Triton) -> None:
    answer = client.images.generate(model="diffusion", prompt=BOAT, size="96x64", extra_body={"seed": 7})
    assert (answer.output_format, answer.size, answer.usage) == ("png", "96x64", None)
    assert answer.data is not None
    (one,) = answer.data
    assert one.url is None
    picture = opened(one.b64_json)
    assert (picture.format, picture.size, picture.mode) == ("PNG", (96, 64), "RGB")
    assert picture.tobytes() == drawn_by_triton(triton, prompt=BOAT, seed=7, width=96, height=64)


async def test_every_option_async(async_client: AsyncOpenAI, triton: Triton) -> None:
    answer = await async_client.images.generate(
        model="diffusion",
        prompt=BOAT,
        n=1,
        size="64x64",
        response_format="b64_json",
        output_format="png",
        output_compression=100,
        quality="auto",
        style="vivid",
        background="opaque",
        moderation="low",
        user="someone",
        extra_body={"negative_prompt": "moon", "seed": 3, "num_inference_steps": 5, "guidance_scale": 2.5},
    )
    assert answer.data is not None
    same = await async_client.images.generate(
        model="diffusion",
        prompt=BOAT,
        size="64x64",
        extra_body={"negative_prompt": "moon", "seed": 3, "num_inference_steps": 5, "guidance_scale": 2.5},
    )
    assert same.data is not None
    assert answer.data[0].b64_json == same.data[0].b64_json
    assert opened(answer.data[0].b64_json).tobytes() != drawn_by_triton(
        triton, prompt=BOAT, seed=3, width=64, height=64
    )


def test_several_pictures_are_those_of_the_seeds_that_follow(client: OpenAI) -> None:
    def draw(n: int, **seed: int) -> list[str | None]:
        answer = client.images.generate(model="diffusion", prompt=BOAT, size="64x64", n=n, extra_body=seed)
        return [each.b64_json for each in answer.data or ()]

    assert draw(3, seed=10) == [*draw(1, seed=10), *draw(1, seed=11), *draw(1, seed=12)]
    assert len(set(draw(4))) == 4


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_formats(client: OpenAI, format: Any) -> None:
    def draw(**options: Any) -> bytes:
        answer = client.images.generate(
            model="diffusion", prompt=BOAT, size="128x128", output_format=format, extra_body={"seed": 1}, **options
        )
        assert answer.output_format == format
        assert answer.data is not None
        return base64.b64decode(answer.data[0].b64_json or "")

    small, whole = draw(output_compression=0), draw()
    assert (opened(whole).format, opened(whole).size) == (format.upper(), (128, 128))
    assert len(small) < len(whole)


TWO_BOATS = {"shape": [2, 1], "data": ["ein Böötchen"] * 2}
PUBLISHED = {
    "sd": {"prompt": TWO_BOATS, "negative_prompt": {"shape": [2, 1], "data": ["fog"] * 2}},
    "sd-bls": {"prompt": TWO_BOATS},
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_presets_on_the_published_tensors(client: OpenAI, model: str) -> None:
    extra = {"negative_prompt": "fog"} if model == "sd" else {}
    answer = client.images.generate(model=model, prompt="ein Böötchen", n=2, extra_body=extra)
    assert (answer.size, len(answer.data or ())) == ("64x64", 2)
    for each in answer.data or ():
        assert spelt(each.b64_json) == {"tensors": PUBLISHED[model], "parameters": {}}


def test_more_than_a_batch_is_split(client: OpenAI) -> None:
    answer = client.images.generate(model="sd", prompt="x", n=10)
    shapes = [spelt(each.b64_json)["tensors"]["prompt"]["shape"] for each in answer.data or ()]
    assert shapes == [[4, 1]] * 8 + [[2, 1]] * 2


def test_a_stream_has_each_picture_as_an_event(client: OpenAI) -> None:
    stream = client.images.generate(
        model="diffusion", prompt=BOAT, size="64x64", n=2, stream=True, partial_images=0, extra_body={"seed": 5}
    )
    events = list(stream)
    whole = client.images.generate(model="diffusion", prompt=BOAT, size="64x64", n=2, extra_body={"seed": 5})
    assert all(isinstance(event, ImageGenCompletedEvent) for event in events)
    assert [event.b64_json for event in events] == [each.b64_json for each in whole.data or ()]
    assert {(event.size, event.output_format, event.background, event.quality) for event in events} == {
        ("64x64", "png", "auto", "auto")
    }


async def test_a_stream_async(async_client: AsyncOpenAI) -> None:
    stream = await async_client.images.generate(
        model="diffusion", prompt=BOAT, size="64x64", stream=True, output_format="webp", background="opaque"
    )
    (event,) = [event async for event in stream]
    assert (event.output_format, event.background) == ("webp", "opaque")
    assert opened(event.b64_json).format == "WEBP"


# What is behind a URL --------------------------------------------------------------------------------------------


def get(url: str, **headers: str) -> Answer:
    """The answer to a GET of a whole URL, without a key."""
    parts = urlsplit(url)
    with Wire(f"{parts.scheme}://{parts.netloc}") as wire:
        wire.request("GET", f"{parts.path}?{parts.query}", **headers)
        return wire.answer()


def test_a_url_shows_its_picture_without_a_key(client: OpenAI, conch: Conch) -> None:
    draw: Callable[..., Any] = client.images.generate
    options = {"model": "diffusion", "prompt": BOAT, "size": "64x64", "extra_body": {"seed": 5}}
    inline = draw(**options, output_format="webp").data[0].b64_json
    answer = draw(**options, output_format="webp", response_format="url", n=2)
    one, other = answer.data
    assert one.b64_json is None
    assert one.url != other.url
    assert one.url.startswith(f"{conch.url}/v1/images/files/file-")
    shown = get(one.url)
    assert (shown.status, shown.headers["content-type"]) == (200, "image/webp")
    assert shown.headers["cache-control"].startswith("private, max-age=3")
    assert shown.headers["x-content-type-options"] == "nosniff"
    assert "x-ratelimit-limit" not in shown.headers
    assert shown.body == base64.b64decode(inline)
    swapped = one.url.replace(urlsplit(one.url).path, urlsplit(other.url).path)
    for wrong in (
        one.url[:-1] + ("0" if one.url[-1] != "0" else "1"),
        one.url.replace("expires=", "expires=1"),
        swapped,
        one.url.split("?")[0],
        one.url.replace("signature=", "signature=%00%ff"),
        f"{conch.url}/v1/images/files/nothing?expires=1&signature=%C3%BC",
    ):
        assert get(wrong).error(403)["code"] == "invalid_signature"


def test_a_url_begins_as_the_client_reached_us(conch: Conch, key: str) -> None:
    body = json.dumps({"model": "sd", "prompt": "x", "response_format": "url"}).encode()
    with Wire(conch.url) as wire:
        wire.host = "api.example.com:8443"
        wire.request("POST", PATH, body, content_type="application/json", **bearer(key))
        assert wire.answer().json["data"][0]["url"].startswith("http://api.example.com:8443/v1/images/files/")


@pytest.fixture
async def store(tmp_path: Path) -> Any:
    """A store of its own."""
    own = open_store(f"sqlite:{tmp_path}/conch.db", lambda authority, now: None)
    await own.migrate()
    yield own
    await own.close()


def parts(token: str) -> tuple[str, bytes]:
    """The id and the query of a URL's end."""
    id, _, query = token.partition("?")
    return id, query.encode()


async def test_a_file_is_kept_for_an_hour_and_then_makes_room(store: Store, tmp_path: Path) -> None:
    now = 1_000_000_000 * 1_000_000
    files = Files(store, 250, lambda: now)
    one, other = await files.keep([b"a" * 100, b"b" * 100], "image/png")
    assert (await files.find(*parts(one))).content == b"a" * 100
    with pytest.raises(ApiError) as refusal:
        await files.keep([b"c" * 50, b"d"], "image/png")
    assert (refusal.value.status, refusal.value.code) == (503, "storage_full")
    (kept,) = await files.keep([b"c" * 50], "image/jpeg")  # the one before left nothing behind
    assert (await files.find(*parts(kept))).media_type == "image/jpeg"
    now += KEPT * 1_000_000 - 1
    assert (await files.find(*parts(other))).content == b"b" * 100
    now += 1
    with pytest.raises(NotFound) as gone:
        await files.find(*parts(other))
    assert gone.value.code == "file_expired"
    await files.keep([b"e" * 250], "image/png")
    with sqlite3.connect(tmp_path / "conch.db") as connection:
        assert connection.execute("SELECT size FROM files").fetchall() == [(250,)]


async def test_every_process_honours_what_another_signed(store: Store) -> None:
    files = Files(store, 1000, lambda: 0)
    (token,) = await files.keep([b"x"], "image/png")
    id, query = parts(token)
    another = Files(store, 1000, lambda: 0)
    assert (await another.find(id, query)).content == b"x"
    with pytest.raises(Forbidden):
        await another.find(id, query[:-1])


# What can be wrong -----------------------------------------------------------------------------------------------

LISTED = "64x64..2048x2048"
WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("no prompt", {"prompt": None}, "prompt", "expected `str`"),
    ("an empty prompt", {"prompt": ""}, "prompt", "length >= 1"),
    ("a prompt of 1 MB", {"prompt": "x" * 1_000_000}, "prompt", "length <= 32000"),
    ("a list for a prompt", {"prompt": ["x"]}, "prompt", "expected `str`"),
    ("size 0x0", {"size": "0x0"}, "size", "WIDTHxHEIGHT"),
    ("size 1e9x1", {"size": "1e9x1"}, "size", "WIDTHxHEIGHT"),
    ("a size of words", {"size": "large"}, "size", "WIDTHxHEIGHT"),
    ("a negative size", {"size": "-64x64"}, "size", "WIDTHxHEIGHT"),
    ("a size in other digits", {"size": "٦٤x٦٤"}, "size", "WIDTHxHEIGHT"),
    ("a size that is not drawn", {"size": "32x64"}, "size", f"it draws: {LISTED}"),
    ("a huge size", {"size": "99999x99999"}, "size", f"it draws: {LISTED}"),
    ("no pictures", {"n": 0}, "n", ">= 1"),
    ("too many pictures", {"n": 5}, "n", "at most 4"),
    ("half a picture", {"n": 1.5}, "n", "expected `int |"),
    ("another response format", {"response_format": "file"}, "response_format", "invalid enum"),
    ("another output format", {"output_format": "gif"}, "output_format", "invalid enum"),
    ("a compressed png", {"output_compression": 50}, "output_compression", "jpeg and webp"),
    ("too much compression", {"output_format": "jpeg", "output_compression": 101}, "output_compression", "<= 100"),
    ("quality", {"quality": "hd"}, "quality", "does not support"),
    ("another quality", {"quality": "best"}, "quality", "invalid enum"),
    ("style", {"style": "natural"}, "style", "does not support"),
    ("a transparent background", {"background": "transparent"}, "background", "does not support"),
    ("steps 0", {"num_inference_steps": 0}, "num_inference_steps", ">= 1"),
    ("too many steps", {"num_inference_steps": 201}, "num_inference_steps", "at most 200"),
    ("negative guidance", {"guidance_scale": -1}, "guidance_scale", ">= 0"),
    ("too much guidance", {"guidance_scale": 30.5}, "guidance_scale", "at most 30"),
    ("a negative seed", {"seed": -1}, "seed", ">= 0"),
    ("a seed of 65 bits", {"seed": 2**64}, "seed", "<= 9223372036854775807"),
    ("a seed whose follower has 65 bits", {"seed": 2**63 - 1, "n": 2}, "seed", "9223372036854775807"),
    ("partial images", {"stream": True, "partial_images": 2}, "partial_images", "does not support"),
    ("too many partial images", {"stream": True, "partial_images": 4}, "partial_images", "<= 3"),
    ("a stream of URLs", {"stream": True, "response_format": "url"}, "response_format", "base64"),
    ("an unknown field", {"sampler": "euler"}, "sampler", "Unknown parameter"),
    ("another unknown field", {"frame_count": 3}, "frame_count", "Unknown parameter"),
    ("a chat model", {"model": "vllm"}, "model", "for chat, not for image"),
]


def post(conch: Conch, key: str, **fields: Any) -> Answer:
    """The answer to a request for a picture, as it came."""
    body = {"model": "diffusion", "prompt": BOAT, **fields}
    with Wire(conch.url) as wire:
        wire.request("POST", PATH, json.dumps(body).encode(), content_type="application/json", **bearer(key))
        return wire.answer()


@pytest.mark.parametrize(("fields", "param", "says"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_bad_input_is_a_400_that_says_why(
    conch: Conch, key: str, fields: dict[str, Any], param: str, says: str
) -> None:
    error = post(conch, key, **fields).error(400, param)
    assert says in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("negative_prompt", "fog"), ("seed", 1), ("num_inference_steps", 5), ("guidance_scale", 2), ("size", "64x64")],
)
def test_what_a_profile_does_not_carry_is_refused(conch: Conch, key: str, field: str, value: Any) -> None:
    error = post(conch, key, model="sd-bls", **{field: value}).error(400, field)
    assert error["code"] == "unsupported_parameter"


def test_what_asks_for_the_default_is_not(conch: Conch, key: str) -> None:
    defaults = {"negative_prompt": "", "size": "auto", "quality": "standard", "background": "auto", "stream": False}
    assert post(conch, key, model="sd-bls", n=1, partial_images=None, **defaults).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_of_the_model_is_a_502(conch: Conch, key: str, stream: bool) -> None:
    error = post(conch, key, model="sd", prompt="fail: secret at 10.0.0.7", n=6, stream=stream).error(502)
    assert error["code"] == "upstream_error"
    assert "secret" not in error["message"]


# A model of one's own ----------------------------------------------------------------------------------------------

OWN = """
[server]
port = 0
public_url = "https://pictures.example.com/"

[store]
url = "sqlite:{store}"
max_files = "1KiB"

[upstreams.local]
urls = ["{triton}"]
grpc = ["{grpc}"]

[[models]]
id = "stepwise"
task = "image"
upstream = "local"
model = "sd_partial"
in = {{ prompt = "prompt", seed = "seed", partial_images = "partial_images" }}
out.image = {{ tensor = "image", layout = "NCHW", range = 1 }}

[[models]]
id = "styled"
task = "image"
upstream = "local"
model = "sd"
preset = "sd"
image.sizes = ["64x64"]
in.negative_prompt = {{ from = "quality", map = {{ low = "fast", high = "slow" }} }}
in.prompt = {{ template = "{{prompt}}, {{style}}, {{extra.artist}}" }}

[[models]]
id = "wrong-size"
task = "image"
upstream = "local"
model = "sd"
preset = "sd"
image.sizes = ["128x64"]

[[models]]
id = "needy"
task = "image"
upstream = "local"
model = "sd"
preset = "sd"
image.sizes = ["128x64", "64x64"]
"""


@pytest.fixture(scope="module")
def own(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Conch, str]]:
    """A gateway whose operator wrote profiles of his own, and a key."""
    gateway = Conch(tmp_path_factory.mktemp("own"), triton.url, OWN, triton.grpc_url)
    gateway.workspace("acme")
    with gateway.running():
        key = gateway.key("acme")
        yield gateway, key
        quiet_log = "".join(gateway.log)
        assert "a bug" not in quiet_log, quiet_log
        assert "never" not in quiet_log, quiet_log


@pytest.fixture(scope="module")
def bent(own: tuple[Conch, str]) -> Iterator[OpenAI]:
    """The official SDK on that gateway."""
    base = f"{own[0].url}/v1"
    with OpenAI(base_url=base, api_key=own[1], max_retries=0, _strict_response_validation=True) as sdk:
        yield sdk


def red(data: str | None) -> int:
    """How much red a picture has."""
    pixel = opened(data).getpixel((3, 3))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def test_a_decoupled_model_shows_its_picture_on_the_way(bent: OpenAI) -> None:
    events = list(
        bent.images.generate(
            model="stepwise", prompt="x", size="16x8", stream=True, partial_images=3, extra_body={"seed": 5}
        )
    )
    completed = events.pop()
    assert isinstance(completed, ImageGenCompletedEvent)
    partial = [event for event in events if isinstance(event, ImageGenPartialImageEvent)]
    shown = [(each.partial_image_index, red(each.b64_json)) for each in partial]
    assert shown == [(0, 64), (1, 128), (2, 191)]
    assert red(completed.b64_json) == 255
    assert opened(completed.b64_json).getpixel((0, 0)) == (255, 5, 0)


def test_a_decoupled_model_draws_several_and_whole(bent: OpenAI) -> None:
    answer = bent.images.generate(model="stepwise", prompt="x", n=3, extra_body={"seed": 5})
    assert answer.size == "16x8"
    assert [opened(each.b64_json).getpixel((0, 0)) for each in answer.data or ()] == [(255, s, 0) for s in (5, 6, 7)]


def test_a_decoupled_model_that_fails(own: tuple[Conch, str]) -> None:
    for stream in (False, True):
        assert post(*own, model="stepwise", prompt="none", stream=stream).error(502)["code"] == "upstream_error"
    answer = post(*own, model="stepwise", prompt="fail:x", stream=True, partial_images=2)
    assert answer.status == 200
    first, failure, empty = answer.body.split(b"\n\n")
    assert first.startswith(b"event: image_generation.partial_image\ndata: {")
    assert json.loads(failure.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
    assert empty == b"", "no [DONE]: it must not look like a finished answer"


def test_fields_that_a_profile_translates(bent: OpenAI) -> None:
    answer = bent.images.generate(
        model="styled", prompt="a cat", quality="high", style="natural", size="64x64", extra_body={"artist": "Dürer"}
    )
    assert answer.data is not None
    tensors = spelt(answer.data[0].b64_json)["tensors"]
    assert tensors["prompt"]["data"] == ["a cat, natural, Dürer"]
    assert tensors["negative_prompt"]["data"] == ["slow"]
    with pytest.raises(BadRequestError, match="one of: low, high") as refusal:
        bent.images.generate(model="styled", prompt="a cat", quality="medium")
    assert refusal.value.param == "quality"


def test_a_picture_of_another_size_than_asked_for_is_not_passed_on(own: tuple[Conch, str]) -> None:
    assert post(*own, model="wrong-size", prompt="x").status == 200
    post(*own, model="wrong-size", prompt="x", size="128x64").error(502)


def test_what_does_not_fit_is_not_served(own: tuple[Conch, str], bent: OpenAI) -> None:
    assert {model.id for model in bent.models.list()} == {"stepwise", "styled", "wrong-size"}
    with pytest.raises(InternalServerError):
        bent.images.generate(model="needy", prompt="x")
    assert "model needy is not verified: [models.image] sizes lists several" in "".join(own[0].log)


def test_urls_behind_a_proxy_and_a_full_store(own: tuple[Conch, str]) -> None:
    def ask(n: int = 1) -> Answer:
        return post(*own, model="stepwise", prompt="x", response_format="url", n=n)

    url = ask().json["data"][0]["url"]
    assert url.startswith("https://pictures.example.com/v1/images/files/")
    behind = url.replace("https://pictures.example.com", own[0].url)
    assert opened(get(behind).body).size == (16, 8)
    while (answer := ask(4)).status == 200:
        pass
    assert answer.error(503)["code"] == "storage_full"
    assert answer.headers["x-should-retry"] == "false"
    assert get(behind).status == 200


def test_conch_toml_serves_the_diffusion_model() -> None:
    (model,) = [model for model in load(ROOT / "config" / "conch.toml", variables={}).models if model.id == "diffusion"]
    assert (model.task, model.model, model.image.sizes) == ("image", "diffusion", [LISTED])
