"""Joins the transcripts of windows that overlap in time, so that what both heard is said once."""

import re
from typing import Final

_REACH: Final = 64  # words of either text that an overlap can hold; 5 s of fast speech are about 25
_CONTEXT: Final = 1024  # characters that may still meet the next window's
_UNSPACED: Final = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Thai to Han
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:['’-][^\W_{_UNSPACED}]+)*")


class Stitcher:
    """Takes the texts of windows in their order and gives back what no later one can change any more."""

    def __init__(self) -> None:
        self._last = ""  # the last that was given back: what comes after silence stands beside it
        self._said = ""  # the end of what was given back, as far as no silence has followed
        self._held = ""

    def feed(self, text: str) -> str:
        """The rest of the window before this one, up to the seam between the two, with the space that it needs."""
        text = text.strip()
        if text and (self._said or self._held):
            before, self._held = seam(self._said + self._held, text)
            settled = before[len(self._said) :]
            self._said = before[-_CONTEXT:]
        else:
            settled, self._said, self._held = self._held, "", text
            before = settled or self._last
            if before and text:
                self._held = _space(before, text) + text
        self._last = settled or self._last
        return settled

    def finish(self) -> str:
        """The same for the last window."""
        return self.feed("")


def stitch(before: str, after: str) -> str:
    """`before` followed by `after`, the words that end the one and begin the other kept once; see `seam`."""
    before, after = before.rstrip(), after.lstrip()
    return "".join(seam(before, after)) if before and after else before or after


def seam(before: str, after: str) -> tuple[str, str]:
    """What stays of two texts when the words that end the one and begin the other are kept once; together, the whole.

    A window's edge cuts words, so up to as many words as agree may be dropped between them; case and punctuation are
    not compared. Where nothing agrees, the texts are put side by side. Scripts without spaces go by characters.
    """
    ending = list(_WORD.finditer(before))[-_REACH:]
    opening = list(_WORD.finditer(after[: _REACH * 64]))[:_REACH]
    match = _overlap([word[0].casefold() for word in ending], [word[0].casefold() for word in opening])
    if match is None:
        return before, _space(before, after) + after
    left, right = match
    return before[: ending[left - 1].end()], after[opening[right - 1].end() :]


def _overlap(ending: list[str], opening: list[str]) -> tuple[int, int] | None:
    """How many words of each to keep and to skip: the ends of the best common run, by its length less what it drops."""
    best: tuple[int, int] | None = None
    best_score = -1
    runs = [0] * (len(opening) + 1)
    for i, word in enumerate(ending, 1):
        previous = runs
        runs = [0] * (len(opening) + 1)
        for j, other in enumerate(opening, 1):
            if word != other:
                continue
            length = runs[j] = previous[j - 1] + 1
            dropped = len(ending) - i + j - length
            allowed = length if length > 1 else 0
            if dropped <= allowed and length - dropped > best_score:
                best, best_score = (i, j), length - dropped
    return best


def _space(before: str, after: str) -> str:
    unspaced = re.compile(rf"[{_UNSPACED}\u3000-\u3004\uff00-\uffef]")
    return "" if unspaced.match(before[-1]) or unspaced.match(after[0]) else " "
