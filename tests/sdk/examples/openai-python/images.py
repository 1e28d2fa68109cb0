"""A picture, into a file."""

import base64
from pathlib import Path

from openai import OpenAI

client = OpenAI()
drawn = client.images.generate(model="diffusion", prompt="a red sailboat on the sea at sunset", size="512x512")
Path("boat.png").write_bytes(base64.b64decode(drawn.data[0].b64_json))
