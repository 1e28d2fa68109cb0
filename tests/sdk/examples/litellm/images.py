"""A picture, into a file."""

import base64
from pathlib import Path

import litellm

drawn = litellm.image_generation("a red sailboat on the sea at sunset", "openai/diffusion", size="512x512")
Path("boat.png").write_bytes(base64.b64decode(drawn.data[0].b64_json))
