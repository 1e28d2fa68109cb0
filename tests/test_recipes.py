"""docs/recipes.md: its settings bound to models with the published tensors, and its requests sent to them."""

import re
import shutil
import subprocess
import wave
from pathlib import Path

import pytest

import config
from scripts.triton import Triton
from tests.gateway import ROOT, STORED, Conch
from tests.pages import HERE, Block, blocks

PAGE = ROOT / "docs" / "recipes.md"
# The repository that a recipe is for, and the model of tests/contracts with its tensors.
CONTRACTS = {
    "qwen": "vllm",
    "tensorrt_llm": "tensorrt_llm",
    "tensorrt_llm_bls": "tensorrt_llm_bls",
    "stable_diffusion_xl": "sd",
    "f5_tts": "f5_tts",
    "infer_bls": "whisper",
}
SETTINGS = [block for block in blocks(PAGE, "toml") if "[[models]]" in block.text]
SEEN = {  # what a request is answered with
    "qwen2.5-7b": '"object":"chat.completion"',
    "llama-3.1-8b": "data: [DONE]",
    "sdxl": '"b64_json":"/9j/',
    "f5-tts": "",
    "whisper-large-v3": '"text":',
}


def bound(text: str, triton: Triton) -> str:
    """A recipe's settings before the session's Triton, and the model there that has its tensors."""
    text = text.replace("http://127.0.0.1:8000", triton.url).replace("127.0.0.1:8001", triton.grpc_url)
    return re.sub(r'^model = "(\w+)"', lambda named: f'model = "{CONTRACTS[named[1]]}"', text, flags=re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the files lie that the recipes name."""
    for name in ("qwen", "llama"):
        (tmp_path / "templates" / name).mkdir(parents=True)
        for file in ("tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(ROOT / "models" / "assistant" / file, tmp_path / "templates" / name)
    (tmp_path / "voices").mkdir()
    with wave.open(str(tmp_path / "voices" / "ada.wav"), "wb") as recording:
        recording.setparams((1, 2, 24_000, 0, "NONE", ""))
        recording.writeframes(STORED)
    return tmp_path


@pytest.mark.parametrize("block", SETTINGS, ids=lambda block: block.name)
def test_a_recipe_fits_its_repository(block: Block, triton: Triton, folder: Path) -> None:
    conch = Conch(folder, triton.url, "")
    conch.config.write_text(bound(block.text, triton))
    (model,) = conch.command("check")
    assert model["verified"], model["reason"]
    assert model["unknown"] == []


def test_a_mark_that_vllm_would_leave_out_is_asked_for(folder: Path) -> None:
    more = next(block.text for block in blocks(PAGE) if "skip_special_tokens" in block.text)
    (folder / "conch.toml").write_text(SETTINGS[0].text + "\n" + more)
    (model,) = config.load(folder / "conch.toml", variables={}).models
    entry = model.inputs["sampling_parameters"]
    assert isinstance(entry, config.Input)
    assert entry.json is not None
    assert {"temperature", "skip_special_tokens"} <= entry.json.keys(), "what the preset says stays"


def test_its_requests_are_answered(triton: Triton, folder: Path) -> None:
    head = '[server]\nport = 0\n[store]\nurl = "sqlite:{store}"\n'
    conch = Conch(folder, triton.url, head)
    settings = ""
    for block in SETTINGS:
        upstream, _, entry = bound(block.text, triton).partition("\n\n")
        settings += entry if upstream.split("\n")[0] in settings else f"{upstream}\n{entry}"
    conch.config.write_text(conch.config.read_text() + settings)
    conch.workspace("acme")
    conch.command("credits", "grant", "acme", "10")
    (folder / "var").mkdir()
    (folder / "var" / "dev.key").write_text(conch.key("acme"))
    with conch.running():
        for block in blocks(PAGE, "sh"):
            done = subprocess.run(
                ["sh", "-e", "-c", block.text.replace(HERE, conch.url)],
                cwd=folder,
                capture_output=True,
                text=True,
                check=True,
            )
            (words,) = [words for model, words in SEEN.items() if re.search(rf'[="]{model}["\s]', block.text)]
            assert words in done.stdout, done.stdout
    assert len((folder / "morning.mp3").read_bytes()) > 1000
    assert len(blocks(PAGE, "sh")) == len(SEEN)
