"""Image bindings as tables, without a server: profile × live contract × Draw → tensors; output tensors → files."""

import base64
import io
import json
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from config import Model
from upstream.contract import NotBound, read_contract
from upstream.drawing import DrawBinding, SizeRule, requests
from upstream.errors import BadReply, Unsupported
from upstream.inference import Draw
from upstream.tensors import Array, pack

Table = dict[str, Any]
IN: Table = {"prompt": "prompt"}
OUT: Table = {"image": "generated_image"}


def tensor(name: str, kind: str, dims: tuple[int, ...] = (1,), optional: bool = True) -> Table:
    """An entry of a /config document, as Triton writes it."""
    return {"name": name, "data_type": f"TYPE_{kind}", "dims": dims, "optional": optional}


LIVE = (
    tensor("prompt", "STRING", optional=False),
    tensor("negative_prompt", "STRING"),
    tensor("seed", "INT32"),
    tensor("steps", "INT32"),
    tensor("guidance_scale", "FP32"),
    tensor("height", "INT32"),
    tensor("width", "INT32"),
    tensor("img_size", "INT64"),
    tensor("resolution", "STRING"),
    tensor("num_images", "INT32"),
    tensor("options", "STRING"),
)


def bind(
    inputs: Table | None = None,
    outputs: Table = OUT,
    kind: str = "UINT8",
    dims: tuple[int, ...] = (-1, -1, -1),
    *,
    batch: int = 4,
    decoupled: bool = False,
    **image: Any,
) -> DrawBinding:
    """A binding of the profile that conch.toml would hold, to the configuration that Triton would report."""
    model = {"id": "m", "task": "image", "upstream": "u", "model": "m", "in": IN | (inputs or {}), "out": outputs}
    live = {
        "name": "m",
        "max_batch_size": batch,
        "input": LIVE,
        "output": [tensor("generated_image", kind, dims)],
        "model_transaction_policy": {"decoupled": decoupled},
    }
    return DrawBinding(msgspec.convert(model | {"image": image}, Model), read_contract(json.dumps(live).encode()))


def sent(binding: DrawBinding, job: Draw, n: int = 1) -> list[tuple[int, Table, Table]]:
    """Of each request the number of pictures, the tensors as (shape, values) and the parameters."""
    return [
        (asked.number, {name: (each.shape, each.items()) for name, each in asked.arrays.items()}, asked.parameters)
        for asked in requests(binding, job, n)
    ]


def test_the_tensors_of_a_request() -> None:
    binding = bind(
        {
            "negative_prompt": "negative_prompt",
            "seed": "seed",
            "steps": {"from": "steps", "default": 20},
            "guidance_scale": "guidance",
            "height": "size.height",
            "width": "size.width",
        },
        sizes=["64x64..1024x1024/8"],
    )
    assert sent(binding, Draw("a boat")) == [(1, {"prompt": ((1, 1), [b"a boat"]), "steps": ((1, 1), [20])}, {})]
    full = Draw("a boat", negative_prompt="fog", width=64, height=128, steps=7, guidance=2.5, seed=9)
    assert sent(binding, full) == [
        (
            1,
            {
                "prompt": ((1, 1), [b"a boat"]),
                "negative_prompt": ((1, 1), [b"fog"]),
                "seed": ((1, 1), [9]),
                "steps": ((1, 1), [7]),
                "guidance_scale": ((1, 1), [2.5]),
                "height": ((1, 1), [128]),
                "width": ((1, 1), [64]),
            },
            {},
        )
    ]


def test_pictures_come_in_batches_with_seeds_that_follow_the_one_given() -> None:
    asked = sent(bind({"seed": "seed"}), Draw("x", seed=40), 6)
    assert asked == [
        (4, {"prompt": ((4, 1), [b"x"] * 4), "seed": ((4, 1), [40, 41, 42, 43])}, {}),
        (2, {"prompt": ((2, 1), [b"x"] * 2), "seed": ((2, 1), [44, 45])}, {}),
    ]


@pytest.mark.parametrize("shape", [{"batch": 0}, {"batch": 1}, {"decoupled": True}])
def test_what_takes_one_at_a_time_is_asked_for_each(shape: Table) -> None:
    asked = sent(bind({"seed": "seed"}, **shape), Draw("x", seed=1), 3)
    dims = (1,) if shape == {"batch": 0} else (1, 1)
    assert asked == [(1, {"prompt": (dims, [b"x"]), "seed": (dims, [seed])}, {}) for seed in (1, 2, 3)]


def test_seeds_differ_also_where_none_was_given() -> None:
    ((_, tensors, _),) = sent(bind({"seed": "seed"}), Draw("x"), 4)
    assert len(set(tensors["seed"][1])) == 4
    ((_, again, _),) = sent(bind({"seed": "seed"}), Draw("x"), 4)
    assert again != tensors
    ((_, tensors, _),) = sent(bind({"seed": {"from": "seed", "default": 5}}), Draw("x"), 3)
    assert tensors["seed"][1] == [5, 6, 7]
    assert "seed" not in sent(bind({"seed": "seed"}), Draw("x"))[0][1]


def test_a_seed_within_json_or_a_parameter_differs_too() -> None:
    ((_, tensors, _),) = sent(bind({"options": {"json": {"s": "seed"}}}), Draw("x", seed=3), 2)
    assert tensors["options"] == ((2, 1), [b'{"s":3}', b'{"s":4}'])
    asked = sent(bind({"seed": False, "s": {"from": "seed", "param": True}}), Draw("x", seed=3), 2)
    assert [(number, parameters) for number, _, parameters in asked] == [(1, {"s": 3}), (1, {"s": 4})]


def test_a_model_that_counts_for_itself_is_asked_once() -> None:
    asked = sent(bind({"num_images": "n", "seed": "seed"}, batch=0), Draw("x", seed=3), 3)
    assert asked == [(3, {"prompt": ((1,), [b"x"]), "num_images": ((1,), [3]), "seed": ((1,), [3])}, {})]


def test_a_seed_that_grows_out_of_its_tensor_is_refused() -> None:
    with pytest.raises(Unsupported, match="2147483647") as refusal:
        requests(bind({"seed": "seed"}), Draw("x", seed=2**31 - 1), 2)
    assert refusal.value.source == "seed"


SIZES: list[tuple[str, list[tuple[int, int]], list[tuple[int, int]]]] = [
    ("512x768", [(512, 768)], [(768, 512), (512, 767), (512, 512)]),
    ("64x32..1024x512", [(64, 32), (1024, 512), (65, 33)], [(63, 32), (64, 31), (1025, 512), (1024, 513)]),
    ("256x256..1024x1024/8", [(256, 1024), (264, 512)], [(260, 256), (1032, 512), (248, 512)]),
]


@pytest.mark.parametrize(("rule", "drawn", "others"), SIZES, ids=[row[0] for row in SIZES])
def test_size_rules(rule: str, drawn: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    assert all(SizeRule.read(rule).allows(*size) for size in drawn)
    assert not any(SizeRule.read(rule).allows(*size) for size in others)


@pytest.mark.parametrize(
    "rule", ["", "any", "0x0", "512", "512x", "512x512/8", "512x512..256x256", "8x8..16x16/0", "-8x8", "1e9x1", "٣x٣"]
)
def test_a_rule_that_says_nothing(rule: str) -> None:
    with pytest.raises(NotBound, match="is neither like"):
        SizeRule.read(rule)


def test_which_sizes_a_binding_draws() -> None:
    both: Table = {"width": "size.width", "height": "size.height"}
    assert bind(both, sizes=["64x64", "128x64"]).allows(128, 64)
    assert not bind(both, sizes=["64x64", "128x64"]).allows(64, 128)
    square = bind({"img_size": "size.width"}, sizes=["64x64..512x512"])
    assert square.allows(100, 100)
    assert not square.allows(100, 200)
    assert bind({"resolution": "size"}, sizes=["64x128", "8x8"]).allows(64, 128)
    assert bind(sizes=["512x512"]).allows(512, 512)
    assert not bind().sizes
    assert list(bind(dims=(512, 768, 3)).sizes) == ["768x512"]
    assert list(bind(outputs={"image": {"tensor": "generated_image", "layout": "NCHW"}}, dims=(3, 512, 768)).sizes) == [
        "768x512"
    ]


UNBOUND: list[tuple[str, Table, str]] = [
    ("no image", {"outputs": {"text": "x"}}, "no tensor for the image"),
    ("another image", {"outputs": {"image": "picture"}}, "no output 'picture'; it has: generated_image"),
    ("text, unsaid", {"kind": "STRING", "dims": (1,)}, "is BYTES: its encoding cannot be 'raw', but: png, base64"),
    ("integers", {"kind": "INT64"}, "cannot be 'raw', but: none"),
    (
        "base64 of pixels",
        {"outputs": {"image": {"tensor": "generated_image", "encoding": "base64"}}},
        "cannot be 'base64', but: raw, png",
    ),
    ("a size that nobody listed", {"inputs": {"width": "size.width"}}, "say which ones"),
    ("several that nothing carries", {"sizes": ["8x8", "9x9"]}, "no tensor carries the size"),
    ("a range that nothing carries", {"sizes": ["8x8..9x9"]}, "no tensor carries the size"),
    ("a rule that says nothing", {"sizes": ["big"]}, "'big' is neither like"),
    ("no prompt", {"inputs": {"prompt": {"const": "a boat"}}}, "puts the prompt nowhere"),
    ("parts of a whole", {"inputs": {"seed": "partial_images"}}, "not decoupled"),
]


@pytest.mark.parametrize(("profile", "says"), [row[1:] for row in UNBOUND], ids=[row[0] for row in UNBOUND])
def test_a_profile_that_does_not_fit_is_not_bound(profile: Table, says: str) -> None:
    with pytest.raises(NotBound, match=says):
        bind(**profile)


# Two pictures, 3 wide and 2 high, NHWC.
PIXELS = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3) * 7
NCHW = PIXELS.transpose(0, 3, 1, 2)


def file(pixels: np.ndarray[Any, Any], format: str = "PNG") -> bytes:
    """The picture as a file that a model might make."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format)
    return out.getvalue()


def raw(kind: str, values: np.ndarray[Any, Any], dtype: str) -> Array:
    return Array(kind, values.shape, memoryview(np.ascontiguousarray(values).astype(dtype).tobytes()))


def whole(**entry: Any) -> Table:
    return {"image": {"tensor": "generated_image", **entry}}


FILES = [file(PIXELS[0]), file(PIXELS[1])]
PADDED = np.zeros((2, max(map(len, FILES)) + 5), np.uint8)
for _row, _file in zip(PADDED, FILES, strict=True):
    _row[: len(_file)] = list(_file)

READ: list[tuple[str, Table, str, Array]] = [
    ("UINT8 NHWC", OUT, "UINT8", raw("UINT8", PIXELS, "u1")),
    ("UINT8 NCHW", whole(layout="NCHW"), "UINT8", raw("UINT8", NCHW, "u1")),
    ("FP32 to 255", OUT, "FP32", raw("FP32", PIXELS, "<f4")),
    ("FP32 to 1, NCHW", whole(layout="NCHW", range=1), "FP32", raw("FP32", NCHW / 255, "<f4")),
    ("FP16 to 1", whole(range=1), "FP16", raw("FP16", PIXELS / 255, "<f2")),
    ("n within a row", OUT, "UINT8", raw("UINT8", PIXELS[None], "u1")),
    ("a layout without N", whole(layout="CHW"), "UINT8", raw("UINT8", NCHW, "u1")),
    ("files", whole(encoding="png"), "STRING", pack("BYTES", (2, 1), FILES)),
    ("files as bytes", whole(encoding="png"), "UINT8", raw("UINT8", PADDED, "u1")),
    ("base64", whole(encoding="base64"), "STRING", pack("BYTES", (2, 1), map(base64.b64encode, FILES))),
    (
        "data: URLs",
        whole(encoding="base64"),
        "STRING",
        pack("BYTES", (2,), (b"data:image/png;base64," + base64.encodebytes(each) for each in FILES)),
    ),
]


@pytest.mark.parametrize(("outputs", "kind", "array"), [row[1:] for row in READ], ids=[row[0] for row in READ])
def test_tensors_to_files(outputs: Table, kind: str, array: Array) -> None:
    drawn = bind(outputs=outputs, kind=kind, dims=(-1,) * max(len(array.shape) - 1, 1)).files(array, "png", None)
    assert [(each.width, each.height) for each in drawn] == [(3, 2), (3, 2)]
    for each, pixels in zip(drawn, PIXELS, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(each.data))), pixels)


def test_one_picture_without_a_batch_dimension() -> None:
    (drawn,) = bind(batch=0).files(raw("UINT8", PIXELS[0], "u1"), "png", None)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(drawn.data))), PIXELS[0])


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_other_formats_and_their_quality(format: Any) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (1, 64, 64, 3), np.uint8)
    for binding, array in (
        (bind(), raw("UINT8", noise, "u1")),
        (bind(outputs=whole(encoding="png"), kind="STRING"), pack("BYTES", (1, 1), [file(noise[0])])),
    ):
        sizes = []
        for quality in (10, 95):
            (drawn,) = binding.files(array, format, quality)
            picture = Image.open(io.BytesIO(drawn.data))
            assert (picture.format, picture.size) == (format.upper(), (64, 64))
            sizes.append(len(drawn.data))
        assert sizes[0] < sizes[1] / 2


HALF = file(np.tile(PIXELS[0], (40, 40, 1)))[:200]
BROKEN: list[tuple[str, Table, str, Array, str]] = [
    ("another dtype", OUT, "UINT8", raw("FP32", PIXELS, "<f4"), "came as FP32"),
    ("too few dimensions", OUT, "UINT8", Array("UINT8", (4, 4), bytes(16)), "not NHWC"),
    ("two channels", OUT, "UINT8", Array("UINT8", (1, 4, 4, 2), bytes(32)), "2 channels"),
    ("nothing", OUT, "UINT8", Array("UINT8", (1, 0, 4, 3), b""), "shape"),
    ("cut short", OUT, "UINT8", Array("UINT8", (1, 4, 4, 3), bytes(40)), "not as large"),
    ("no file", whole(encoding="png"), "STRING", pack("BYTES", (1,), ["hello"]), "not a PNG"),
    ("half a file", whole(encoding="png"), "STRING", pack("BYTES", (1,), [HALF]), "cut"),
    ("no base64", whole(encoding="base64"), "STRING", pack("BYTES", (1,), ["*"]), "base64"),
    ("a bomb", OUT, "UINT8", Array("UINT8", (1, 60_000, 60_000, 3), b""), "too large"),
]


@pytest.mark.parametrize(
    ("outputs", "kind", "array", "says"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)
def test_what_is_no_picture_is_the_models_fault(outputs: Table, kind: str, array: Array, says: str) -> None:
    with pytest.raises(BadReply, match=says):
        bind(outputs=outputs, kind=kind).files(array, "jpeg", None)
