"""Spark-TTS: the wave in chunks, to be cross-faded where they overlap."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "sd"))

from echo import OverlappingSpeech as TritonPythonModel

__all__ = ["TritonPythonModel"]
