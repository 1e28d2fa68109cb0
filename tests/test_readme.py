"""The README, followed from top to bottom: its commands and examples, run as they are printed."""

from pathlib import Path

import pytest

from scripts.triton import Triton
from tests.gateway import ROOT
from tests.pages import Reader, blocks

SEEN = {  # what each example is to print or write, in the order of the README
    "chat/completions": "data: [DONE]",
    "chat.completions": ".",
    "responses.create": "get_weather",
    "responses.parse": "Ada",
    "completions.create(model": "1, 2, 3",
    "images.generate": "",
    "embeddings.create": "Simmer",
    "v1/rerank": "Simmer one cup",
    "audio.speech": "city",
    "app.py init": "conch.toml is written",
    "keys create": "rp_live_",
    "credits show": "credits_usd",
    "Idempotency-Key": "True",
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_who_follows_it_sees_what_it_says(triton: Triton, tmp_path: Path) -> None:
    printed: dict[str, str] = {}
    with Reader(tmp_path, triton) as reader:
        for block in blocks(ROOT / "README.md", "sh", "python"):
            before = len(reader.printed)
            reader.follow(block)
            printed[block.text] = reader.printed[before:]
    for call, words in SEEN.items():
        (said,) = [
            said
            for block, said in printed.items()
            if call in block
            and (call != "completions.create(model" or "chat" not in block)
            and (call != "embeddings.create" or "Idempotency-Key" not in block)
        ]
        assert words.lower() in said.lower(), call
    assert (tmp_path / "boat.png").read_bytes()[:4] == b"\x89PNG"
    assert len(next(tmp_path.glob("*.mp3")).read_bytes()) > 10_000
