"""The pipeline tutorial: a picture in floats from 0 to 255."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "sd"))

from echo import FloatPicture as TritonPythonModel

__all__ = ["TritonPythonModel"]
