"""Pictures through the real codecs: every tensor, every format, and files that are not what they say."""

import base64
import zlib
from typing import Any, get_args

import numpy as np
import pytest

from upstream.media import MediaError
from upstream.media.images import (
    ImageFormat,
    Layout,
    Picture,
    PixelType,
    Size,
    decode,
    encode,
    from_base64,
    from_tensor,
    probe,
    transcode,
)

PIXELS = np.random.default_rng(7).integers(0, 256, (2, 5, 7, 3)).astype("u1")


class TestImages:
    @pytest.mark.parametrize("layout", get_args(Layout))
    @pytest.mark.parametrize(
        ("dtype", "range"), [("UINT8", 255), ("FP32", 255), ("FP32", 1), ("FP16", 255), ("FP16", 1)]
    )
    def test_every_tensor(self, dtype: PixelType, range: Any, layout: Layout) -> None:
        values = PIXELS if layout.startswith("N") else PIXELS[0]
        values = np.moveaxis(values, -1, -3) if layout.endswith("CHW") else values
        if dtype != "UINT8":
            values = (values.astype("f4") / (255 if range == 1 else 1)).astype("f4" if dtype == "FP32" else "f2")
        pictures = from_tensor(np.ascontiguousarray(values).tobytes(), dtype, values.shape, layout=layout, range=range)
        assert len(pictures) == (2 if layout.startswith("N") else 1)
        for picture, expected in zip(pictures, PIXELS, strict=False):
            assert decode(encode(picture, "png")) == Picture(7, 5, expected.tobytes())

    @pytest.mark.parametrize("format", get_args(ImageFormat))
    def test_every_format(self, format: ImageFormat) -> None:
        y, x = np.mgrid[0:48, 0:64]
        pixels = np.stack([x * 4, y * 5, x + y], -1).astype("u1")
        data = encode(Picture(64, 48, pixels.tobytes()), format)
        assert probe(data) == Size(format, 64, 48)
        assert np.abs(np.frombuffer(decode(data).pixels, "u1").astype(int) - pixels.ravel()).mean() < 4
        assert transcode(data, format) is data
        for other in get_args(ImageFormat):
            assert probe(transcode(data, other, quality=50)) == Size(other, 64, 48)

    def test_quality_shrinks(self) -> None:
        picture = Picture(64, 64, np.random.default_rng(1).bytes(64 * 64 * 3))
        for format in ("jpeg", "webp"):
            assert len(encode(picture, format, quality=10)) < len(encode(picture, format, quality=95)) / 2
        with pytest.raises(MediaError):
            encode(picture, "jpeg", quality=0)

    def test_clipped_not_wrapped(self) -> None:
        values = np.array([-1, 0, 0.5, 1, 300, np.nan, np.inf, -np.inf, 0.25], "f4")
        (picture,) = from_tensor(values.tobytes(), "FP32", (1, 3, 3), layout="HWC", range=1)
        assert list(picture.pixels) == [0, 0, 128, 255, 255, 0, 255, 0, 64]

    def test_grey_and_transparent(self) -> None:
        (grey,) = from_tensor(b"\x07\x09", "UINT8", (1, 1, 2), layout="CHW")
        assert grey == Picture(2, 1, b"\7\7\7\t\t\t")
        (clear,) = from_tensor(b"\1\2\3\0", "UINT8", (1, 1, 4), layout="HWC")
        assert clear.mode == decode(encode(clear, "png")).mode == decode(encode(clear, "webp")).mode == "RGBA"
        assert decode(encode(clear, "jpeg", background=(250, 250, 250))).pixels == b"\xfa" * 3

    @pytest.mark.parametrize("shape", [(2, 2, 3), (1, 2, 2, 2), (1, 0, 2, 3), (1, 2, 3, 3), (), (1, 20_000, 1, 3)])
    def test_a_tensor_that_is_no_picture(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(MediaError):
            from_tensor(bytes(12), "UINT8", shape)

    @pytest.mark.parametrize("data", [b"", b"GIF", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"BM" + bytes(60), b"\xff\xd8\xff"])
    def test_not_a_picture(self, data: bytes) -> None:
        with pytest.raises(MediaError):
            probe(data)

    def test_a_bomb_is_refused_by_its_header(self) -> None:
        data = bytearray(encode(Picture(4, 4, bytes(48)), "png"))
        data[16:24] = (16_000).to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        for read in (probe, decode):
            with pytest.raises(MediaError, match="16000x16000 is too large"):
                read(bytes(data))

    @pytest.mark.parametrize("format", get_args(ImageFormat))
    def test_cut_short(self, format: ImageFormat) -> None:
        data = encode(Picture(64, 64, np.random.default_rng(1).bytes(64 * 64 * 3)), format)
        with pytest.raises(MediaError):
            decode(data[: len(data) // 2])

    def test_base64(self) -> None:
        data = encode(Picture(1, 1, b"\1\2\3"), "png")
        text = base64.encodebytes(data)
        assert from_base64(text) == from_base64(b"data:image/png;base64," + text) == from_base64(text.decode()) == data
        for bad in (b"%%%%", b"AAA", b"AA==AA==", "é"):
            with pytest.raises(MediaError):
                from_base64(bad)
