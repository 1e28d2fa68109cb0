"""The Stable Diffusion tutorial: the picture spells what the model received."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "sd"))

from echo import Picture as TritonPythonModel

__all__ = ["TritonPythonModel"]
