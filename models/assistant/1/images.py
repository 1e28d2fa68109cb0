"""The kind and size of an image, read from its first bytes."""

from __future__ import annotations

import base64
import binascii
import struct

from serving import Refusal

# Frame headers of JPEG that carry the size: all SOF markers but DHT (C4), JPG (C8) and DAC (CC).
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def describe(images: list[str]) -> str:
    """Return a sentence about base64 images: how many, how large. Refusal for what is no image."""
    if not images:
        return ""
    described = ", ".join(_describe(image) for image in images)
    return f"I see {len(images)} image{'s' if len(images) > 1 else ''}: {described}."


def _describe(encoded: str) -> str:
    try:
        data = base64.b64decode(encoded, validate=True)
        kind, width, height = _size(data)
    except (binascii.Error, struct.error, IndexError, ValueError):
        raise Refusal("Error generating stream: cannot identify image file") from None
    return f"{kind} {width}×{height}"


def _size(data: bytes) -> tuple[str, int, int]:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG", *struct.unpack(">II", data[16:24])
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF", *struct.unpack("<HH", data[6:10])
    if data.startswith(b"BM"):
        return "BMP", *struct.unpack("<ii", data[18:26])
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP", *_webp_size(data)
    if data.startswith(b"\xff\xd8"):
        return "JPEG", *_jpeg_size(data)
    raise ValueError("not an image of a known kind")


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while True:
        marker = data[at + 1]
        if marker in FRAMES:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
