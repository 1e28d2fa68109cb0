"""The lines that the dashboard shows under Connect, of every SDK: they run as they are copied."""

import json
import subprocess
from pathlib import Path

import pytest

from handlers.ops.dashboard import FOLDER
from tests.gateway import Conch
from tests.sdk.clients import HERE, SDK
from tests.sdk.outside import Outside
from tests.sdk.test_clients import run

pytestmark = pytest.mark.sdk

PROGRAMS = {"js": SDK / "node", "python": SDK / "python", "sh": Path("/bin/sh")}
LANGUAGES = {
    **dict.fromkeys(("node", "vercel"), "js"),
    **dict.fromkeys(("python", "langchain", "llamaindex", "litellm"), "python"),
    "curl": "sh",
}
SHOW = """
const { SDKS } = await import(process.argv[1]);
console.log(JSON.stringify(Object.fromEntries(SDKS.map(({ id, lines }) => [id, lines(process.argv[2], "assistant")]))));
"""


def test_every_sdk_that_is_shown_is_tried(conch: Conch) -> None:
    assert shown(conch).keys() == LANGUAGES.keys()


@pytest.mark.parametrize("sdk", LANGUAGES)
def test_what_is_copied_runs(
    sdk: str, conch: Conch, key: str, environment: dict[str, str], witness: Outside, tmp_path: Path
) -> None:
    language = LANGUAGES[sdk]
    file = tmp_path / ("copied.mjs" if language == "js" else "copied")
    file.write_text(shown(conch)[sdk])
    (tmp_path / "node_modules").symlink_to(HERE / "node_modules")
    known = {name: value for name, value in environment.items() if not name.startswith("OPENAI_")}
    assert len(run(PROGRAMS[language], file, known | {"CONCH_API_KEY": key}, tmp_path).split()) > 3
    assert not witness.asked


def shown(conch: Conch) -> dict[str, str]:
    """The lines of each SDK, for this gateway."""
    arguments = [str(FOLDER / "snippets.js"), f"{conch.url}/v1"]
    command = [str(SDK / "node"), "--input-type=module", "--eval", SHOW, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    found: dict[str, str] = json.loads(done.stdout)
    return found
