"""`conch init` against a real Triton: the file that it writes is read, checked, and served."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from config import load
from handlers.ops.recognition import Files, Live, entry, table, written
from scripts.triton import Triton
from scripts.wheel import CACHE
from tests.gateway import ROOT

OURS = {"assistant", "diffusion", "listener", "minilm", "reranker", "voice"}
# The contract models with published tensors, and the preset that each is to be recognised by.
PUBLISHED = {
    "vllm": "vllm",
    "ensemble": "trtllm",
    "tensorrt_llm_bls": "trtllm",
    "tensorrt_llm": "trtllm-llmapi",
    "embed_text": "text-embed",
    "onnx_embed": "onnx-embed",
    "vllm_embed": "vllm-embed",
    "sd": "sd",
    "sd_bls": "sd-bls",
    "f5_tts": "zero-shot-tts",
    "spark_tts": "zero-shot-tts",
    "whisper": "whisper",
    "whisper_decoupled": "whisper",
    "wav_asr": "wav-asr",
}


def conch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "app.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an operator stands who has the repository models/ and the tokenizer of two of them."""
    folder = tmp_path_factory.mktemp("init")
    shutil.copytree(ROOT / "models" / "assistant", folder / "models" / "assistant")
    (folder / "weights" / "minilm").mkdir(parents=True)
    shutil.copy(CACHE / "minilm" / "tokenizer.json", folder / "weights" / "minilm")
    return folder


@pytest.fixture(scope="module")
def made(triton: Triton, folder: Path) -> Path:
    """What is written for the session's Triton: models/, and every contract model."""
    done = conch(folder, "init", triton.url, "--grpc", triton.grpc_url, "--output", "new.toml")
    assert done.returncode == 0, done.stderr
    assert "new.toml is written" in done.stdout
    return folder / "new.toml"


def test_all_of_models_is_verified(made: Path, folder: Path) -> None:
    fits = json.loads(conch(folder, "check", "--config", "new.toml", "--json").stdout)
    verified = {fit["id"]: fit["reason"] for fit in fits if fit["id"] in OURS}
    assert verified == dict.fromkeys(OURS, "")
    assert all(fit["verified"] for fit in fits if fit["id"] in OURS)


def test_what_can_be_found_out_is(made: Path) -> None:
    models = {model.id: model for model in load(made, variables={}).models}
    assistant = models["assistant"]
    assert (assistant.preset, assistant.chat.tools, assistant.chat.reasoning) == ("vllm", "hermes", "think")
    assert Path(str(assistant.chat.template)).resolve() == made.parent / "models" / "assistant"
    assert models["minilm"].outputs == {"embedding": "embedding", "prompt_tokens": "tokens"}
    assert models["voice"].transport == "grpc"
    assert models["voice"].outputs["audio"].rate == 22050  # type: ignore[union-attr]
    assert models["diffusion"].inputs["seed"] == "seed"
    assert models["listener"].preset == "whisper"
    assert models["reranker"].rerank.tokenizer is not None


@pytest.mark.parametrize(("name", "preset"), PUBLISHED.items())
def test_a_published_model_is_recognised(made: Path, name: str, preset: str) -> None:
    (model,) = [model for model in load(made, variables={}).models if model.id == name]
    assert model.preset == preset


def test_what_is_not_known_is_said(made: Path) -> None:
    text = made.read_text()
    assert "# chat.template = …  # needed:" in text  # of the contracts' chat models
    assert "# embedding.tokenizer = …  # needed:" in text  # of onnx_embed
    assert "# speaker_tts is like no preset. Its tensors:\n#   in   INPUT_TEXT BYTES [1]\n" in text
    tables = tomllib.loads(text)
    assert {each["id"] for each in tables["models"]} >= OURS | PUBLISHED.keys()


def test_a_file_that_is_there_is_left_alone(made: Path, folder: Path, triton: Triton) -> None:
    before = made.read_text()
    done = conch(folder, "init", triton.url, "--output", "new.toml")
    assert done.returncode == 1
    assert "new.toml is there already" in done.stderr
    assert made.read_text() == before


@pytest.mark.parametrize(
    ("url", "words"),
    [("http://127.0.0.1:1", "is no Triton that answers"), ("127.0.0.1:8000", "not an http:// or https:// address")],
)
def test_what_is_no_triton_is_one_sentence(folder: Path, url: str, words: str) -> None:
    done = conch(folder, "init", url, "--output", "none.toml")
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "none.toml").exists()


def live(**declared: Any) -> Live:
    return msgspec.convert({"name": "m"} | declared, Live)


def tensors(*declared: str) -> list[dict[str, Any]]:
    """ "name TYPE dim,dim?": with a ? it is optional."""
    parts = [each.rstrip("?").split() for each in declared]
    return [
        {
            "name": name,
            "data_type": f"TYPE_{kind}",
            "dims": [int(dim) for dim in dims.split(",")],
            "optional": each.endswith("?"),
        }
        for each, (name, kind, dims) in zip(declared, parts, strict=True)
    ]


def test_a_speaker_whose_rate_is_not_told(tmp_path: Path) -> None:
    model = live(input=tensors("words STRING 1", "speed FP32 1?"), output=tensors("wav FP32 -1"))
    lines = entry(model, {}, Files(tmp_path, tmp_path), grpc=False)
    assert lines is not None
    assert table(lines)["in"] == {"words": "text", "speed": "speed"}
    assert any(written(line).startswith("# out.audio = …") for line in lines)


def test_a_decoupled_model_without_an_address_is_told_what_is_missing(tmp_path: Path) -> None:
    model = live(
        input=tensors("words STRING 1"),
        output=tensors("audio FP32 -1"),
        parameters={"sample_rate": {"string_value": "16000"}},
        model_transaction_policy={"decoupled": True},
    )
    lines = entry(model, {}, Files(tmp_path, tmp_path), grpc=False)
    assert lines is not None
    (transport,) = [written(line) for line in lines if line.path == ("transport",)]
    assert transport.startswith('transport = "grpc"  # ')
    assert "address of its gRPC" in transport


def test_a_model_like_nothing_is_left_to_its_operator(tmp_path: Path) -> None:
    model = live(input=tensors("images FP32 3,224,224"), output=tensors("classes FP32 1000"))
    assert entry(model, {}, Files(tmp_path, tmp_path), grpc=True) is None


def test_files_are_those_of_the_models_name_or_of_the_one_that_it_tells(tmp_path: Path) -> None:
    for path in ("a/m/tokenizer.json", "b/llama/tokenizer.json", ".hidden/x/tokenizer.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("{}")
    files = Files(tmp_path, tmp_path / "a")
    assert files.of(live(name="m"), {}).tokenizer == ("m/tokenizer.json", "it lies in m")
    part = live(name="preprocessing", parameters={"tokenizer_dir": {"string_value": "/engines/llama"}})
    whole = live(name="ensemble", ensemble_scheduling={"step": [{"model_name": "preprocessing"}]})
    told = files.of(whole, {"preprocessing": part, "ensemble": whole}).tokenizer
    assert told == ("../b/llama/tokenizer.json", "it lies in llama")
    assert files.of(live(name="other"), {}).tokenizer is None, "there are two"
    only = files.of(live(name="other"), {"m": live(name="m")}).tokenizer
    assert only is not None
    assert only[0] == "../b/llama/tokenizer.json", "the other one is m's"
