"""The plot paints what it is given: lines in their colours, gaps as gaps, round numbers in the language, words at a mark."""

from __future__ import annotations

import math

import pytest
from PySide6.QtCore import QPointF

from studio.core import text as language
from studio.views import theme
from studio.views.plot import Line, Mark, Plot, _round


@pytest.fixture
def plot(qtbot, qapp):
    theme.apply(qapp, "light")
    made = Plot(Line("curve_unseen", 2, x=[0, 1, 2, 3, 4], y=[0.5, 0.5, math.nan, 0.5, 0.5]), below="step")
    made.across = (0, 4)
    qtbot.addWidget(made)
    made.resize(500, 240)
    made.show()
    yield made
    theme.apply(qapp, "light")
    language.use("en")


def colors(plot, x, y, reach=2):
    """What stands around a point."""
    image, middle = plot.grab().toImage(), plot.at(x, y).toPoint()
    return {image.pixelColor(middle.x() + dx, middle.y() + dy).name() for dx in range(-reach, reach + 1) for dy in range(-reach, reach + 1)}


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_line_has_its_colour_and_a_gap_is_a_gap(plot, qapp, mode):
    theme.apply(qapp, mode)
    blue = theme.tokens().curve_unseen
    assert blue in colors(plot, 0.6, 0.5) and blue in colors(plot, 3.4, 0.5)
    assert blue not in colors(plot, 2.0, 0.5) and blue not in colors(plot, 0.6, 0.9)


def test_what_leaves_the_picture_is_cut_off(plot):
    plot.lines[0].y = [-5.0, -5.0, -5.0, -5.0, -5.0]
    assert theme.tokens().curve_unseen not in colors(plot, 2, 0.0, reach=1)


def test_a_ring_a_mark_and_an_upright_can_be_seen(plot):
    plot.lines = ()
    plot.ring, plot.upright, plot.marks = (1, 0.7), 3.0, [Mark(2, "saved", loud=True)]
    assert theme.tokens().curve_unseen in colors(plot, 1, 0.7, reach=7)
    assert theme.tokens().text in colors(plot, 3, 0.5, reach=6)
    assert theme.tokens().accent in colors(plot, 2, 0.0, reach=6)


def test_a_mark_tells_what_happened_where_it_stands(plot):
    plot.marks = [Mark(1, "saved"), Mark(3, "memory repaired")]
    assert plot.words_at(plot.at(3, 0) + QPointF(3, 4)) == "memory repaired"
    assert plot.words_at(plot.at(2, 0)) == "" and plot.words_at(plot.at(3, 0.8)) == ""


def test_heights_are_written_as_the_language_does(plot):
    assert "0.4" in [words for _, words in plot._heights()]
    language.use("de")
    assert "0,4" in [words for _, words in plot._heights()]


@pytest.mark.parametrize("up, expected", [((-2.1, 0), ["0.01", "0.1", "1"]), ((-0.1, 1.1), ["1", "2", "5", "10"]), ((0.3, 0.5), ["2", "2.5", "3"]),
                                          ((-8, 0), ["1e-08", "1e-06", "0.0001", "0.01", "1"])])
def test_heights_of_logarithms_are_round_too(plot, up, expected):
    plot.logarithmic, plot.up = True, up
    assert [words for _, words in plot._heights()] == expected


@pytest.mark.parametrize("low, high, most, expected", [(0, 10, 5, [0, 2, 4, 6, 8, 10]), (0.13, 0.29, 4, [0.15, 0.2, 0.25]), (-3, 3, 2, [0])])
def test_round_numbers(low, high, most, expected):
    assert list(_round(low, high, most)) == pytest.approx(expected)
