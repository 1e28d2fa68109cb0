"""TensorRT-LLM's LLM API model: cumulative text, a finish reason, no token counts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "vllm"))

from contract import LlmApi as TritonPythonModel

__all__ = ["TritonPythonModel"]
