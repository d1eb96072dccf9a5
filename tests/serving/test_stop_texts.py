"""A text that ends before the first stop text, however it is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwellmoe.serving.stop_texts import StopTexts

TEXTS = st.text("ab\n", max_size=30)


def written(pieces, stops):
    stop = StopTexts(stops)
    handed_on = [stop.add(piece) for piece in pieces]
    return "".join(handed_on) + stop.rest(), stop.found


@given(st.lists(TEXTS), st.text("ab\n", min_size=1, max_size=4))
def test_one_stop_text_ends_the_text_before_its_first_place(pieces, stop):
    text = "".join(pieces)
    assert written(pieces, [stop]) == (text.partition(stop)[0], stop in text)


@given(st.lists(TEXTS), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_of_several_none_is_handed_on(pieces, stops):
    text = "".join(pieces)
    found, ended = written(pieces, stops)
    assert text.startswith(found) and not any(stop in found for stop in stops)
    assert ended == any(stop in text for stop in stops) and (ended or found == text)


@pytest.mark.parametrize(
    ("piece", "now"), [("abc", "abc"), ("ab\n", "ab"), ("a\n\n", "a"), ("\n\n\n", "\n"), ("\n\nU", "")]
)
def test_only_what_may_begin_a_stop_text_is_held_back(piece, now):
    assert StopTexts(["\n\nUser"]).add(piece) == now
