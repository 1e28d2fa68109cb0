"""How far a long command is: a bar on a terminal, a line every few seconds elsewhere, both on stderr."""

import shutil
import sys
from time import monotonic
from typing import Self, TextIO

REDRAW, REPEAT = 0.1, 5.0
"""Seconds between two states of the bar, and between two lines."""
MOST = 30
"""Characters of the bar."""


class Progress:
    """Called with the stage, what is done and the total, all in `unit`, as often as it is convenient."""

    def __init__(self, unit: str, stream: TextIO | None = None) -> None:
        self._unit, self._stream = unit, stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._pause = REDRAW if self._terminal else REPEAT
        self._begun = self._shown = monotonic()
        self._first: tuple[str, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            self._write("\r\x1b[K")

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = monotonic()
        work = stage.partition(" ")[0]
        if self._first is None or self._first[0] != work:  # what an interrupted copy had done is none of our speed
            self._first, self._begun = (work, done), now
        if now - self._shown < self._pause:
            return
        self._shown = now
        rate = (done - self._first[1]) / (now - self._begun) if now > self._begun else 0
        share = done / total if total else 1.0
        text = f"{stage}  {share:4.0%}  {done:,} of {total:,} {self._unit}, {rate:,.0f}/s"
        if not self._terminal:
            self._write(f"{text}\n")
            return
        columns = shutil.get_terminal_size().columns - 1
        width = min(MOST, columns - len(text) - 3)
        bar = f"[{'#' * round(width * share):-<{width}}] " if width > 0 else ""
        self._write(f"\r\x1b[K{(bar + text)[:columns]}")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
