"""Laws of growing curves: nothing that stands out is lost, few points are drawn, a rewind rewrites."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.core.series import FACTOR, Series, Smooth

numbers = st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), min_size=1, max_size=400)


def filled(y) -> Series:
    series = Series()
    for step, value in enumerate(y):
        series.append(step, value)
    return series


@given(numbers)
@settings(deadline=None, max_examples=40)
def test_one_by_one_is_the_same_as_all_at_once(y):
    whole = Series()
    whole.extend(range(len(y)), y)
    single = filled(y)
    for width in (1, 7, 1000):
        for one, other in zip(single.window(0, len(y), width), whole.window(0, len(y), width), strict=True):
            assert np.array_equal(one, other, equal_nan=True)


@given(numbers, st.integers(1, 60), st.data())
@settings(deadline=None, max_examples=60)
def test_a_window_keeps_every_extreme_in_few_points(y, width, data):
    left = data.draw(st.integers(0, len(y) - 1))
    right = data.draw(st.integers(left, len(y) - 1))
    x, shown = filled(y).window(left, right, width)
    inside = np.array(y[left:right + 1])
    assert len(x) == len(shown) and len(shown) <= max(2 * (width + 2), FACTOR)
    if np.any(np.isfinite(inside)):
        assert np.nanmin(shown) <= np.nanmin(inside) and np.nanmax(shown) >= np.nanmax(inside)
        assert set(shown[np.isfinite(shown)]) <= set(y)
    assert np.all(np.diff(x) >= 0)


@given(numbers, st.integers(0, 400))
@settings(deadline=None, max_examples=40)
def test_going_back_forgets_what_came_after(y, back):
    back = min(back, len(y) - 1)
    series = filled(y)
    series.append(back, 42.0)
    expected = filled([*y[:back], 42.0])
    assert series.x[-1] == back and len(series) == back + 1
    for one, other in zip(series.window(0, back, 5), expected.window(0, back, 5), strict=True):
        assert np.array_equal(one, other, equal_nan=True)


def test_a_million_points_are_few_on_the_screen_and_a_single_peak_stays():
    series, y = Series(), np.zeros(1_000_000)
    y[765_432] = 9.0
    series.extend(np.arange(len(y)), y)
    x, shown = series.window(0, 1e6, 900)
    assert len(shown) <= 1800 and shown.max() == 9.0
    assert abs(x[shown.argmax()] - 765_432) < 5000
    series.append(1_000_000, -3.0)
    assert series.window(0, 1e6 + 1, 900)[1].min() == -3.0


@given(st.integers(0, 500), st.integers(1, 90))
@settings(deadline=None, max_examples=40)
def test_a_calm_curve_is_thinned_evenly_and_ends_where_it_ends(count, points):
    x, y = filled(range(count)).thinned(points)
    assert len(x) == len(y) <= points and np.array_equal(x, y) and (count == 0) == (len(x) == 0)
    assert count == 0 or (x[-1] == count - 1 and len(set(np.diff(x))) <= 1)


def test_the_best_point_is_the_first_lowest_number():
    assert Series().best() is None and filled([np.nan]).best() is None
    assert filled([3, 2, np.nan, 1, 1]).best() == (3.0, 1.0)


@pytest.mark.parametrize("x", [[1, 1], [2, 1], [1, 2, 3]])
def test_steps_that_do_not_ascend_are_refused(x):
    with pytest.raises(ValueError):
        Series().extend(x, [0.0, 0.0])


@given(st.lists(st.floats(0, 10), min_size=1, max_size=50), st.integers(0, 49))
@settings(deadline=None, max_examples=40)
def test_the_calm_line_stays_among_its_values_and_follows_a_rewind(y, back):
    smooth, again = Smooth(), Smooth()
    for step, value in enumerate(y):
        smooth.append(step, value)
    assert min(y) - 1e-9 <= smooth.series.y.min() and smooth.series.y.max() <= max(y) + 1e-9
    assert smooth.series.y[0] == y[0]
    back = min(back, len(y) - 1)
    smooth.append(back, 5.0)
    for step, value in enumerate([*y[:back], 5.0]):
        again.append(step, value)
    assert np.allclose(smooth.series.y, again.series.y)
