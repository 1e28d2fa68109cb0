"""What a recording says."""

from pathlib import Path

import litellm

with Path("train.mp3").open("rb") as recording:
    print(litellm.transcription("openai/listener", recording).text)
