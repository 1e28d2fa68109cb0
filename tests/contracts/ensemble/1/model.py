"""TensorRT-LLM's ensemble: one detokenised token per response, no finish reason."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "vllm"))

from contract import Ensemble as TritonPythonModel

__all__ = ["TritonPythonModel"]
