"""Another theme goes on widget by widget, each once, and looks as if it had been put on in one go."""

from __future__ import annotations

import pytest
from PySide6.QtCore import QEvent
from PySide6.QtWidgets import QLabel, QLineEdit, QVBoxLayout, QWidget
from shiboken6 import delete

from studio.views import theme
from studio.views.parts import button, card, text


class Counting(QWidget):
    """Knows how often its style changed."""

    def __init__(self):
        super().__init__()
        self.changes = 0

    def changeEvent(self, event) -> None:      # noqa: N802 (Qt's name)
        self.changes += event.type() == QEvent.Type.StyleChange
        super().changeEvent(event)


@pytest.fixture
def window(qtbot, qapp):
    theme.apply(qapp, "light")
    made = QWidget()
    made.deep = inner = Counting()
    for _ in range(12):                    # a widget deep in a window
        outer = QWidget()
        QVBoxLayout(outer).addWidget(inner)
        inner = outer
    made.label, made.hidden = QLabel("Words"), QLineEdit("more")
    column = QVBoxLayout(made)
    for widget in (card(text("A card", "heading"), text("with words", "muted small"), button("Go", list, "primary")), made.label, made.hidden, inner):
        column.addWidget(widget)
    qtbot.addWidget(made)
    made.resize(400, 400)
    made.show()
    qtbot.waitExposed(made)
    made.hidden.hide()
    yield made
    theme.apply(qapp, "light")


def picture(window):
    window.hidden.show()
    window.layout().activate()
    return window.grab().toImage()


def test_every_widget_is_restyled_once(window, qapp):
    window.deep.changes = 0
    theme.apply(qapp, "dark", 1.4)
    assert window.deep.changes == 1


@pytest.mark.parametrize("mode, size", [("dark", 1.0), ("light", 1.4)])
def test_it_looks_as_if_the_sheet_had_been_put_on_in_one_go(window, qapp, mode, size):
    theme.apply(qapp, mode, size)
    one = picture(window)
    sheet = qapp.styleSheet()
    qapp.setStyleSheet(sheet + " QWidget { }")
    qapp.setStyleSheet(sheet)
    assert picture(window) == one
    assert window.label.palette().windowText().color().name() == theme.tokens().text


def test_the_old_picture_stays_until_everything_in_sight_is_ready(window, qapp):
    steps = theme.change(qapp, "dark", 1.0)
    next(steps)
    assert not window.updatesEnabled()
    while not window.updatesEnabled():
        next(steps)
    assert theme.tokens().name == "dark" and window.label.palette().windowText().color().name() == theme.tokens().text
    assert list(steps) and window.hidden.palette().text().color().name() == theme.tokens().text     # what is hidden follows


def test_a_change_that_another_one_overtakes_leaves_nothing_behind(window, qapp):
    half = theme.change(qapp, "dark", 1.0)
    for _ in range(30):
        next(half)
    half.close()
    assert window.updatesEnabled()
    theme.apply(qapp, "light", 1.4)
    one = picture(window)
    theme.apply(qapp, "dark", 1.0)
    theme.apply(qapp, "light", 1.4)
    assert picture(window) == one


def test_what_was_half_done_is_done_again(window, qapp):
    half = theme.change(qapp, "dark", 1.0)
    next(half)
    half.close()
    theme.apply(qapp, "dark", 1.0)
    one = picture(window)
    assert theme.tokens().name == "dark"
    theme.apply(qapp, "light", 1.0)
    theme.apply(qapp, "dark", 1.0)
    assert picture(window) == one


def test_a_widget_may_go_between_two_steps(window, qapp):
    steps = theme.change(qapp, "dark", 1.0)
    next(steps)
    delete(window.label)
    assert list(steps) and window.updatesEnabled()
