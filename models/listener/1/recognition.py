"""English speech to words by pocketsphinx and the en-us model that its package carries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pocketsphinx import Decoder

Floats = NDArray[np.float32]

RATE = 16_000
FRAME = RATE // 50
# A pause this long ends an utterance; the model was trained on utterances, not on paragraphs.
PAUSE = 15  # frames
LONGEST = 20 * 50  # frames
MARGIN = 8  # frames
# Softer than this share of the loudest frame is a pause.
SOFT = 0.04
LEVEL = 0.5
# The model knows recorded rooms. Synthetic speech is silent between its harmonics, and is heard far worse without this.
ROOM = 0.0015


class Recogniser:
    """One decoder, which takes one utterance at a time."""

    def __init__(self) -> None:
        # Means over the whole utterance and twice the Gaussians hear better than the defaults; a fifth of the active
        # states takes half their time and loses nothing.
        self.decoder = Decoder(samprate=RATE, loglevel="FATAL", cmn="batch", topn=8, maxhmmpf=6000)

    def transcribe(self, wave: Floats) -> str:
        """Return the words of a 16 kHz mono wave [samples], lower case, without punctuation; "" when there are none."""
        peak = float(np.abs(wave).max(initial=0.0))
        if not np.isfinite(peak) or peak < 1e-4:
            return ""
        wave = wave * np.float32(LEVEL / peak)
        heard = [self._utterance(wave[start:end]) for start, end in utterances(wave)]
        return " ".join(filter(None, heard))

    def _utterance(self, wave: Floats) -> str:
        room = np.random.default_rng(0).normal(0, ROOM, len(wave) + 2 * MARGIN * FRAME)
        room[MARGIN * FRAME : -MARGIN * FRAME] += wave
        samples = (np.clip(room, -1, 1) * 32767).astype("<i2")
        self.decoder.start_utt()
        self.decoder.process_raw(samples.tobytes(), False, True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return found.hypstr if found is not None else ""


def utterances(wave: Floats) -> list[tuple[int, int]]:
    """Return where the utterances of a wave start and end, in samples: what lies between two pauses."""
    frames = np.pad(wave, (0, -len(wave) % FRAME)).reshape(-1, FRAME)
    loudness = np.sqrt(np.square(frames).mean(axis=1))
    spoken = np.flatnonzero(loudness > SOFT * loudness.max())
    pieces: list[tuple[int, int]] = []
    for group in np.split(spoken, np.flatnonzero(np.diff(spoken) > PAUSE) + 1):
        start, end = int(group[0]), int(group[-1]) + 1
        while end - start > LONGEST:
            # Where nobody pauses, the softest moment of the second half is the best place to cut.
            half = start + LONGEST // 2
            cut = half + int(loudness[half : start + LONGEST].argmin())
            pieces.append((start, cut))
            start = cut
        pieces.append((start, end))
    last = len(frames)
    return [(max(start - MARGIN, 0) * FRAME, min(end + MARGIN, last) * FRAME) for start, end in pieces]
