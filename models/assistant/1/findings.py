"""What a sentence names: numbers, dates, addresses, quotations, places; and which of it fits a JSON schema property."""

from __future__ import annotations

import re
from typing import Any

MISSING: Any = object()

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\d)")
DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}\b")
MOMENT = re.compile(r"\b\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(?::\d{2})?(?:Z|[+-]\d{2}:\d{2})?")
CLOCK = re.compile(r"\b\d{1,2}:\d{2}(?::\d{2})?\b")
DAY = re.compile(
    r"\b(today|tomorrow|yesterday|tonight|monday|tuesday|wednesday|thursday|friday|saturday|sunday)\b", re.I
)
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
ADDRESS = re.compile(r"https?://[^\s\"'<>]+[^\s\"'<>.,;!?)]")
QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|(?<!\w)'([^']+)'(?!\w)|`([^`]+)`")
WORD = r"[A-ZÀ-ÞŁ-Ž][\w’'-]*"
NAME = re.compile(rf"\b{WORD}(?:\s+(?:(?:de|da|do|del|la|von|van)\s+)?{WORD})*")
AFTER = r"\b(?:in|at|near|for|of|about)\s+(?:the\s+)?([\w-]+)"
# Words that open a sentence with a capital and name nothing.
OPENERS = frozenset(
    """
    a an and answer are at book calculate call can check compare compute convert could create current do
    does draw extract find for from get give has have hello hey hi how i i'm if in is it json let list look
    make me my no of on or order play please remind return schedule search see send set show tell that the
    then there this to translate use was we weather what what's whats when where which who who's why will
    would write yes you your
    """.split()
)
WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
FORMATS = {"date": DATE, "date-time": MOMENT, "time": CLOCK, "email": EMAIL, "uri": ADDRESS, "url": ADDRESS}
ORIGIN = frozenset({"from", "origin", "source", "departure", "start"})
DESTINATION = frozenset({"to", "destination", "target", "arrival", "recipient"})


class Findings:
    """The values that a text holds, each given out once, in their order."""

    def __init__(self, text: str, *, guess: bool = True) -> None:
        self.text = text
        # Whether "in paris" may name something without a capital or quotes.
        self.guess = guess
        self.taken = 0
        self.quotes = ["".join(groups) for groups in QUOTED.findall(text)]
        self.names = _names(QUOTED.sub(" ", text))
        bare = EMAIL.sub(" ", ADDRESS.sub(" ", CLOCK.sub(" ", DATE.sub(" ", text))))
        spelled = re.sub(
            r"\b(" + "|".join(WORDS) + r")\b", lambda found: str(WORDS[found[1].lower()]), bare, flags=re.I
        )
        self.numbers = [float(number) for number in NUMBER.findall(spelled)]

    def find(self, name: str, schema: dict[str, Any]) -> Any:
        """Return the value in the text for a property of this name and simple schema, or MISSING."""
        value = self._find(name, schema)
        self.taken += value is not MISSING
        return value

    def _find(self, name: str, schema: dict[str, Any]) -> Any:
        if isinstance(schema.get("enum"), list):
            return self._mentioned(schema["enum"])
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((entry for entry in kind if entry != "null"), None)
        if kind in ("integer", "number"):
            return self._number(name, kind == "integer")
        if kind == "boolean":
            return self._truth(name)
        if kind == "string":
            return self._string(name, schema)
        return MISSING

    def _mentioned(self, choices: list[Any]) -> Any:
        for choice in choices:
            if isinstance(choice, str) and re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", self.text, re.I):
                return choice
        return MISSING

    def _number(self, name: str, whole: bool) -> Any:
        words = "|".join(map(re.escape, _words(name)))
        beside = re.search(
            rf"(-?\d+(?:\.\d+)?)\s+(?:{words})\b|\b(?:{words})\W+(?:is|of|=)?\s*(-?\d+(?:\.\d+)?)", self.text
        )
        value = float(beside[1] or beside[2]) if beside else self.numbers[0] if self.numbers else None
        if value is None or (whole and value != int(value)):
            return MISSING
        if value in self.numbers:
            self.numbers.remove(value)
        return int(value) if whole or value == int(value) else value

    def _truth(self, name: str) -> Any:
        words = "|".join(map(re.escape, _words(name)))
        found = re.search(rf"(\b(?:no|not|without|never|don't)\s+(?:\w+\s+)?)?\b(?:{words})\b", self.text, re.I)
        return MISSING if not found else not found[1]

    def _string(self, name: str, schema: dict[str, Any]) -> Any:
        words = set(_words(name))
        pattern = FORMATS.get(str(schema.get("format")))
        if pattern:
            found = pattern.search(self.text)
            return found[0] if found else MISSING
        stated = re.search(rf"\b{re.escape(name)}\s*(?::|=|\bis\b)\s*[\"“']?([^\"”',.;\n]+)", self.text, re.I)
        if stated:
            return stated[1].strip()
        special = self._special(words)
        if special is not None:
            return special
        for phrases in (self.quotes, self.names):
            if phrases:
                return phrases.pop(0)
        after = re.search(AFTER, self.text) if self.guess and self.taken == 0 else None
        return after[1] if after else MISSING

    def _special(self, words: set[str]) -> str | None:
        for names, pattern in ((("email", "mail"), EMAIL), (("url", "link", "uri"), ADDRESS), (("time",), CLOCK)):
            found = pattern.search(self.text)
            if found and words.intersection(names):
                return found[0]
        if words & {"date", "day", "when"}:
            found = DATE.search(self.text) or DAY.search(self.text)
            return found[0] if found else None
        for roles, preposition in ((ORIGIN, "from"), (DESTINATION, "to")):
            found = re.search(rf"\b{preposition}\s+({NAME.pattern})", self.text) if words & roles else None
            if found:
                if found[1] in self.names:
                    self.names.remove(found[1])
                return found[1]
        if words & {"query", "question", "prompt", "message", "text", "expression"}:
            return self.quotes[0] if self.quotes else self.text
        return None


def _words(name: str) -> list[str]:
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    return [word.lower() for word in re.split(r"[\W_]+", spaced) if word] or [name]


def _names(text: str) -> list[str]:
    names = []
    for phrase in NAME.findall(text):
        words = phrase.split()
        while words and words[0].lower() in OPENERS:
            words.pop(0)
        if words and not DAY.fullmatch(words[0]):
            names.append(re.sub(r"['’]s$", "", " ".join(words)))
    return list(dict.fromkeys(names))
