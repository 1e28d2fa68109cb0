"""Pictures: a model's tensors or files to PNG, JPEG and WebP, and the checks of pictures that clients send."""

import binascii
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from upstream.media import MediaError

if TYPE_CHECKING:
    from types import ModuleType

    from PIL import Image

Layout = Literal["NHWC", "NCHW", "HWC", "CHW"]
PixelType = Literal["UINT8", "FP32", "FP16"]
ImageFormat = Literal["png", "jpeg", "webp"]

CONTENT_TYPES: Final = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "gif": "image/gif"}
MOST_PIXELS: Final = 64 * 1024 * 1024
_SIDE: Final = 16_383  # WebP's own bound
_NUMPY: Final = {"UINT8": "u1", "FP32": "<f4", "FP16": "<f2"}
_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
_QUALITY: Final = 90


class Picture(NamedTuple):
    """Rows of 8-bit pixels from the top, without padding; `mode` is RGB or RGBA."""

    width: int
    height: int
    pixels: bytes
    mode: Literal["RGB", "RGBA"] = "RGB"


class Size(NamedTuple):
    """What a file says it is: png, jpeg, webp or gif, and its width and height in pixels."""

    format: str
    width: int
    height: int


def from_tensor(
    data: bytes | memoryview,
    dtype: PixelType,
    shape: tuple[int, ...] | list[int],
    *,
    layout: Layout = "NHWC",
    range: Literal[1, 255] = 255,
) -> list[Picture]:
    """The pictures of one raw little-endian tensor of 1, 3 or 4 channels; values run from 0 to `range`.

    Values beyond the range are clipped, and NaN is black. Raises MediaError where data and shape disagree.
    """
    import numpy

    sizes = tuple(shape) if len(layout) == 4 else (1, *shape)
    if len(sizes) != 4 or min(sizes) < 1:
        raise MediaError(f"The model's picture has the shape {list(shape)}, which is not {layout}.")
    count, height, width, channels = sizes if layout.endswith("HWC") else (sizes[0], sizes[2], sizes[3], sizes[1])
    if channels not in _MODES:
        raise MediaError(f"The model's picture has {channels} channels; 1, 3 and 4 are known.")
    _bounded(width, height)
    if len(data) != count * height * width * channels * numpy.dtype(_NUMPY[dtype]).itemsize:
        raise MediaError("The model's picture is not as large as its shape says.")
    values = numpy.frombuffer(data, _NUMPY[dtype]).reshape(sizes)
    if dtype != "UINT8":
        scaled = numpy.nan_to_num(values.astype("f4"), nan=0, posinf=range, neginf=0) * (255 / range)
        values = numpy.rint(scaled.clip(0, 255)).astype("u1")
    elif range != 255:
        values = values.clip(0, 1) * numpy.uint8(255)
    if layout.endswith("CHW"):
        values = values.transpose(0, 2, 3, 1)
    if channels == 1:
        values = values.repeat(3, axis=3)
    mode: Literal["RGB", "RGBA"] = "RGBA" if channels == 4 else "RGB"
    return [Picture(width, height, one.tobytes(), mode) for one in values]


def decode(data: bytes | memoryview) -> Picture:
    """The picture in a PNG, JPEG, WebP or GIF file (of a GIF, the first frame). Raises MediaError."""
    image = _opened(data)
    try:
        mode: Literal["RGB", "RGBA"] = "RGBA" if image.has_transparency_data else "RGB"
        return Picture(image.width, image.height, image.convert(mode).tobytes(), mode)
    except (OSError, ValueError, SyntaxError, EOFError):
        raise MediaError("The picture is damaged or cut short.") from None


def encode(
    picture: Picture,
    format: ImageFormat,
    *,
    quality: int | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
) -> bytes:
    """A file. `quality` is 1 to 100, 90 by default, and ignored by PNG; `background` shows through in a JPEG only."""
    if quality is not None and not 1 <= quality <= 100:
        raise MediaError(f"A quality is 1 to 100, not {quality}.")
    pil = _pillow()
    image = pil.frombuffer(picture.mode, (picture.width, picture.height), picture.pixels, "raw", picture.mode, 0, 1)
    options: dict[str, Any] = {"quality": quality or _QUALITY}
    if format == "png":
        options = {"compress_level": 2}  # a third of the time of the default 6, and files a seventh larger
    elif format == "webp":
        options["method"] = 2  # a fifth of the time of the default 4, and files a tenth larger
    elif picture.mode == "RGBA":
        flat = pil.new("RGB", image.size, background)
        flat.paste(image, mask=image)
        image = flat
    out = BytesIO()
    try:
        image.save(out, format.upper(), **options)
    except (OSError, ValueError):
        raise MediaError(f"A picture of {picture.width}x{picture.height} does not fit into {format}.") from None
    return out.getvalue()


def transcode(data: bytes, format: ImageFormat, *, quality: int | None = None) -> bytes:
    """The same picture as a file of `format`: untouched if it is one already and no quality is asked for."""
    if quality is None and probe(data).format == format:
        return data
    return encode(decode(data), format, quality=quality)


def probe(data: bytes | memoryview) -> Size:
    """What a file's header says, its pixels not decoded. Raises MediaError if it is no picture, or one too large."""
    image = _opened(data)
    return Size((image.format or "").lower(), image.width, image.height)


def from_base64(text: bytes | str) -> bytes:
    """The file in a base64 text; whitespace and a data: prefix, as models may add, are allowed. Raises MediaError."""
    raw = text.encode() if isinstance(text, str) else text
    if raw.startswith(b"data:"):
        raw = raw.partition(b",")[2]
    try:
        return binascii.a2b_base64(b"".join(raw.split()), strict_mode=True)
    except binascii.Error:
        raise MediaError("The model's picture is not valid base64.") from None


def _opened(data: bytes | memoryview) -> "Image.Image":
    pil = _pillow()
    try:
        image: Image.Image = pil.open(BytesIO(data), formats=("PNG", "JPEG", "WEBP", "GIF"))
    except (OSError, ValueError, SyntaxError):  # Pillow's plugins raise all three for bytes they cannot read
        raise MediaError("The data is not a PNG, JPEG, WebP or GIF picture.") from None
    _bounded(image.width, image.height)
    return image


def _bounded(width: int, height: int) -> None:
    if width > _SIDE or height > _SIDE or width * height > MOST_PIXELS:
        raise MediaError(f"A picture of {width}x{height} is too large; the most is {MOST_PIXELS // 2**20} megapixels.")


def _pillow() -> "ModuleType":
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # it warns where it should refuse; _bounded refuses before a pixel is decoded
    return Image
