"""What a recording says."""

from pathlib import Path

from openai import OpenAI

client = OpenAI()
print(client.audio.transcriptions.create(model="listener", file=Path("train.mp3")).text)
