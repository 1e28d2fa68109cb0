"""TensorRT-LLM's BLS with accumulate_tokens: each response repeats the whole text, stop words included."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "vllm"))

from contract import Accumulated as TritonPythonModel

__all__ = ["TritonPythonModel"]
