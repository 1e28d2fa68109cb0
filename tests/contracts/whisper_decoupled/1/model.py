"""TensorRT-LLM's whisper_bls, decoupled: each response repeats the text so far."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "whisper"))

from hearing import CumulativeWhisper as TritonPythonModel

__all__ = ["TritonPythonModel"]
