"""The README's examples, run as they are printed, against the gateway of the session."""

import io
import re
import subprocess
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import ROOT, Conch

README = (ROOT / "README.md").read_text()
HERE = "http://127.0.0.1:8080"
SEEN = {  # what each example is to print or write, in the order of the README
    "chat.completions": ".",
    "responses.create": "get_weather",
    "responses.parse": "Ada",
    "completions.create(model": "1, 2, 3",
    "images.generate": "",
    "embeddings.create": "Simmer",
    "audio.speech": "city",
    "Idempotency-Key": "True",
}


def blocks(language: str) -> list[str]:
    """The examples in a language that talk to the local gateway or to a client made before."""
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return [block for block in found if "client" in block or "curl" in block]


@pytest.fixture
def here(conch: Conch, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the key where `make run` puts it."""
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "dev.key").write_text(key + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_python(conch: Conch, here: Path) -> None:
    printed: dict[str, str] = {}
    names: dict[str, Any] = {}
    for block in blocks("python"):
        out = io.StringIO()
        with redirect_stdout(out):
            exec(compile(block.replace(HERE, conch.url), "README.md", "exec"), names)
        printed[block] = out.getvalue()
    for call, words in SEEN.items():
        (said,) = [
            said
            for block, said in printed.items()
            if call in block
            and (call != "completions.create(model" or "chat" not in block)
            and (call != "embeddings.create" or "Idempotency-Key" not in block)
        ]
        assert words.lower() in said.lower(), call
    assert (here / "boat.png").read_bytes()[:4] == b"\x89PNG"
    assert len(next(here.glob("*.mp3")).read_bytes()) > 10_000
    names["client"].close()


@pytest.mark.parametrize(("words", "says"), [("chat/completions", "data: [DONE]"), ("rerank", "Simmer one cup")])
def test_curl(conch: Conch, here: Path, words: str, says: str) -> None:
    (line,) = [block for block in blocks("sh") if "curl" in block and words in block]
    done = subprocess.run(["sh", "-c", line.replace(HERE, conch.url)], capture_output=True, text=True, check=True)
    assert says in done.stdout
