"""TensorRT-LLM's whisper_bls: at most 30 seconds, one answer."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "whisper"))

from hearing import Whisper as TritonPythonModel

__all__ = ["TritonPythonModel"]
