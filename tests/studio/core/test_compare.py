"""Marks on differing words."""

from hypothesis import given
from hypothesis import strategies as st

from studio.core.compare import differing

lines = st.text(alphabet="ab cd\n.", max_size=60)


@given(lines, lines)
def test_nothing_is_lost_and_equal_answers_are_not_marked(first, second):
    left, right = differing(first, second)
    assert "".join(piece for piece, _ in left) == first and "".join(piece for piece, _ in right) == second
    assert not any(differs for _, differs in differing(first, first)[0])


def test_only_the_differing_words_are_marked():
    left, right = differing("A loaf costs $5.40, friend.", "A loaf costs three dollars, friend.")
    assert [p.strip() for p, d in left if d] == ["$5.40,"] and [p.strip() for p, d in right if d] == ["three dollars,"]


def test_answers_with_nothing_in_common_are_left_alone():
    assert differing("Ahoy there, mate", "The capital is Paris") == ([("Ahoy there, mate", False)], [("The capital is Paris", False)])
