"""The pages: every command and block of code in them runs, or is held against what understands it; every link leads."""

import argparse
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest
import yaml

import app
import config
from handlers.ops import commands
from scripts import settings
from scripts.triton import Triton
from tests.gateway import ROOT
from tests.pages import PAGES, Block, Reader, blocks, verbs

ALL = [block for page in PAGES for block in blocks(page)]
FOLLOWED = {  # pages that run from top to bottom, and what is to have been printed in the end
    "docs/quickstart.md": ['"id":"assistant"', "data: [DONE]", "1, 2, 3, 4, 5", "verified", "rp_live_"],
    "docs/from-litellm.md": ["notebooks", "credits_usd      250.00"],
    "docs/from-nvidia.md": ["rp_live_"],
    "docs/accounts.md": ["credits_usd      25.00", '"name":"beta"', '"credits_usd":"25', '"object":"list"'],
}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def these(*languages: str) -> pytest.MarkDecorator:
    """A test for each block in these languages."""
    chosen = [block for block in ALL if block.language in languages]
    return pytest.mark.parametrize("block", chosen, ids=[block.name for block in chosen])


def test_every_block_says_what_it_is() -> None:
    known = {"sh", "bash", "python", "js", "toml", "json", "yaml", ""}
    assert {block.language for block in ALL} <= known
    assert len(ALL) > 50
    for page in PAGES:
        assert page.read_text().count("\n```") == 2 * len(blocks(page)), page


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("page", FOLLOWED)
def test_who_follows_a_page_gets_there(page: str, triton: Triton, tmp_path: Path) -> None:
    with Reader(tmp_path, triton) as reader:
        for block in blocks(ROOT / page, "sh", "python"):
            reader.follow(block)
        for words in FOLLOWED[page]:
            assert words in reader.printed, f"{words!r} is not in {reader.printed}"


def test_what_is_printed_to_be_run_is_run() -> None:
    """sh and python say that a test runs them: on those pages, in the README (test_readme.py), of the recipes."""
    pages = {str(block.page.relative_to(ROOT)) for block in ALL if block.language in ("sh", "python")}
    own = {"docs/webhooks.md", "docs/voice.md"}  # test_webhooks.py, test_pipeline.py
    assert pages <= {*FOLLOWED, *own, "README.md", "docs/recipes.md"}, "bash says that it is for another machine"


@these("sh", "bash")
def test_a_command_is_one(block: Block) -> None:
    """A shell can read it; our own verbs take these arguments; files of the repository and make's targets are there."""
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parser = commands._parser(commands.GROUPS)
    for command in block.commands():
        arguments = verbs(command)
        if arguments is not None:
            parser.parse_args([each.replace("PID", "2") for each in arguments])
        if command[0] == "make":
            assert command[1] in TARGETS
        for word in command:
            if re.match(r"(deploy|docs|requirements|tests|scripts)/", word):
                assert (ROOT / word).exists(), word


@these("json")
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


@these("yaml")
def test_yaml_is_yaml(block: Block) -> None:
    assert yaml.safe_load(block.text)


REST = {  # what an entry needs besides, where a page shows only a part of one
    "id": 'id = "one"',
    "upstream": 'upstream = "gpu"',
    "model": 'model = "one"',
    "task": 'task = "{task}"',
    "preset": 'preset = "{preset}"',
    "chat": 'chat.template = "chat_template.jinja"',
}
PRESETS = {
    "chat": "vllm",
    "image": "sd",
    "embedding": "onnx-embed",
    "speech": "zero-shot-tts",
    "transcription": "whisper",
}
PRESETS["rerank"] = "cross-encoder"


def completed(text: str) -> str:
    """What a page shows of a conch.toml, as a whole one: the entry that a table belongs to, what an entry lacks."""
    if "[[models]]" not in text and re.search(r"^(\[models\.|\w+ = )", text, re.MULTILINE):
        bare = text.lstrip().startswith(("[server]", "[store]", "[tracing]"))
        text = text if bare else f"[[models]]\n{text}"
    first, *entries = re.split(r"(?=^\[\[models\]\]$)", text, flags=re.MULTILINE)
    for entry in entries:
        told = tomllib.loads(entry)["models"][0]
        task = told.get("task") or next(
            (each for each in PRESETS if each in told or each in told.get("out", ())), "chat"
        )
        head, table, rest = entry.partition("\n[")
        lacks = REST.keys() - told.keys() - (set() if task == "chat" else {"chat"})
        if told.keys() & {"in", "out"} and "preset" not in told and task == "chat":
            lacks -= {"preset"}
        lines = [REST[name].format(task=task, preset=PRESETS[task]) for name in REST if name in lacks]
        first += "\n".join([head, *lines]) + f"{table}{rest}\n"
    if entries and "[upstreams." not in first:
        first += '\n[upstreams.gpu]\nurls = ["http://triton:8000"]\ngrpc = ["triton:8001"]\n'
    return first


@these("toml")
def test_settings_are_settings(block: Block, tmp_path: Path) -> None:
    """Whole or in part, the gateway takes them."""
    whole = completed(block.text)
    (tmp_path / "conch.toml").write_text(whole)
    config.load(tmp_path / "conch.toml", variables={})


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings], target


def known_settings() -> set[str]:
    """Every key of conch.toml, table and choice; every option and verb; every variable and path."""
    names = {value for table in settings.tables() for value in _of(table)}
    parser = commands._parser(commands.GROUPS)
    routes = app.build(config.load()).gateway.routes()
    return names | _options(parser) | {"CONCH_ADMIN_TOKEN", "CONCH_STORE__URL"} | {route.path for route in routes}


def _of(table: type[msgspec.Struct]) -> Iterator[str]:
    for field in msgspec.structs.fields(table):
        yield field.encode_name
        for part in (field.type, *get_args(field.type)):
            yield from (each for each in get_args(part) if isinstance(each, str))


def _options(parser: argparse.ArgumentParser) -> set[str]:
    found = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                found |= _options(each)
    return found


@pytest.mark.parametrize("page", ["from-litellm.md", "from-nvidia.md"])
def test_what_takes_the_place_of_another_setting_is_one(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCH_ADMIN_TOKEN", "t")
    known = known_settings()
    rows = [
        line.strip("| ").split(" | ") for line in (ROOT / "docs" / page).read_text().splitlines() if "|" in line[:1]
    ]
    named = [word for row in rows[2:] for word in re.findall(r"`([^`]+)`", row[-1]) if not set(row[-1]) <= set("-|")]
    assert len(named) > 25
    for word in named:
        if word.startswith("conch "):
            assert verbs(word.split()) is not None
        elif word not in ("[tracing]", "Idempotency-Key") and row_is_ours(word):
            assert word in known or f"/admin{word}" in known or word == "/admin", word


def row_is_ours(word: str) -> bool:
    """Not a status, and not what stands on the other side of a table with three columns."""
    return bool(re.fullmatch(r"(--)?[a-z0-9_-]+|/[\w/]+|CONCH_\w+", word))


def test_what_the_page_on_the_house_names_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    code = "\n".join(
        path.read_text() for room in ("handlers", "upstream", "store", "config") for path in _sources(room)
    )
    paths = re.findall(r"`((?:handlers|upstream|store|config|tests|door|app)[\w/]*(?:\.py|/))`", page)
    assert len(paths) > 30
    for path in paths:
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`([A-Z]\w+|admit|reach|converse|opened|create|build)\b[^`]*`", page):
        assert re.search(rf"\b(class|def) {name}\b|\b{name} = ", code + (ROOT / "app.py").read_text()) or name in (
            "UPDATE",
            "Idempotency",
        ), name
    for command in re.findall(r"`make ([a-z-]+)", page):
        assert command in TARGETS


def _sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))
