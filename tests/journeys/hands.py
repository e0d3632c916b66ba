"""What a person's hands do in the window: press where it can be seen, walk there with Tab, wait."""

from __future__ import annotations

import time
from pathlib import Path

from PySide6.QtCore import QPoint, Qt, QTimer
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QDialogButtonBox, QFileDialog, QLineEdit, QListView, QTreeView, QWidget

PATIENCE = 120_000                         # milliseconds: a busy machine, a cold import of torch
LEFT = Qt.MouseButton.LeftButton


def click(widget: QWidget) -> None:
    """Press where a person would; what cannot be seen or pressed cannot be clicked."""
    reveal(widget)
    assert widget.isVisible() and widget.isEnabled(), (widget.accessibleName(), widget.toolTip())
    QTest.mouseClick(widget, LEFT, pos=QPoint(min(12, widget.width() // 2), widget.height() // 2))
    QApplication.processEvents()


def reveal(widget: QWidget) -> None:
    """Scroll to it."""
    parent = widget.parentWidget()
    while parent is not None:
        if hasattr(parent, "ensureWidgetVisible"):
            parent.ensureWidgetVisible(widget)
        parent = parent.parentWidget()
    QApplication.processEvents()


def wait(qtbot, condition, what: str) -> None:
    try:
        qtbot.waitUntil(lambda: bool(condition()), timeout=PATIENCE)
    except BaseException as late:
        raise AssertionError(f"waited in vain: {what}") from late


def key(widget: QWidget, what: Qt.Key, modifier: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier) -> None:
    QTest.keyClick(widget, what, modifier)
    QApplication.processEvents()


def to(widget: QWidget, then: Qt.Key | None = None) -> None:
    """Walk there with Tab (as often as a patient person would) and press ``then``."""
    window = widget.window()
    window.activateWindow()                # a dialog that closed does not give that back without a screen
    QTest.qWaitForWindowActive(window)
    until = time.monotonic() + 30
    for _ in range(400):
        if QApplication.focusWidget() is widget:
            break
        QTest.keyClick(QApplication.focusWidget() or window, Qt.Key.Key_Tab)
        assert time.monotonic() < until, f"Tab never comes to {widget.accessibleName()}"
    assert QApplication.focusWidget() is widget, (f"Tab never comes to {widget.accessibleName()}, it is at "
                                                  f"{QApplication.focusWidget() and QApplication.focusWidget().accessibleName()}")
    if then is not None:
        key(widget, then)


class InFileDialog:
    """Answers the next file dialog, which blocks whoever opened it: by mouse on the name in the list, or by typing the path."""

    def __init__(self, path: Path, by: str):
        self.path, self.answered = path, False
        self._act = {"mouse": self._point, "keys": self._type}[by]
        self._look = QTimer(interval=30)
        self._look.timeout.connect(self._tick)
        self._until = time.monotonic() + 30
        self._look.start()

    def _tick(self) -> None:
        self._look.stop()                  # pressing keys lets other timers run, too
        dialog = QApplication.activeModalWidget()
        if isinstance(dialog, QFileDialog):
            if time.monotonic() < self._until:
                self._act(dialog)
            else:
                self.answered = False      # the test fails by this, not by hanging
                dialog.reject()
            if not dialog.isVisible():
                return
        self._look.start()

    def _type(self, dialog: QFileDialog) -> None:
        field = dialog.findChild(QLineEdit, "fileNameEdit")
        field.setCompleter(None)           # Qt's list of guesses takes the keys of whoever types too fast for it
        if field.text() != str(self.path):
            field.selectAll()
            QTest.keyClicks(field, str(self.path))             # what the dialog makes of it shows a moment later
            return
        self.answered = True
        QTest.keyClick(field, Qt.Key.Key_Return)

    def _point(self, dialog: QFileDialog) -> None:
        view = next(v for v in (dialog.findChild(QListView, "listView"), dialog.findChild(QTreeView, "treeView")) if v.isVisible())
        if dialog.directory().absolutePath() != str(self.path.parent):
            dialog.setDirectory(str(self.path.parent))         # where a person's folders are is not ours to find
            return
        names = [view.model().index(row, 0, view.rootIndex()) for row in range(view.model().rowCount(view.rootIndex()))]
        found = next((index for index in names if index.data() == self.path.name), None)
        if found is None:
            return                         # still reading the folder
        view.scrollTo(found)
        at = view.visualRect(found).center()
        self.answered = True
        QTest.mouseClick(view.viewport(), LEFT, pos=at)
        if dialog.fileMode() == QFileDialog.FileMode.Directory:
            QTest.mouseClick(dialog.findChild(QDialogButtonBox).buttons()[0], LEFT)
        else:
            QTest.mouseDClick(view.viewport(), LEFT, pos=at)
