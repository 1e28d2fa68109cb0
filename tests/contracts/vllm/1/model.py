"""Triton's vLLM backend: text in deltas, token counts per response, "None" until it has finished."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "vllm"))

from contract import Vllm as TritonPythonModel

__all__ = ["TritonPythonModel"]
