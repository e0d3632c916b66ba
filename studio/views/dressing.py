"""Giving the whole program another style sheet without holding it up.

Qt does it in one go, and restyles every widget once more for each of its ancestors: half a second for this window. Here each is restyled
once, what can be seen first, and between any two of them the window may do something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from PySide6.QtCore import QCoreApplication, QEvent, Qt
from PySide6.QtWidgets import QApplication, QWidget
from shiboken6 import isValid

# A widget that is not the one and seems to be the other is passed over by Qt when the application's style changes.
POLISHED, STYLED_BY_ITSELF = Qt.WidgetAttribute.WA_WState_Polished, Qt.WidgetAttribute.WA_SetStyle


def dressing(app: QApplication, put_on: Callable[[], None], tell: Callable[[], Iterator[None]]) -> Iterator[None]:
    """Short steps. ``put_on`` gives the application its new clothes; ``tell`` tells those who paint by hand, in steps of its own.

    The windows keep their old picture until everything in sight is ready. Closed early, it leaves all widgets fit for the next one.
    """
    wearing = [widget for widget in _everything(app) if widget.testAttribute(POLISHED) and not widget.testAttribute(STYLED_BY_ITSELF)]
    windows = [window for window in app.topLevelWidgets() if window.isVisible() and window.updatesEnabled()]
    _each(windows, lambda window: window.setUpdatesEnabled(False))
    try:
        for widget in wearing:
            _each([widget], _undress)
            yield
        app.setStyleSheet("")              # the style that remembers what it said of every widget goes
        put_on()
        hidden = []
        for widget in wearing:
            if isValid(widget) and not widget.isVisible():
                hidden.append(widget)
                continue
            _each([widget], _dress)
            yield
        yield from tell()
        _each(windows, lambda window: window.setUpdatesEnabled(True))
        for widget in hidden:
            _each([widget], _dress)
            yield
    finally:
        _each(wearing, _unmark)
        _each(windows, lambda window: window.setUpdatesEnabled(True))


def _everything(app: QApplication) -> Iterator[QWidget]:
    """All widgets, parents before their children."""
    for window in app.topLevelWidgets():
        if window.parent() is None:
            yield window
            yield from window.findChildren(QWidget)


def _each(widgets: list[QWidget], do: Callable[[QWidget], object]) -> None:
    for widget in widgets:
        if isValid(widget):                # it may have gone between two steps
            do(widget)


def _undress(widget: QWidget) -> None:
    widget.style().unpolish(widget)
    widget.setAttribute(POLISHED, False)
    widget.setAttribute(STYLED_BY_ITSELF, True)


def _dress(widget: QWidget) -> None:
    _unmark(widget)
    widget.style().polish(widget)
    QCoreApplication.sendEvent(widget, QEvent(QEvent.Type.StyleChange))


def _unmark(widget: QWidget) -> None:
    widget.setAttribute(POLISHED, True)
    widget.setAttribute(STYLED_BY_ITSELF, False)
