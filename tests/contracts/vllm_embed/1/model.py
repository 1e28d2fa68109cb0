"""Triton's vLLM backend around an embedding model: a vector as JSON text."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "vllm"))

from contract import VllmEmbed as TritonPythonModel

__all__ = ["TritonPythonModel"]
