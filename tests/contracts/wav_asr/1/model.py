"""A recogniser without a prefix: sherpa, WeNet, FunASR."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "whisper"))

from hearing import WavAsr as TritonPythonModel

__all__ = ["TritonPythonModel"]
