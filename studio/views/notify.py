"""The one place for errors, warnings and small good news: calm banners below the work, never a modal box.

    notify.show_error(self, error)                                   # what · why · what to do, details folded, copy
    notify.tell(self, "Adapter removed.", button=("Undo", undo))     # passes by itself after a while unless it has focus

Both look for the window's `NoticeArea`; a panel that runs alone gets one of its own along its upper edge.
"""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QEvent, QObject, Qt, QTimer
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPlainTextEdit, QPushButton, QToolButton, QVBoxLayout, QWidget

from engine.errors import StudioError
from studio.core.text import frame as text
from studio.core.text.spoken import spoken
from studio.views import a11y, theme
from studio.views.flow import Flow

Button = tuple[str, Callable[[], object]]
_ICONS = {"bad": "error", "warn": "warning", "good": "check", "info": "info"}


def show_error(parent: QWidget, error: StudioError, *buttons: Button) -> "Notice":
    """Show an error until it is closed; ``buttons`` are (words, callback) that mend it."""
    return _area(parent).add(Notice("bad", spoken(error.what), spoken(error.why, error.do),
                                    details=error.details, buttons=buttons))


def tell(parent: QWidget, words: str, more: str = "", *, level: str = "info", button: Button | None = None,
         seconds: float | None = 8) -> "Notice":
    """Say something good, informative or cautionary (level: good, info, warn). None as ``seconds``: stays until closed."""
    notice = _area(parent).add(Notice(level, words, more, buttons=(button,) if button else ()))
    if seconds is not None:
        notice.expire(seconds)
    return notice


class Notice(QFrame):
    """One banner."""

    def __init__(self, level: str, words: str, more: str = "", *, details: str = "", buttons: tuple[Button, ...] = ()):
        super().__init__()
        self.level, self.words, self.more, self.details = level, words, more, details
        theme.look(self, f"notice-{level}")
        a11y.name(self, words, more)
        self._mark = QLabel()
        self._mark.setAccessibleName(text.LEVELS[level]())
        headline, body = QLabel(words), QLabel(more)
        theme.look(headline, "strong")
        for label in (headline, body):
            label.setTextFormat(Qt.TextFormat.PlainText)
            label.setWordWrap(True)
            label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        if not more:
            body.hide()
        self._box = QPlainTextEdit(details)
        self._box.setReadOnly(True)
        self._box.setMaximumHeight(180)
        self._box.hide()
        theme.look(self._box, "mono")
        a11y.name(self._box, text.details())

        row = Flow()
        for words_on_it, callback in buttons:
            button = QPushButton(words_on_it)
            button.clicked.connect(lambda _=False, act=callback: (act(), self.dismiss()))
            row.addWidget(button)
        if details:
            self._fold = QPushButton(text.details())
            theme.look(self._fold, "link")
            self._fold.clicked.connect(self._toggle)
            copy = QPushButton(text.copy())
            theme.look(copy, "link")
            copy.clicked.connect(self._copy)
            row.addWidget(self._fold)
            row.addWidget(copy)

        words_column = QVBoxLayout()
        words_column.setSpacing(theme.XS)
        words_column.addWidget(headline)
        words_column.addWidget(body)
        if row.count():
            words_column.addLayout(row)
        words_column.addWidget(self._box)
        self._shut = a11y.name(QToolButton(), text.close())
        self._shut.setToolTip(text.close())
        self._shut.clicked.connect(self.dismiss)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(theme.M, theme.S, theme.S, theme.S)
        layout.setSpacing(theme.M)
        layout.addWidget(self._mark, 0, Qt.AlignmentFlag.AlignTop)
        layout.addLayout(words_column, 1)
        layout.addWidget(self._shut, 0, Qt.AlignmentFlag.AlignTop)
        theme.changed.connect(self._retint)
        self._retint()

    def expire(self, seconds: float) -> None:
        """Go away after this time, but not while the pointer or the focus is in it."""
        timer = QTimer(self, interval=int(seconds * 1000))
        timer.timeout.connect(lambda: self.dismiss() if not self.underMouse() and not self._has_focus() else None)
        timer.start()

    def dismiss(self) -> None:
        area = self.parentWidget()
        self.hide()
        self.setParent(None)
        self.deleteLater()
        if isinstance(area, NoticeArea):
            area.setVisible(bool(area.notices()))

    def keyPressEvent(self, event) -> None:    # noqa: N802 (Qt's name)
        if event.key() == Qt.Key.Key_Escape:
            self.dismiss()
        else:
            super().keyPressEvent(event)

    def _retint(self) -> None:
        self._mark.setPixmap(theme.icon(_ICONS[self.level], "accent" if self.level == "info" else self.level).pixmap(20, 20))
        self._shut.setIcon(theme.icon("close"))

    def _has_focus(self) -> bool:
        focus = QGuiApplication.focusObject()
        return isinstance(focus, QWidget) and self.isAncestorOf(focus)

    def _toggle(self) -> None:
        self._box.setVisible(not self._box.isVisible())
        self._fold.setText(text.hide_details() if self._box.isVisible() else text.details())

    def _copy(self) -> None:
        QGuiApplication.clipboard().setText("\n".join(part for part in (self.words, self.more, self.details) if part))


class NoticeArea(QWidget):
    """Where banners stand, newest on top, at most three; takes no room while empty."""

    LIMIT = 3

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        a11y.name(self, text.notices())
        self._layout = QVBoxLayout(self)
        self._layout.setContentsMargins(theme.L, theme.S, theme.L, theme.S)
        self._layout.setSpacing(theme.S)
        self.hide()

    def notices(self) -> list[Notice]:
        return [self._layout.itemAt(i).widget() for i in range(self._layout.count())]

    def add(self, notice: Notice) -> Notice:
        """Show it; an equal one that stands already is replaced, the oldest goes when there are too many."""
        for other in self.notices():
            if (other.words, other.more) == (notice.words, notice.more):
                other.dismiss()
        self._layout.insertWidget(0, notice)
        for other in self.notices()[self.LIMIT:]:
            other.dismiss()
        notice.show()
        self.show()
        a11y.announce(self, f"{notice.words} {notice.more}".strip())
        return notice


class _AlongTop(QObject):
    """Keeps an area of its own along the upper edge of a panel that stands alone."""

    def __init__(self, area: NoticeArea):
        super().__init__(area)
        self._area = area
        area.parentWidget().installEventFilter(self)
        area.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:    # noqa: N802
        if event.type() in (QEvent.Type.Resize, QEvent.Type.LayoutRequest):
            width = self._area.parentWidget().width()
            self._area.setGeometry(0, theme.S, width, max(self._area.sizeHint().height(), self._area.heightForWidth(width)))
            self._area.raise_()
        return False


def _area(parent: QWidget) -> NoticeArea:
    area = parent.window().findChild(NoticeArea)
    if area is None:
        area = NoticeArea(parent)
        _AlongTop(area)
    return area
