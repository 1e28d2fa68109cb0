"""A text-in embedding model: the vector spells the text."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "sd"))

from echo import EmbedText as TritonPythonModel

__all__ = ["TritonPythonModel"]
