"""A string that a regular expression matches: found in a text, or made, neither ever taking long."""

from __future__ import annotations

import re
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from serving import Refusal

CATEGORIES = {
    op.CATEGORY_DIGIT: "0",
    op.CATEGORY_WORD: "a",
    op.CATEGORY_SPACE: " ",
    op.CATEGORY_NOT_DIGIT: "a",
    op.CATEGORY_NOT_WORD: "-",
    op.CATEGORY_NOT_SPACE: "a",
}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ -_.,"
REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)
# The most characters and repetitions of what is made.
LONGEST = 20_000
# Python's matcher tries the ways one by one, and nothing can stop it: more than so many are not tried on longer texts.
WAYS, READ, SHORT = 300 * 300, 300, 16


def find(pattern: str, text: str) -> str | None:
    """Return the first part of a text that the whole pattern matches, if that can be told in time; Refusal if wrong."""
    parsed = _parse(pattern)
    ways = _ways(parsed)
    if ways > WAYS:
        return None
    found = re.search(pattern.removeprefix("^").removesuffix("$"), text[: READ if ways > READ + 1 else 2000])
    return found[0] if found and found[0] and re.search(pattern, found[0]) else None


def example(pattern: str, least: int = 0) -> str:
    """Return a string of at least `least` characters that matches; Refusal if the pattern is beyond this."""
    parsed = _parse(pattern)
    quick = _ways(parsed) <= WAYS
    for repeats in (0, 1, least):
        said = _Writer(repeats, pattern).sequence(parsed)
        if len(said) < least:
            continue
        if not quick and len(said) > SHORT:
            raise _refusal(pattern, "it is too intricate")
        if re.search(pattern, said):
            return said
    raise _refusal(pattern, "found no string that matches")


def _refusal(pattern: str, why: object) -> Refusal:
    return Refusal(f"Error generating stream: structured_outputs: the pattern {pattern[:100]!r}: {why}")


def _parse(pattern: str) -> Any:
    if len(pattern) > 5000:
        raise _refusal(pattern, "it is too long")
    try:
        re.compile(pattern)
        return parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise _refusal(pattern, error) from None


def _ways(parsed: Any) -> int:
    """How many ways there may be to match, at most: a repetition has one for each length, up to READ."""
    ways = 1
    for code, argument in parsed:
        if code in REPEATS:
            least, most, inner = argument
            within = _ways(inner)
            # Each round has the choice anew.
            ways *= WAYS + 1 if within > 1 and int(most) > 1 else (min(int(most), READ + least) - least + 1) * within
        elif code is op.BRANCH:
            ways *= sum(map(_ways, argument[1]))
        elif code is op.SUBPATTERN:
            ways *= _ways(argument[3])
        elif code is op.ATOMIC_GROUP:
            ways *= _ways(argument)
        elif code in (op.ASSERT, op.ASSERT_NOT):
            ways *= _ways(argument[1])
        ways = min(ways, WAYS + 1)
    return ways


class _Writer:
    """Writes a string, with so many repetitions where the pattern leaves it open."""

    def __init__(self, repeats: int, pattern: str) -> None:
        self.repeats = repeats
        self.pattern = pattern
        self.groups: dict[int, str] = {}
        self.left = LONGEST

    def sequence(self, parsed: Any) -> str:
        return "".join(self._one(code, argument) for code, argument in parsed)

    def _spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise _refusal(self.pattern, f"it asks for more than {LONGEST} characters")

    def _one(self, code: Any, argument: Any) -> str:
        self._spend(1)
        if code is op.LITERAL:
            return chr(argument)
        if code is op.NOT_LITERAL:
            return next(letter for letter in LETTERS if ord(letter) != argument)
        if code is op.ANY:
            return "a"
        if code is op.IN:
            return self._member(argument)
        if code in REPEATS:
            least, most, inner = argument
            count = min(max(least, self.repeats), int(most))
            self._spend(count)
            return "".join(self.sequence(inner) for _ in range(count))
        if code is op.SUBPATTERN:
            self.groups[argument[0]] = self.sequence(argument[3])
            return self.groups[argument[0]]
        if code is op.ATOMIC_GROUP:
            return self.sequence(argument)
        if code is op.BRANCH:
            return self.sequence(argument[1][0])
        if code is op.GROUPREF:
            said = self.groups.get(argument, "")
            self._spend(len(said))
            return said
        if code in (op.AT, op.ASSERT, op.ASSERT_NOT):
            return ""
        raise _refusal(self.pattern, f"{code} is not supported")

    def _member(self, items: list[Any]) -> str:
        if items[0][0] is op.NEGATE:
            for letter in LETTERS:
                if not any(_holds(item, letter) for item in items[1:]):
                    return letter
            raise _refusal(self.pattern, "it excludes every letter")
        code, argument = items[0]
        if code is op.RANGE:
            return chr(argument[0])
        return CATEGORIES[argument] if code is op.CATEGORY else chr(argument)


def _holds(item: Any, letter: str) -> bool:
    code, argument = item
    if code is op.RANGE:
        return bool(argument[0] <= ord(letter) <= argument[1])
    if code is op.LITERAL:
        return bool(ord(letter) == argument)
    tests = {
        op.CATEGORY_DIGIT: str.isdigit,
        op.CATEGORY_SPACE: str.isspace,
        op.CATEGORY_WORD: lambda each: each.isalnum() or each == "_",
    }
    if argument in tests:
        return bool(tests[argument](letter))
    opposite = {op.CATEGORY_NOT_DIGIT: op.CATEGORY_DIGIT, op.CATEGORY_NOT_SPACE: op.CATEGORY_SPACE}
    return not tests[opposite.get(argument, op.CATEGORY_WORD)](letter)
