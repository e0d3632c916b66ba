"""Small helpers so that every control can be heard, reached by keyboard and is never changed by accident."""

from __future__ import annotations

import html

from PySide6.QtCore import QEvent, QObject, Qt
from PySide6.QtGui import QAccessible, QAccessibleEvent, QPalette
from PySide6.QtWidgets import (QAbstractButton, QAbstractItemView, QAbstractSlider, QAbstractSpinBox, QComboBox, QLabel, QLineEdit,
                               QPlainTextEdit, QScrollBar, QStyle, QStyleOptionComboBox, QStylePainter, QTextEdit, QToolTip, QWidget)

INTERACTIVE = (QAbstractButton, QAbstractItemView, QAbstractSlider, QAbstractSpinBox, QComboBox, QLineEdit, QPlainTextEdit, QTextEdit)


def name(widget: QWidget, words: str, description: str = "") -> QWidget:
    """Give a control the words a screen reader says for it. Returns the widget."""
    widget.setAccessibleName(words)
    if description:
        widget.setAccessibleDescription(description)
    return widget


def announce(widget: QWidget, words: str) -> None:
    """Have a screen reader say something now (a job ended, a row moved)."""
    try:
        from PySide6.QtGui import QAccessibleAnnouncementEvent
        event = QAccessibleAnnouncementEvent(widget, words)
    except ImportError:                    # PySide6 before 6.12: the nearest thing is an alert on the widget
        widget.setAccessibleDescription(words)
        event = QAccessibleEvent(widget, QAccessible.Event.Alert)
    QAccessible.updateAccessibility(event)


class _QuietWheel(QObject):
    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Wheel and not watched.hasFocus():
            event.ignore()                 # goes on to the page behind, which scrolls
            return True
        return False


_quiet = _QuietWheel()


def quiet_wheel(*widgets: QWidget) -> None:
    """A wheel over these sliders, combo or number boxes scrolls the page unless they have the focus."""
    for widget in widgets:
        if widget.focusPolicy() & Qt.FocusPolicy.WheelFocus == Qt.FocusPolicy.WheelFocus:
            widget.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        widget.installEventFilter(_quiet)


def quiet_wheels_inside(root: QWidget) -> None:
    """`quiet_wheel` for every slider, combo and number box below ``root`` (scroll bars keep their wheel)."""
    for kind in (QAbstractSlider, QComboBox, QAbstractSpinBox):
        quiet_wheel(*(w for w in root.findChildren(kind) if not isinstance(w, QScrollBar)))


def unnamed(root: QWidget) -> list[str]:
    """Visible interactive controls below ``root`` for which a screen reader has no words; empty is right."""
    found = []
    for kind in INTERACTIVE:
        for widget in root.findChildren(kind):
            if isinstance(widget, QScrollBar) or not widget.isVisible() or _is_part(widget):
                continue
            interface = QAccessible.queryAccessibleInterface(widget)
            words = interface.text(QAccessible.Text.Name) if interface else ""
            if not words.strip():
                found.append(f"{type(widget).__name__} {widget.objectName()!r} in {type(widget.parent()).__name__}")
    return found


def _is_part(widget: QWidget) -> bool:
    """The line edit of a number box or combo, header views and scroll-area corners speak through their owner."""
    parent = widget.parentWidget()
    return (isinstance(parent, (QAbstractSpinBox, QComboBox)) or widget.objectName().startswith("qt_")
            or type(widget).__name__ == "QHeaderView" or isinstance(parent, QComboBox))


class Choice(QComboBox):
    """A combo box that shows "…" where its words do not fit, and then all of them as its tooltip."""

    def __init__(self, least: int = 12, parent: QWidget | None = None):
        super().__init__(parent)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(least)
        quiet_wheel(self)

    def paintEvent(self, event) -> None:   # noqa: N802
        painter, option = QStylePainter(self), QStyleOptionComboBox()
        self.initStyleOption(option)
        field = self.style().subControlRect(QStyle.ComplexControl.CC_ComboBox, option, QStyle.SubControl.SC_ComboBoxEditField, self)
        if self.currentIndex() < 0:
            option.currentText = self.placeholderText()
            option.palette.setColor(QPalette.ColorRole.ButtonText, option.palette.placeholderText().color())
        option.currentText = self.fontMetrics().elidedText(option.currentText, Qt.TextElideMode.ElideRight, field.width() - 2)
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.ToolTip and not self.toolTip():
            QToolTip.showText(event.globalPos(), self.currentText(), self)
            return True
        return super().event(event)


class ElidedLabel(QLabel):
    """One line that is cut in the middle with "…" when it is too long; the whole text is the tooltip and what a reader hears."""

    def __init__(self, text: str = "", parent: QWidget | None = None, mode: Qt.TextElideMode = Qt.TextElideMode.ElideMiddle):
        super().__init__(parent)
        self._mode, self._whole = mode, ""
        self.setMinimumWidth(40)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setText(text)

    def setText(self, text: str) -> None:  # noqa: N802 (Qt's name)
        self._whole = text
        self.setAccessibleName(text)
        self._elide()

    def whole(self) -> str:
        return self._whole

    def sizeHint(self):                    # noqa: N802
        hint = super().sizeHint()
        hint.setWidth(self.fontMetrics().horizontalAdvance(self._whole) + 4)
        return hint

    def minimumSizeHint(self):             # noqa: N802
        hint = super().minimumSizeHint()
        hint.setWidth(40)
        return hint

    def resizeEvent(self, event) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._elide()

    def changeEvent(self, event) -> None:  # noqa: N802
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._elide()

    def _elide(self) -> None:
        shown = self.fontMetrics().elidedText(self._whole, self._mode, max(self.width(), 40))
        if shown != QLabel.text(self):
            QLabel.setText(self, shown)
        whole = f"<p>{html.escape(self._whole)}</p>" if "<" in self._whole else self._whole      # never markup: it may come from a file
        self.setToolTip(whole if shown != self._whole else "")
