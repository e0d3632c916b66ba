"""The stack in small beside the chat: switch and slider of each adapter, so that one can hear them move."""

from __future__ import annotations

import itertools

from PySide6.QtCore import QTimer, Qt
from PySide6.QtWidgets import QCheckBox, QLabel, QSlider, QVBoxLayout, QWidget

from studio.core.stack_commands import SetEnabled, SetStrength
from studio.core.stack_document import Change, Entry
from studio.core.text import amounts
from studio.core.text import work as words
from studio.views import a11y, theme
from studio.views.parts import Column, Row, clear, text

_gestures = itertools.count(-1, -1)        # negative: never those of another panel
BURST = 800                                # milliseconds in which key presses belong together


class _Row(QWidget):
    def __init__(self, entry: Entry, undo):
        super().__init__()
        self._id, self._undo, self._gesture = entry.id, undo, next(_gestures)
        self.on = QCheckBox()
        a11y.name(self.on, words.TRY_ON(name=entry.name))
        self.on.toggled.connect(lambda yes: self._undo.push(SetEnabled(self._id, yes)))
        name = a11y.ElidedLabel(entry.name)
        self._value = QLabel()
        self._value.setMinimumWidth(48)
        self._value.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setRange(0, 150)
        self.slider.setSingleStep(5)
        self.slider.setPageStep(25)
        a11y.name(self.slider, words.TRY_STRENGTH(name=entry.name), words.TRY_STACK_HELP())
        self.slider.setToolTip(words.TRY_STACK_HELP())
        a11y.quiet_wheel(self.slider)
        self._burst = QTimer(self, interval=BURST, singleShot=True)
        self._burst.timeout.connect(self._new_gesture)
        self.slider.sliderPressed.connect(self._new_gesture)
        self.slider.valueChanged.connect(self._slid)
        line = Row(self.on, name, self._value)
        line.setStretch(1, 1)
        Column(line, self.slider, spacing=0, parent=self)
        self.show_entry(entry)

    def show_entry(self, entry: Entry) -> None:
        for widget, change in ((self.on, lambda: self.on.setChecked(entry.enabled)),
                               (self.slider, lambda: self.slider.setValue(round(100 * entry.strength)))):
            widget.blockSignals(True)
            change()
            widget.blockSignals(False)
        self._value.setText(amounts.percent(entry.strength))
        theme.look(self._value, "" if entry.enabled else "muted")

    def _new_gesture(self) -> None:
        self._gesture = next(_gestures)

    def _slid(self, percent: int) -> None:
        self._burst.start()
        self._undo.push(SetStrength(self._id, percent / 100, self._gesture))


class StrengthStrip(QWidget):
    """Shows and changes the document through the same commands as Mix; undo works on all of it."""

    def __init__(self, document, undo):
        super().__init__()
        self._document, self._undo = document, undo
        self.rows: dict[int, _Row] = {}
        self._layout = QVBoxLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setSpacing(theme.S)
        document.changed.connect(self._changed)
        self._rebuild()

    def _changed(self, change: Change) -> None:
        if change.kind in ("structure", "base"):
            self._rebuild()
        elif change.entry_id in self.rows:
            self.rows[change.entry_id].show_entry(self._document.entry(change.entry_id))

    def _rebuild(self) -> None:
        if tuple(self.rows) == tuple(entry.id for entry in self._document.entries) and self.rows:
            return
        clear(self._layout)
        self.rows = {entry.id: _Row(entry, self._undo) for entry in self._document.entries}
        for row in self.rows.values():
            self._layout.addWidget(row)
        self._layout.addWidget(text(words.TRY_STACK_HELP() if self.rows else words.TRY_STACK_EMPTY(), "muted small"))
