"""A token-in embedding model: each hidden state says which token it stands for."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "sd"))

from echo import OnnxEmbed as TritonPythonModel

__all__ = ["TritonPythonModel"]
