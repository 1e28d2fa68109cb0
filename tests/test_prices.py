"""Prices in the settings: what cannot be charged by is told at the start, in one sentence."""

from pathlib import Path

import pytest

from config import ConfigError, load
from tests.gateway import Conch
from tests.priced import CONFIG

MODEL = """
[upstreams.local]
urls = ["http://127.0.0.1:8000"]

[[models]]
id = "m"
task = "{task}"
upstream = "local"
model = "x"
{rest}
"""
FAULTS: list[tuple[str, str, str]] = [
    ("chat", "price = { input = 0.1 }", 'dollars as a text such as "0.10", got 0.1'),
    ("chat", 'price = { input = "-1" }', "got '-1'"),
    ("chat", 'price = { input = "0.0000000001" }', "got '0.0000000001'"),
    ("chat", 'price = { input = "$1" }', "got '$1'"),
    ("chat", 'price = { inputs = "1" }', "unknown field `inputs`"),
    ("chat", 'preset = "vllm"\nprice = { input = "1" }', "needs max_output"),
    ("chat", 'preset = "vllm"\nmax_output = 9\nprice = { images = "1" }', "price.images is not for chat; use input"),
    ("chat", 'preset = "vllm"\nmax_output = 9\nprice = { cached_input = "1" }', "cached_input needs cached_tokens"),
    (
        "chat",
        """max_output = 9
        out = { prompt_tokens = "a", cached_tokens = "b" }
        price = { input = "1", cached_input = "2" }""",
        "price.cached_input is over price.input",
    ),
    ("chat", 'max_output = 9\nprice = { output = "1" }', "price.output needs completion_tokens in"),
    ("embedding", 'price = { input = "1" }', "needs prompt_tokens in [models.out], or a tokenizer"),
    ("embedding", 'price = { output = "1" }', "price.output is not for embedding; use input"),
    ("image", 'price = { seconds = "1" }', "price.seconds is not for image; use images"),
    ("speech", 'price = { input = "1" }', "price.input is not for speech; use characters"),
    ("transcription", 'price = { characters = "1" }', "price.characters is not for transcription; use seconds"),
]


@pytest.mark.parametrize(("task", "rest", "says"), FAULTS)
def test_a_fault_in_a_price_is_told_in_one_sentence(tmp_path: Path, task: str, rest: str, says: str) -> None:
    file = tmp_path / "conch.toml"
    file.write_text(MODEL.format(task=task, rest=rest))
    with pytest.raises(ConfigError) as refusal:
        load(file, variables={})
    told = str(refusal.value)
    assert says in told
    assert "\n" not in told
    assert told.endswith(".")


def test_it_is_told_at_the_start(tmp_path: Path) -> None:
    conch = Conch(tmp_path, "http://127.0.0.1:1", CONFIG.replace("max_output = 100_000\n", ""))
    told = conch.command("serve", status=1)
    assert "needs max_output" in told
    assert told.count("\n") == 1
