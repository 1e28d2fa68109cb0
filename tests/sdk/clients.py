"""The clients of the compatibility table, what each can ask for, and the examples that show it, one file each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "sdk"
EXAMPLES = HERE / "examples"
SDK = ROOT / ".venv-sdk" / "bin"
NEWEST = ROOT / ".venv" / "bin"  # has OpenAI's newest SDK, which some frameworks do not take yet

# What an example is called, and how the pages head it.
FEATURES = {
    "chat": "Chat",
    "stream": "Streaming",
    "tools": "Tools",
    "schema": "Structured output",
    "responses": "Responses",
    "embeddings": "Embeddings",
    "rerank": "Rerank",
    "images": "Images",
    "speech": "Speech",
    "transcription": "Transcription",
}


@dataclass(frozen=True)
class Client:
    """A client: the folder of its examples and its page, its title, its package, and the programs that run it."""

    name: str
    title: str
    package: str
    programs: tuple[Path, ...]

    def examples(self) -> Iterator[Path]:
        """Its examples, in the order of the table."""
        found = {path.stem: path for path in (EXAMPLES / self.name).iterdir() if path.is_file()}
        assert found.keys() <= FEATURES.keys(), f"{self.name} shows what no column is named for: {sorted(found)}"
        yield from (found[feature] for feature in FEATURES if feature in found)

    def versions(self) -> str:
        """The versions that it is tried in, newest first, as the locks have them."""
        return ", ".join(_version(self.package, program) for program in self.programs if self.package)


CLIENTS = (
    Client("openai-python", "OpenAI Python", "openai", (NEWEST / "python", SDK / "python")),
    Client("openai-node", "OpenAI Node", "openai", (SDK / "node",)),
    Client("langchain", "LangChain", "langchain-openai", (SDK / "python",)),
    Client("llamaindex", "LlamaIndex", "llama-index-llms-openai-like", (SDK / "python",)),
    Client("vercel-openai", "Vercel AI SDK, `createOpenAI`", "@ai-sdk/openai", (SDK / "node",)),
    Client("vercel-compatible", "Vercel AI SDK, OpenAI-compatible", "@ai-sdk/openai-compatible", (SDK / "node",)),
    Client("instructor", "Instructor", "instructor", (SDK / "python",)),
    Client("agents", "OpenAI Agents SDK", "openai-agents", (SDK / "python",)),
    Client("litellm", "LiteLLM", "litellm", (SDK / "python",)),
    Client("curl", "curl", "", (Path("/bin/sh"),)),
)


def _version(package: str, program: Path) -> str:
    if program.name == "node":
        version: str = json.loads((HERE / "package.json").read_text())["dependencies"][package]
        return version
    lock = ROOT / "requirements" / ("dev.txt" if program.parent == NEWEST else "sdk.txt")
    found = re.search(rf"^{package}==(\S+)", lock.read_text(), re.MULTILINE)
    assert found, f"{package} is not in {lock.name}"
    return found[1]
