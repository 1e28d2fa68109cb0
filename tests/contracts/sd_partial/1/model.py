"""A decoupled image model: NCHW floats from 0 to 1; red grows to its whole with each response, green is seed / 255.

The prompt "none" ends it without a picture, "fail:" and a reason with an error after the first partial picture.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "models" / "assistant" / "1"))

from tensors import first


class TritonPythonModel:
    """`prompt`, `seed` and `partial_images` to `image` FP32 [1,3,8,16], once for each step."""

    def execute(self, requests: list[Any]) -> None:
        """Answer one after the other."""
        for request in requests:
            self._draw(request)

    def _draw(self, request: Any) -> None:
        sender = request.get_response_sender()
        prompt = first(request, "prompt", "")
        steps = 0 if prompt == "none" else 1 + first(request, "partial_images", 0)
        for step in range(1, steps + 1):
            if step == 2 and prompt.startswith("fail:"):
                error = pb_utils.TritonError(prompt.removeprefix("fail:"))
                sender.send(pb_utils.InferenceResponse(error=error))
                break
            picture = np.zeros((1, 3, 8, 16), np.float32)
            picture[:, 0] = step / steps
            picture[:, 1] = first(request, "seed", 0) / 255
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("image", picture)]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
