"""A short string that a regular expression matches."""

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


def example(pattern: str, least: int = 0) -> str:
    """Return a string of at least `least` characters that matches; Refusal if the pattern is beyond this."""
    try:
        parsed = parser.parse(pattern)
        for repeats in (0, 1, least):
            said = _sequence(parsed, repeats, {})
            if len(said) >= least and re.search(pattern, said):
                return said
    except (re.error, KeyError, OverflowError) as error:
        raise Refusal(f"Error generating stream: the pattern {pattern!r}: {error}") from None
    raise Refusal(f"Error generating stream: found no string for the pattern {pattern!r}")


def _sequence(parsed: Any, repeats: int, groups: dict[int, str]) -> str:
    return "".join(_one(code, argument, repeats, groups) for code, argument in parsed)


def _one(code: Any, argument: Any, repeats: int, groups: dict[int, str]) -> str:
    if code is op.LITERAL:
        return chr(argument)
    if code is op.NOT_LITERAL:
        return next(letter for letter in LETTERS if ord(letter) != argument)
    if code is op.ANY:
        return "a"
    if code is op.IN:
        return _member(argument)
    if code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
        least, most, inner = argument
        return "".join(_sequence(inner, repeats, groups) for _ in range(min(max(least, repeats), int(most))))
    if code is op.SUBPATTERN:
        groups[argument[0]] = _sequence(argument[3], repeats, groups)
        return groups[argument[0]]
    if code is op.ATOMIC_GROUP:
        return _sequence(argument, repeats, groups)
    if code is op.BRANCH:
        return _sequence(argument[1][0], repeats, groups)
    if code is op.GROUPREF:
        return groups[argument]
    if code in (op.AT, op.ASSERT, op.ASSERT_NOT):
        return ""
    raise KeyError(f"{code} is not supported")


def _member(items: list[Any]) -> str:
    if items[0][0] is op.NEGATE:
        excluded = items[1:]
        return next(letter for letter in LETTERS if not any(_holds(item, letter) for item in excluded))
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
