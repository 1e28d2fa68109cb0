"""Contract models for speech to text: they hear tones, a word for each, or say what they received.

A tone of 200 + 40 · k Hz is the word "w<k>"; a tenth of a second is enough, and what does not change is one word. So a
wave that steps from tone to tone tests windows, overlap and resampling. "echo:" in TEXT_PREFIX gives what was received,
as JSON (echo.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sd"))

from echo import Once, OverlappingSpeech, needed, received
from serving import Refusal, Responses
from tensors import first

RATE = 16_000
BLOCK = RATE // 10
WINDOW = 30
SOFT = 0.005


def words(wave: NDArray[np.float32]) -> list[str]:
    """Return the words of a wave [samples] at 16 kHz."""
    blocks = wave[: len(wave) // BLOCK * BLOCK].reshape(-1, BLOCK)
    spectra = np.abs(np.fft.rfft(blocks * np.hanning(BLOCK), axis=1))
    tones = np.round((spectra.argmax(axis=1) * RATE / BLOCK - 200) / 40).astype(int)
    loud = np.sqrt(np.square(blocks).mean(axis=1)) > SOFT
    heard, last = [], None
    for tone, spoken in zip(tones.tolist(), loud.tolist(), strict=True):
        if spoken and tone != last:
            heard.append(f"w{tone}")
        last = tone if spoken else None
    return heard


def _wave(request: Any) -> NDArray[np.float32]:
    batch = needed(request, "WAV")
    [length] = np.ravel(needed(request, "WAV_LENS")).tolist()
    if len(batch) != 1:
        raise Refusal("Only support batch size 1")
    heard: NDArray[np.float32] = batch[0, :length]
    return heard


def _prefixed(request: Any, inputs: list[str]) -> list[str]:
    """Return the words, or the one that is an echo. Refusal for more than Whisper's window."""
    prefix = first(request, "TEXT_PREFIX")
    if prefix is None:
        raise Refusal("TEXT_PREFIX is missing from the request")
    wave = _wave(request)
    if len(wave) > WINDOW * RATE:
        raise Refusal(f"{len(wave) / RATE:.1f} s are more than the {WINDOW} s of a window")
    return [received(request, inputs).decode()] if "echo:" in prefix else words(wave)


def _text(said: str) -> Any:
    # Without the batch dimension, as published.
    return pb_utils.Tensor("TRANSCRIPTS", np.array([said.encode()], np.object_))


class Whisper(Once):
    """One answer per request."""

    def answer(self, request: Any) -> Any:
        return _text(" ".join(_prefixed(request, self.inputs)))


class CumulativeWhisper(OverlappingSpeech):
    """A response per word, each with all the text so far."""

    async def _answer(self, request: Any) -> Responses:
        said = _prefixed(request, self.inputs) or [""]
        for count in range(1, len(said) + 1):
            yield [_text(" ".join(said[:count]))], count == len(said)


class WavAsr(Once):
    """No prefix, any length, a batch of waves with their lengths."""

    def answer(self, request: Any) -> Any:
        waves, lengths = needed(request, "WAV"), np.ravel(needed(request, "WAV_LENS")).tolist()
        said = [[" ".join(words(wave[:length])).encode()] for wave, length in zip(waves, lengths, strict=True)]
        return pb_utils.Tensor("TRANSCRIPTS", np.array(said, np.object_))
