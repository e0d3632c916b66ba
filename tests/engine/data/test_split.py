"""The held-out part depends on the rows' content alone."""

import hashlib

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.data.split import AT_LEAST, AT_MOST, held_out

fractions = st.floats(0.01, 0.5)


def digests(names) -> list[str]:
    return [hashlib.sha256(repr(name).encode()).hexdigest() for name in names]


def held(names, fraction) -> set:
    lots = digests(names)
    return {names[i] for i in held_out(lots, fraction)}


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(), min_size=18, max_size=400), st.sets(st.integers(), max_size=400), fractions)
def test_adding_rows_never_moves_a_learned_row_into_the_test(rows, more, fraction):
    before, after = held(sorted(rows), fraction), held(sorted(rows | more), fraction)
    assume(len(before) < len(rows) // 2)                       # where half of a small file is the bound, more rows raise that bound
    assert after & rows <= before


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(), max_size=3000), fractions)
def test_bounds(rows, fraction):
    count = len(held(sorted(rows), fraction))
    assert count <= min(AT_MOST, len(rows) // 2) and count >= min(AT_LEAST, len(rows) // 2)


def test_between_the_bounds_nothing_moves_at_all():
    names = list(range(1500))
    first, all_of_them = held(names[:300], 0.1), held(names, 0.1)
    assert AT_LEAST < len(first) and len(all_of_them) < AT_MOST and all_of_them & set(names[:300]) == first


@given(st.lists(st.integers(0, 30), max_size=200), fractions, st.randoms())
def test_order_does_not_matter_and_equal_rows_stand_on_one_side(rows, fraction, rng):
    lots = digests(rows)
    chosen = held_out(lots, fraction)
    assert not {lots[i] for i in chosen} & {lots[i] for i in range(len(lots)) if i not in chosen}
    shuffled = rng.sample(lots, len(lots))
    assert {lots[i] for i in chosen} == {shuffled[i] for i in held_out(shuffled, fraction)}


def test_none_when_none_is_wanted():
    assert held_out(digests(range(100)), 0.0) == set()
