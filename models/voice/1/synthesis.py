"""espeak-ng through ctypes: text to a wave, one caller at a time, for the library keeps its state in globals."""

from __future__ import annotations

import ctypes
import itertools
import re
from dataclasses import dataclass

import espeakng_loader
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# From speak_lib.h.
SYNCHRONOUS, UTF8, OK = 2, 1, 0
RATE, PITCH, PITCH_RANGE = 1, 3, 4
SLOWEST = 80  # words a minute; below it espeak-ng grows no slower
FASTEST_SPEED, SLOWEST_SPEED = 4.0, 0.25
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
# A sentence ends at its mark and a space, or at a line's end; a long one is also cut at a pause within.
SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|\s*\n\s*|(?<=[。！？])")
CLAUSE = re.compile(r"(?<=[,;:—，；、])\s*")
LONG = 240  # characters


class _Listed(ctypes.Structure):
    """espeak_VOICE of speak_lib.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),
        ("identifier", ctypes.c_char_p),
        ("gender_age_variant", ctypes.c_ubyte * 4),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


@dataclass(frozen=True)
class Voice:
    """A language, the espeak-ng variant that gives it timbre, pitch and range (0–99), and words a minute."""

    language: str
    variant: str
    pitch: int
    pitch_range: int
    pace: int


# OpenAI's names, each a voice of its own. The pace is what the listener hears best.
VOICES = {
    "alloy": Voice("en-us", "klatt3", 50, 50, 170),
    "ash": Voice("en-us", "m3", 42, 50, 165),
    "ballad": Voice("en-us", "m7", 46, 65, 150),
    "cedar": Voice("en-us", "m1", 30, 45, 155),
    "coral": Voice("en-us", "f2", 55, 60, 165),
    "echo": Voice("en-us", "", 50, 70, 160),
    "fable": Voice("en-gb", "m5", 52, 60, 160),
    "marin": Voice("en-us", "f4", 52, 50, 160),
    "nova": Voice("en-us", "f5", 55, 60, 165),
    "onyx": Voice("en-us", "m2", 22, 35, 150),
    "sage": Voice("en-us", "f3", 45, 50, 155),
    "shimmer": Voice("en-us", "f1", 65, 60, 165),
    "verse": Voice("en-us", "klatt4", 45, 60, 160),
}


class Synthesiser:
    """The library with its data. Every call must come from one thread."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int),
            *(ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p),
        ]
        self.rate = self._library.espeak_Initialize(SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if self.rate <= 0:
            raise RuntimeError("espeak-ng does not find its data")
        self._files = self._list_languages()
        self._chunks: list[bytes] = []
        # Kept, for the library holds no reference of its own.
        self._callback = CALLBACK(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def speaks(self, language: str) -> bool:
        """Whether espeak-ng has this language, or that of its region: de-AT is spoken as de."""
        return self._file(language) is not None

    def say(self, text: str, voice: Voice, language: str, speed: float) -> Floats:
        """Return the wave [samples] of a text, −1 to 1, at `rate` Hz. RuntimeError when espeak-ng fails."""
        name = f"{self._file(language)}+{voice.variant}" if voice.variant else self._file(language) or ""
        pace = voice.pace * speed
        if self._library.espeak_SetVoiceByName(name.encode()) != OK:
            raise RuntimeError(f"espeak-ng has no {language!r}")
        for parameter, value in ((RATE, max(pace, SLOWEST)), (PITCH, voice.pitch), (PITCH_RANGE, voice.pitch_range)):
            self._library.espeak_SetParameter(parameter, round(value), 0)
        data = text.replace("\0", " ").encode()
        self._chunks.clear()
        if self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, UTF8, None, None) != OK:
            raise RuntimeError("espeak-ng could not speak the text")
        wave = np.frombuffer(b"".join(self._chunks), "<i2").astype(np.float32) / 32768
        return stretch(wave, SLOWEST / pace, self.rate) if pace < SLOWEST else wave

    def _file(self, language: str) -> str | None:
        code = language.lower()
        return self._files.get(code) or self._files.get(code.partition("-")[0])

    def _list_languages(self) -> dict[str, str]:
        """Return the file of each language code: that with the smallest priority number where several know it."""
        self._library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Listed))
        listed = self._library.espeak_ListVoices(None)
        best: dict[str, tuple[int, str]] = {}
        for voice in itertools.takewhile(bool, (listed[index] for index in itertools.count())):
            at = voice.contents.languages
            # Pairs of a priority byte and a code, until a priority of 0.
            while priority := ctypes.string_at(at, 1)[0]:
                code = ctypes.string_at(at + 1).decode()
                at += len(code) + 2
                best[code] = min(best.get(code, (256, "")), (priority, voice.contents.identifier.decode()))
        return {code: file for code, (_, file) in best.items()}

    def _receive(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: int) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0


def sentences(text: str) -> list[str]:
    """Return the text in the pieces that are spoken one by one: sentences, and the clauses of a long one."""
    pieces: list[str] = []
    for sentence in filter(None, (part.strip() for part in SENTENCE.split(text))):
        if len(sentence) <= LONG:
            pieces.append(sentence)
        else:
            pieces += _clauses(sentence)
    return pieces


def _clauses(sentence: str) -> list[str]:
    pieces = [""]
    for clause in CLAUSE.split(sentence):
        if pieces[-1] and len(pieces[-1]) + len(clause) > LONG:
            pieces.append("")
        pieces[-1] = f"{pieces[-1]} {clause}".strip()
    return pieces


def stretch(wave: Floats, factor: float, rate: int) -> Floats:
    """Return the wave `factor` times as long at the same pitch, by WSOLA (Verhelst and Roelands, 1993)."""
    frame = rate // 25
    hop, reach = frame // 2, rate // 100
    window = np.hanning(frame).astype(np.float32)
    count = max(int(len(wave) * factor) // hop, 1)
    padded = np.pad(wave, (reach, frame + 2 * reach))
    out = np.zeros(count * hop + frame, np.float32)
    follows = padded[reach : reach + frame]
    for index in range(count):
        start = min(int(index * hop / factor), len(wave))
        around = padded[start : start + frame + 2 * reach]
        best = int(np.correlate(around, follows, "valid").argmax())
        out[index * hop : index * hop + frame] += window * around[best : best + frame]
        follows = padded[start + best + hop : start + best + hop + frame]
        follows = np.pad(follows, (0, frame - len(follows)))
    return out
