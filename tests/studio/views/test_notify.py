"""Notices: what, why and what to do; details folded; never more than three; gone when they are dealt with."""

from __future__ import annotations

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QPushButton, QVBoxLayout, QWidget

from engine.errors import BadData
from studio.core import text as language
from studio.views import a11y, notify

ERROR = BadData("The file a.csv is empty.", "There is nothing to learn from.", "Choose another file.", details="Traceback <b>x</b>")


@pytest.fixture
def window(qtbot) -> QWidget:
    made = QWidget()
    layout = QVBoxLayout(made)
    layout.addWidget(notify.NoticeArea())
    layout.addWidget(QWidget())
    qtbot.addWidget(made)
    made.resize(600, 400)
    made.show()
    return made


def button(notice: notify.Notice, words: str) -> QPushButton:
    return next(b for b in notice.findChildren(QPushButton) if b.text() == words)


def area(window: QWidget) -> notify.NoticeArea:
    return window.findChild(notify.NoticeArea)


def test_an_error_says_what_why_and_what_to_do_and_folds_the_rest(window, qtbot):
    notice = notify.show_error(window, ERROR)
    assert (notice.words, notice.more) == (ERROR.what, "There is nothing to learn from. Choose another file.")
    assert not notice._box.isVisible()
    qtbot.mouseClick(button(notice, "Details"), Qt.MouseButton.LeftButton)
    assert notice._box.isVisible() and notice._box.toPlainText() == ERROR.details
    qtbot.mouseClick(button(notice, "Copy"), Qt.MouseButton.LeftButton)
    assert ERROR.details in QGuiApplication.clipboard().text() and ERROR.what in QGuiApplication.clipboard().text()
    assert a11y.unnamed(window) == []


def test_a_button_mends_and_the_notice_goes(window, qtbot):
    mended = []
    notice = notify.show_error(window, ERROR, ("Choose a file", lambda: mended.append(1)))
    qtbot.mouseClick(button(notice, "Choose a file"), Qt.MouseButton.LeftButton)
    assert mended == [1] and area(window).notices() == [] and not area(window).isVisible()


def test_esc_closes_the_one_with_the_focus(window, qtbot):
    notice = notify.tell(window, "Hello", seconds=None)
    qtbot.keyClick(notice, Qt.Key.Key_Escape)
    assert area(window).notices() == []


def test_no_more_than_three_and_none_twice(window):
    for words in ("a", "b", "c", "d", "c"):
        notify.tell(window, words, seconds=None)
    assert [n.words for n in area(window).notices()] == ["c", "d", "b"]


def test_it_passes_by_itself(window, qtbot):
    notify.tell(window, "Done.", seconds=0.01)
    qtbot.waitUntil(lambda: area(window).notices() == [])


def test_a_panel_alone_gets_an_area_of_its_own(qtbot):
    panel = QWidget()
    qtbot.addWidget(panel)
    panel.resize(400, 300)
    panel.show()
    notify.show_error(panel, ERROR)
    assert area(panel).isVisible() and area(panel).width() == panel.width()


def test_what_a_file_says_is_never_read_as_markup(window):
    notice = notify.tell(window, "<h1>big</h1>", "<a href='x'>y</a>", seconds=None)
    assert all(label.textFormat() == Qt.TextFormat.PlainText for label in notice.findChildren(notify.QLabel) if label.text())


@pytest.mark.parametrize("code, words", [("en", ["Error", "Caution", "Done", "Note"]), ("de", ["Fehler", "Achtung", "Fertig", "Hinweis"])])
def test_what_kind_of_notice_it_is_can_be_heard(window, code, words):
    language.use(code)
    try:
        made = [notify.Notice(level, "Something.") for level in ("bad", "warn", "good", "info")]
    finally:
        language.use("en")
    assert [notice._mark.accessibleName() for notice in made] == words
