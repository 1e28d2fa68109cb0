"""Triton's python model around the sampler and its decoder: words to pictures."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2] / "assistant" / "1")]

import latent
from sampler import sample
from scene import draw
from tensors import values
from words import read as read_words

SMALLEST, LARGEST = 64, 2048
# The default and the limits of each setting.
SETTINGS = {
    "steps": (20, 1, 200),
    "guidance_scale": (5.0, 0.0, 30.0),
    "height": (512, SMALLEST, LARGEST),
    "width": (512, SMALLEST, LARGEST),
}


class TritonPythonModel:
    """`prompt` BYTES [n,1] and its settings to `generated_image` UINT8 [n,height,width,3]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Nothing to load: the distribution is drawn up from the words."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Draw one picture after the other."""
        return [_respond(request) for request in requests]


def _respond(request: Any) -> Any:
    prompts = values(request, "prompt")
    # Triton only counts the inputs of a request: an optional one can stand in for the prompt.
    if prompts is None:
        return _refusal("prompt is missing")
    settings = {}
    for name, (default, least, most) in SETTINGS.items():
        given = values(request, name) or [default] * len(prompts)
        if not all(least <= value <= most for value in given):
            return _refusal(f"{name} must be between {least} and {most}")
        settings[name] = given
    if len(set(settings["height"])) > 1 or len(set(settings["width"])) > 1:
        return _refusal("the pictures of one batch must have one size")
    negatives = values(request, "negative_prompt") or [""] * len(prompts)
    seeds = values(request, "seed") or [-1] * len(prompts)
    pictures = [
        _picture(prompt, negative, seed, *own)
        for prompt, negative, seed, *own in zip(prompts, negatives, seeds, *settings.values(), strict=True)
    ]
    return pb_utils.InferenceResponse([pb_utils.Tensor("generated_image", np.stack(pictures))])


def _picture(
    prompt: str, negative: str, seed: int, steps: int, guidance: float, height: int, width: int
) -> NDArray[np.uint8]:
    wanted, unwanted = read_words(prompt), read_words(negative)
    seed = seed if seed >= 0 else secrets.randbits(63)
    clean = sample(latent.mixture(wanted, unwanted), latent.opposite(wanted, unwanted), seed, steps, guidance)
    return draw(latent.read(clean), wanted, height, width)


def _refusal(message: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
