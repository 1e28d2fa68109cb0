"""F5-TTS: one wave that spells what the model received."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "sd"))

from echo import Speech as TritonPythonModel

__all__ = ["TritonPythonModel"]
