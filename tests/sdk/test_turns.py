"""An answer goes back as the client itself tells it again: whatever its SDK has put into it, the second turn works."""

from pathlib import Path

import pytest

from tests.sdk.clients import HERE, NEWEST, SDK
from tests.sdk.outside import Outside
from tests.sdk.test_clients import run

pytestmark = pytest.mark.sdk


@pytest.mark.parametrize(
    ("program", "name", "turns"),
    [
        (NEWEST / "python", "openai-python.py", {"chat 1, 2, 3": 15, "responses 1, 2, 3": 18}),
        (SDK / "python", "openai-python.py", {"chat 1, 2, 3": 15, "responses 1, 2, 3": 18}),
        (SDK / "node", "openai-node.mjs", {"chat 1, 2, 3": 5, "responses 1, 2, 3": 6}),
        (SDK / "python", "langchain-openai.py", {"1, 2, 3": 15}),
        (SDK / "node", "vercel.mjs", {"1, 2, 3": 18}),
    ],
)
def test_an_answer_told_again(
    program: Path, name: str, turns: dict[str, int], environment: dict[str, str], witness: Outside, tmp_path: Path
) -> None:
    printed = run(program, HERE / "turns" / name, environment, tmp_path).splitlines()
    assert {line: printed.count(line) for line in dict.fromkeys(printed)} == turns
    assert not witness.asked
