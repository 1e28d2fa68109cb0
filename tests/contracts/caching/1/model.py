"""The vLLM backend's tensors, and one that counts how many of the prompt's tokens were in the cache.

All but two; a hundred more than there are where the prompt says "miscount".
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "vllm"))

import numpy as np
import triton_python_backend_utils as pb_utils
from contract import Progress, Vllm
from serving import Tensors


class TritonPythonModel(Vllm):
    """As Vllm."""

    def respond(self, request: Any, progress: Progress, streaming: bool) -> Tensors:
        count = progress.prompt_tokens + (100 if "miscount" in progress.prompt else -2)
        cached = pb_utils.Tensor("num_cached_tokens", np.array([count], np.uint32))
        return [*super().respond(request, progress, streaming), cached]
