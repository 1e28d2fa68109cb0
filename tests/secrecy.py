"""What must never be in a log or a database: whole keys, and what the tests say to models."""

import ast
import re
from functools import cache
from pathlib import Path

KEY = re.compile(rb"rp_live_[0-9a-f]{64}")
SIGNING = re.compile(rb"whsec_[0-9a-f]{64}")
SAID = {"content", "prompt", "input", "query", "text", "instructions"}
SHORTEST = 12
"""Characters from which on a text is nobody else's by chance."""


def check_log(lines: list[str]) -> None:
    """No key and no prompt in what a gateway has logged."""
    log = "".join(lines)
    assert not KEY.search(log.encode()), "a key was logged"
    assert not SIGNING.search(log.encode()), "a secret of a webhook was logged"
    for prompt in prompts():
        assert prompt not in log, f"a prompt was logged: {prompt!r}"


def check_files(path: Path) -> None:
    """No key in a SQLite database, its write-ahead log included."""
    for file in path.parent.glob(f"{path.name}*"):
        assert not KEY.search(file.read_bytes()), f"a key is in {file.name}"


@cache
def prompts() -> frozenset[str]:
    """The literals that the tests send in a field with words."""
    found: set[str] = set()
    for file in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                named = [
                    (key.value, value)
                    for key, value in zip(node.keys, node.values, strict=True)
                    if isinstance(key, ast.Constant)
                ]
            elif isinstance(node, ast.Call):
                named = [(keyword.arg, keyword.value) for keyword in node.keywords]
            else:
                continue
            found.update(
                value.value
                for name, value in named
                if name in SAID and isinstance(value, ast.Constant) and isinstance(value.value, str)
            )
    return frozenset(text for text in found if len(text) >= SHORTEST)
