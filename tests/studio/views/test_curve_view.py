"""The curve, its table twin and its sentence tell the same."""

import math

import pytest

from studio.core import text as studio_text
from studio.models.series_table import EVENT, LEARNED, UNSEEN
from studio.views import a11y, theme
from studio.views.curve_view import NOTHING, PLOT, TABLE, CurveView


@pytest.fixture
def curve(qtbot, qapp):
    theme.apply(qapp, "light")
    made = CurveView()
    qtbot.addWidget(made)
    made.resize(600, 320)
    return made


def feed(curve, steps=40):
    curve.unseen(0, 3.0)
    for step in range(1, steps + 1):
        curve.learned(step, 3.0 - 0.04 * step)
        if step % 10 == 0:
            curve.unseen(step, 3 - 0.05 * step + 0.0012 * step * step)
            curve.mark(step, "saved")


def column(curve, number):
    return [curve.table.index(row, number).data() for row in range(curve.table.rowCount())]


def test_nothing_is_loaded_or_drawn_before_it_is_seen(curve):
    feed(curve)
    curve.draw_now()
    assert curve._plot is None and curve.points == 40
    curve.show()
    curve.draw_now()
    assert curve._plot is not None and curve._stack.currentIndex() == PLOT


def test_the_plot_is_loaded_beside_the_window(curve, qtbot):
    assert curve._plot is None
    curve._warm()
    qtbot.waitUntil(lambda: curve._plot is not None)


def test_without_numbers_it_says_so(curve):
    curve.show()
    curve.draw_now()
    assert curve._stack.currentIndex() == NOTHING and "No numbers" in curve.sentence()


def test_table_and_sentence_tell_what_the_picture_shows(curve, qtmodeltester):
    feed(curve)
    qtmodeltester.check(curve.table)
    assert column(curve, 0) == [str(step) for step in range(41)]
    assert column(curve, UNSEEN)[20] == "2.4800" and column(curve, EVENT)[20] == "saved" and column(curve, LEARNED)[0] == ""
    assert "step 40" in curve.sentence() and curve.best() == (20.0, pytest.approx(2.48))
    curve.show()
    curve._swap.click()
    curve.draw_now()
    assert curve._stack.currentIndex() == TABLE and a11y.unnamed(curve) == []


def test_a_resumed_run_rewrites_its_past(curve):
    feed(curve)
    curve.learned(21, 9.0)
    assert curve.points == 21 and column(curve, 0)[-1] == "21" and len(curve.errors()[1]) == 3
    assert curve.best()[0] == 20.0


def test_what_was_worth_a_look_goes_with_the_steps_that_are_told_again(curve):
    feed(curve)
    curve.mark(25, "Memory ran out.", loud=True)
    curve.learned(21, 2.0)
    curve.mark(25, "saved")
    assert not curve._loud and 25 in curve._marks


@pytest.mark.parametrize("language", ["en", "de"])
def test_it_fits_into_a_narrow_window(qtbot, qapp, language):
    studio_text.use(language)
    try:
        made = CurveView()
        qtbot.addWidget(made)
        assert made.minimumSizeHint().width() < 500
    finally:
        studio_text.use("en")


def test_a_number_that_is_none_leaves_a_gap_and_breaks_nothing(curve):
    feed(curve, 20)
    curve.learned(21, math.nan)
    curve.unseen(21, math.nan)
    curve.show()
    curve.draw_now()
    assert column(curve, LEARNED)[-1] == "–"


def test_small_differences_and_single_steps_can_be_seen(curve):
    feed(curve)
    curve.show()
    low = {}
    for kind in ("smooth", "raw", "log"):
        curve.kind.setCurrentIndex(curve.kind.findData(kind))
        curve.draw_now()
        low[kind] = curve._line_raw.yData[-1]
        assert curve._line_smooth.isVisible() is (kind != "raw")
    assert low["smooth"] == low["raw"] and low["log"] == pytest.approx(math.log10(low["raw"]))


def test_an_error_of_nothing_is_a_gap_in_the_logarithm(curve):
    curve.learned(1, 0.0)
    curve.learned(2, 1.0)
    curve.kind.setCurrentIndex(curve.kind.findData("log"))
    curve.show()
    curve.draw_now()
    assert math.isnan(curve._line_raw.yData[0]) and curve._line_raw.yData[1] == 0


def test_a_step_can_be_pointed_out_in_picture_and_table(curve):
    feed(curve)
    curve.show()
    curve.point_out(20)
    curve.draw_now()
    assert curve._line_pointed.isVisible() and curve._line_pointed.value() == 20
    curve.toggle_table()
    curve.draw_now()
    curve.point_out(30)
    assert column(curve, 0)[curve._table.selectionModel().selectedRows()[0].row()] == "30"
    curve.toggle_table()
    curve.point_out(None)
    curve.draw_now()
    assert not curve._line_pointed.isVisible()


def test_the_curve_of_another_training_is_gone_at_once(curve, qtbot):
    feed(curve)
    curve.show()
    curve.draw_now()
    curve._timer.setInterval(60_000)       # a dear picture: the next one is not due for long
    curve.clear()
    qtbot.waitUntil(lambda: curve._stack.currentIndex() == NOTHING)
