"""Stop sequences trimmed from a text: fed whole, in pieces and one character at a time, with the same result."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstream.stops import StopTrimmer


def trim(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    """What was given out for each piece and at the end, and whether a stop sequence was met."""
    trimmer = StopTrimmer(stops)
    given = [trimmer.feed(piece) for piece in pieces]
    return [*given, trimmer.flush()], trimmer.stopped


@pytest.mark.parametrize(
    ("stops", "pieces", "given", "stopped"),
    [
        (["END"], ["a", "b"], ["a", "b", ""], False),
        (["END"], ["a END b", "c"], ["a ", "", ""], True),
        (["END"], ["aE", "N", "D", "b"], ["a", "", "", "", ""], True),
        (["END"], ["aE", "x"], ["a", "Ex", ""], False),
        (["END"], ["aEN"], ["a", "EN"], False),
        (["END"], ["E", "E", "END"], ["", "E", "E", ""], True),
        (["\n\n"], ["a\n", "\nb"], ["a", "", ""], True),
        (["好的"], ["你好", "的"], ["你", "", ""], True),
        (["aab"], ["aaa", "b"], ["a", "", ""], True),
        (["x", "longer"], ["a longx"], ["a long", ""], True),
        (["abc", "bc"], ["abc"], ["", ""], True),
    ],
)
def test_what_is_given_out(stops: list[str], pieces: list[str], given: list[str], stopped: bool) -> None:
    assert trim(stops, pieces) == (given, stopped)


LETTERS = st.text("ab\n你", max_size=12)
STOPS = st.lists(st.text("ab\n你", min_size=1, max_size=5), min_size=1, max_size=4)


@given(STOPS, st.lists(LETTERS, max_size=6))
def test_the_cut_of_the_pieces_does_not_matter(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    whole, stopped = trim(stops, [text])
    for cut in (pieces, list(text)):
        given, also = trim(stops, cut)
        assert ("".join(given), also) == ("".join(whole), stopped)


@given(STOPS, LETTERS)
def test_the_first_stop_to_be_complete_ends_the_text(stops: list[str], text: str) -> None:
    given, stopped = trim(stops, [text])
    said = "".join(given)
    assert stopped == any(stop in text for stop in stops)
    if stopped:
        end = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert text[len(said) : end] in stops
        assert not any(stop in text[: end - 1] for stop in stops)
    else:
        assert said == text
