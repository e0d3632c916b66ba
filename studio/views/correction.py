"""The box in which a person puts an answer right."""

from __future__ import annotations

from PySide6.QtCore import QEvent, Qt, Signal
from PySide6.QtWidgets import QPlainTextEdit, QWidget

from studio.core.text import work as words
from studio.views import a11y, theme
from studio.views.flow import Flow
from studio.views.parts import Column, button

HEIGHT = 110                               # pixels


class _Box(QPlainTextEdit):
    """Escape means this box, whatever it means around it."""

    kept, left = Signal(), Signal()

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.ShortcutOverride and event.key() == Qt.Key.Key_Escape:
            event.accept()
            return True
        return super().event(event)

    def keyPressEvent(self, event) -> None:    # noqa: N802 (Qt's name)
        if event.key() == Qt.Key.Key_Escape:
            self.left.emit()
        elif event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and event.modifiers() & Qt.KeyboardModifier.ControlModifier:
            self.kept.emit()
        else:
            super().keyPressEvent(event)


class CorrectionEditor(QWidget):
    """Signals: `kept(str)`, the better answer; `left()`. Ctrl+Enter keeps, Escape leaves."""

    kept = Signal(str)
    left = Signal()

    def __init__(self, said: str):
        super().__init__()
        self.box = _Box(said)
        self.box.setTabChangesFocus(True)
        self.box.setFixedHeight(HEIGHT)
        a11y.name(self.box, words.TRY_CORRECT_BOX(), words.TRY_CORRECT_HELP())
        self.keep = button(words.TRY_CORRECT_KEEP(), self._keep, "primary", help=words.TRY_CORRECT_HELP())
        cancel = button(words.TRY_CORRECT_CANCEL(), self.left.emit)
        self.box.left.connect(self.left)
        self.box.kept.connect(self._keep)
        self.box.textChanged.connect(lambda: self.keep.setEnabled(bool(self._better())))
        Column(self.box, Flow(self.keep, cancel), spacing=theme.S, parent=self)

    def _better(self) -> str:
        return self.box.toPlainText().strip()

    def _keep(self) -> None:
        if self._better():
            self.kept.emit(self._better())
