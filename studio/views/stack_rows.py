"""The rows of the stack: a list view whose rows are real controls, so that mouse, keyboard and screen reader see the same."""

from __future__ import annotations

import itertools
import time

from PySide6.QtCore import QEvent, QModelIndex, QObject, QSize, Qt, Signal
from PySide6.QtGui import QCursor, QDrag, QGuiApplication, QKeySequence, QPainter, QShortcut
from PySide6.QtWidgets import (QAbstractItemView, QCheckBox, QDoubleSpinBox, QFrame, QGridLayout, QHBoxLayout, QLabel, QListView, QSlider,
                               QStyledItemDelegate, QToolButton, QWidget)

from engine.errors import StudioError
from studio.core.stack_commands import SetEnabled, SetStrength
from studio.core.stack_document import MAX_STRENGTH, Entry
from studio.core.text import frame as text
from studio.models import drag
from studio.models.stack_model import ENTRY, ID, StackModel
from studio.views import a11y, theme

PERCENT = 100
BURST = 0.8                                # seconds within which key presses on one control are one step of undo
_gestures = itertools.count(1)


class PercentBox(QDoubleSpinBox):
    """A number in percent, read and written as the user's country does; a double click makes it 100 %."""

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.setRange(-MAX_STRENGTH * PERCENT, MAX_STRENGTH * PERCENT)
        self.setDecimals(1)
        self.setSingleStep(5)
        self.setSuffix(" %")
        self.setKeyboardTracking(False)
        self.setAlignment(Qt.AlignmentFlag.AlignRight)
        self.lineEdit().installEventFilter(self)

    def textFromValue(self, value: float) -> str:            # noqa: N802
        return self.locale().toString(value, "f", 0 if value == round(value) else 1)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:      # noqa: N802
        if event.type() == QEvent.Type.MouseButtonDblClick:
            self.setValue(PERCENT)
            return True
        return super().eventFilter(watched, event)


class StrengthSlider(QSlider):
    """0 to 150 percent in steps of one; a double click on it makes it 100 %. Wider in Advanced (−100 to 200)."""

    def __init__(self, parent: QWidget | None = None):
        super().__init__(Qt.Orientation.Horizontal, parent)
        self.setRange(0, 150)
        self.setSingleStep(1)
        self.setPageStep(10)
        self.setMinimumWidth(90)

    def mouseDoubleClickEvent(self, event) -> None:          # noqa: N802
        self.setValue(PERCENT)

    def paintEvent(self, event) -> None:                     # noqa: N802
        """The slider, and a small mark below 100 %."""
        super().paintEvent(event)
        room = self.width() - 18
        x = 9 + room * (PERCENT - self.minimum()) / (self.maximum() - self.minimum())
        painter = QPainter(self)
        painter.setPen(theme.color("strong_border"))
        painter.drawLine(round(x), self.height() - 4, round(x), self.height())
        painter.end()

    def set_wide(self, wide: bool) -> None:
        self.setRange(-100 if wide else 0, 200 if wide else 150)


class StackRow(QFrame):
    """One adapter: handle, switch, name and kind, slider, number, remove."""

    removed = Signal(int)
    focused = Signal(int)

    def __init__(self, model: StackModel, entry: Entry, parent: QWidget | None = None):
        super().__init__(parent)
        theme.look(self, "card")
        self._model, self.id, self._gesture, self._last = model, entry.id, 0, 0.0
        self.handle = QLabel()
        self.handle.setCursor(Qt.CursorShape.OpenHandCursor)
        self.handle.setToolTip(text.handle_help())
        self.switch = theme.look(QCheckBox(), "switch")
        self.name = theme.look(a11y.ElidedLabel(), "strong")
        self.note = theme.look(a11y.ElidedLabel(mode=Qt.TextElideMode.ElideRight), "muted small")
        self.slider, self.box = StrengthSlider(), PercentBox()
        self.remove = QToolButton()
        a11y.quiet_wheel(self.slider, self.box)
        words = QGridLayout()
        words.setSpacing(2)
        words.addWidget(self.name, 0, 0)
        words.addWidget(self.note, 1, 0)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(theme.S, theme.S, theme.S, theme.S)
        layout.setSpacing(theme.M)
        for widget in (self.handle, self.switch):
            layout.addWidget(widget)
        layout.addLayout(words, 3)
        layout.addWidget(self.slider, 4)
        layout.addWidget(self.box)
        layout.addWidget(self.remove)
        self.switch.toggled.connect(lambda on: model.undo.push(SetEnabled(self.id, on)))
        self.slider.sliderPressed.connect(self._new_gesture)
        self.slider.valueChanged.connect(self._slide)
        self.box.valueChanged.connect(self._type)
        self.remove.clicked.connect(lambda: self.removed.emit(self.id))
        for control in self.controls():
            control.installEventFilter(self)
        self.show_entry(entry)
        self.retint()

    def controls(self) -> tuple[QWidget, ...]:
        return self.switch, self.slider, self.box, self.remove

    def show_entry(self, entry: Entry) -> None:
        """Show what the document says, without answering back."""
        problem = self._model.problem(entry)
        info = self._model.catalogue.adapter(entry.adapter)
        self.name.setText(entry.name)
        self.note.setText(problem or (text.kind_and_rank(info.peft_type, info.rank, info.config) if info else ""))
        theme.look(self.note, "bad small" if problem else "muted small")
        for control, spoken in ((self.switch, text.switch_of(name=entry.name)), (self.slider, text.strength_of(name=entry.name)),
                                (self.box, text.strength_number_of(name=entry.name)), (self.remove, text.remove_of(name=entry.name))):
            a11y.name(control, spoken)
        self.switch.setToolTip(text.switch_help())
        self.slider.setToolTip(text.slider_help())
        self.remove.setToolTip(text.remove_of(name=entry.name))
        percent = entry.strength * PERCENT
        for control, show in ((self.switch, lambda: self.switch.setChecked(entry.enabled)),
                              (self.slider, lambda: self.slider.setValue(round(percent))),
                              (self.box, lambda: self.box.setValue(percent))):
            control.blockSignals(True)
            show()
            control.blockSignals(False)
        self.slider.setEnabled(entry.enabled)
        self.box.setEnabled(entry.enabled)

    def retint(self) -> None:
        """The colours, and the room for letters of this size."""
        self.name.setMinimumWidth(10 * self.fontMetrics().averageCharWidth())
        self.box.setFixedWidth(round(self.box.fontMetrics().horizontalAdvance("−1000.0 %") + 44))
        self.handle.setPixmap(theme.icon("handle", "muted").pixmap(20, 20))
        self.remove.setIcon(theme.icon("close", "muted"))

    def resizeEvent(self, event) -> None:                    # noqa: N802
        """Where not all has room, the number does what the slider does."""
        super().resizeEvent(event)
        others = [self.handle, self.switch, self.name, self.box, self.remove]
        needs = sum(max(w.minimumWidth(), w.minimumSizeHint().width()) if w is not self.name else w.minimumWidth() for w in others)
        self.slider.setVisible(self.width() - needs - 5 * theme.M - 2 * theme.S >= self.slider.minimumWidth())

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:      # noqa: N802
        if event.type() == QEvent.Type.FocusIn:
            self.focused.emit(self.id)
        return False

    def _new_gesture(self) -> None:
        self._gesture = next(_gestures)

    def _slide(self, percent: int) -> None:
        """Each value is heard at once; the whole drag, or one burst of keys, is one step of undo."""
        now = time.monotonic()
        if not self.slider.isSliderDown() and now - self._last > BURST:
            self._new_gesture()
        self._last = now
        self._model.undo.push(SetStrength(self.id, percent / PERCENT, self._gesture))

    def _type(self, percent: float) -> None:
        now = time.monotonic()
        if now - self._last > BURST:
            self._new_gesture()
        self._last = now
        self._model.undo.push(SetStrength(self.id, percent / PERCENT, self._gesture))


class _RowSize(QStyledItemDelegate):
    """Rows are widgets: the delegate only keeps their place, and paints nothing behind them."""

    def sizeHint(self, option, index) -> QSize:              # noqa: N802
        return QSize(320, round(option.fontMetrics.height() * 2.2) + 34)

    def paint(self, painter, option, index) -> None:
        return


class StackList(QListView):
    """The stack. Drag by the handle or Alt+Up/Down to reorder, Del removes, Space switches, Left/Right change the strength."""

    refused = Signal(str)                  # why a drop is not possible, while it hovers; empty when that is over
    hovered = Signal(bool)                 # something that may be dropped is over the list
    files = Signal(list, int)              # adapter folders dropped from outside, and the place
    failed = Signal(object)
    spoke = Signal(str)

    def __init__(self, model: StackModel, parent: QWidget | None = None):
        super().__init__(parent)
        theme.look(self, "flat rows")
        a11y.name(self, text.stack(), text.stack_help())
        self._model, self._wide = model, False
        self.setItemDelegate(_RowSize(self))
        self.setSpacing(2)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setDragDropMode(QAbstractItemView.DragDropMode.DragDrop)
        self.setDefaultDropAction(Qt.DropAction.MoveAction)
        self.setDragDropOverwriteMode(False)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setModel(model)
        self._rows: dict[int, StackRow] = {}
        self.setDropIndicatorShown(False)
        self._line = theme.look(QFrame(self.viewport()), "drop-line")      # where a drop would go
        self._line.hide()
        self._fill()
        model.rowsInserted.connect(self._fill)
        model.modelReset.connect(self._fill)
        model.rowsMoved.connect(self._fill)
        model.rowsRemoved.connect(self._forget)
        model.dataChanged.connect(self._show)
        self.selectionModel().currentChanged.connect(self._mark)
        self._bind("Del", Qt.ShortcutContext.WidgetShortcut, self.remove_current)
        self._bind("Space", Qt.ShortcutContext.WidgetShortcut, self.switch_current)
        self._bind("Left", Qt.ShortcutContext.WidgetShortcut, lambda: self.nudge(-5))
        self._bind("Right", Qt.ShortcutContext.WidgetShortcut, lambda: self.nudge(5))
        for keys, act in (("Ctrl+C", self.copy), ("Ctrl+X", self.cut), ("Ctrl+V", self.paste)):
            self._bind(keys, Qt.ShortcutContext.WidgetShortcut, act)
        self._bind("Alt+Up", Qt.ShortcutContext.WidgetWithChildrenShortcut, lambda: self.move_current(-1))
        self._bind("Alt+Down", Qt.ShortcutContext.WidgetWithChildrenShortcut, lambda: self.move_current(1))
        theme.changed.connect(self._retint)

    # --- what the keys and the menu do ---

    def current(self) -> Entry | None:
        index = self.currentIndex()
        return index.data(ENTRY) if index.isValid() else None

    def remove_current(self) -> None:
        if entry := self.current():
            row = self.currentIndex().row()
            self._model.remove(entry.id)
            left = self._model.rowCount()
            if left:
                self.setCurrentIndex(self._model.index(min(row, left - 1)))
            self.spoke.emit(text.removed(name=entry.name))

    def switch_current(self) -> None:
        if entry := self.current():
            self._model.undo.push(SetEnabled(entry.id, not entry.enabled))

    def move_current(self, by: int) -> None:
        if entry := self.current():
            if self._model.move(entry.id, self.currentIndex().row() + by):
                self.spoke.emit(text.moved(name=entry.name, place=self._model.document.index(entry.id) + 1, count=self._model.rowCount()))

    def nudge(self, percent: int) -> None:
        if (entry := self.current()) and (row := self._rows.get(entry.id)) and entry.enabled:
            row.slider.setValue(row.slider.value() + percent)

    def full_current(self) -> None:
        """Back to exactly 100 %."""
        if entry := self.current():
            self._model.undo.push(SetStrength(entry.id, 1.0))

    def copy(self) -> None:
        """The current row's adapter to the clipboard, as a drag from the library would carry it."""
        if entry := self.current():
            QGuiApplication.clipboard().setMimeData(drag.pack(adapters=[entry.adapter], names=[entry.name]))

    def cut(self) -> None:
        self.copy()
        self.remove_current()

    def paste(self) -> None:
        """Adapters from the clipboard, behind the current row."""
        place = self.currentIndex().row() + 1 if self.currentIndex().isValid() else None
        load = drag.unpack(QGuiApplication.clipboard().mimeData())
        for why in self._model.add(list(load.adapters), place):
            self.spoke.emit(why)

    def set_wide(self, wide: bool) -> None:
        """Advanced: sliders from −100 to 200 percent."""
        self._wide = wide
        for row in self._rows.values():
            row.slider.blockSignals(True)
            row.slider.set_wide(wide)
            row.slider.blockSignals(False)
        self._show()

    def row(self, id: int) -> StackRow:
        return self._rows[id]

    def _bind(self, keys: str, context: Qt.ShortcutContext, slot) -> None:
        shortcut = QShortcut(QKeySequence(keys), self)
        shortcut.setContext(context)
        shortcut.activated.connect(slot)

    # --- rows ---

    def _fill(self, *_) -> None:
        """Give every row its widget (a moved row needs a new one: Qt deletes the old with its place)."""
        for number in range(self._model.rowCount()):
            index = self._model.index(number)
            if self.indexWidget(index) is None:
                row = StackRow(self._model, index.data(ENTRY))
                row.slider.set_wide(self._wide)
                row.show_entry(index.data(ENTRY))
                row.removed.connect(self._model.remove)
                row.focused.connect(self._focus_follows)
                self._rows[row.id] = row
                self.setIndexWidget(index, row)
        self._forget()
        self._order_tabs()
        self._mark()

    def _forget(self, *_) -> None:
        here = {e.id for e in self._model.document.entries}
        self._rows = {id: row for id, row in self._rows.items() if id in here}

    def _order_tabs(self) -> None:
        """Tab walks the rows from top to bottom, whatever the order in which they came."""
        last: QWidget = self
        for entry in self._model.document.entries:
            for control in self._rows[entry.id].controls() if entry.id in self._rows else ():
                QWidget.setTabOrder(last, control)
                last = control

    def _show(self, first: QModelIndex | None = None, last: QModelIndex | None = None, *_) -> None:
        """Show what the document says, in all rows or in those that changed."""
        changed = slice(first.row(), last.row() + 1) if first is not None and last is not None else slice(None)
        for entry in self._model.document.entries[changed]:
            if row := self._rows.get(entry.id):
                row.show_entry(entry)

    def _focus_follows(self, id: int) -> None:
        index = self._model.index(self._model.document.index(id))
        if index != self.currentIndex():
            self.setCurrentIndex(index)

    def _mark(self, *_) -> None:
        current = self.currentIndex().data(ID) if self.currentIndex().isValid() else None
        for id, row in self._rows.items():
            theme.look(row, "card chosen" if id == current else "card")

    def _retint(self, *_) -> None:
        for row in self._rows.values():
            row.retint()

    # --- drags and drops ---

    def startDrag(self, actions) -> None:                    # noqa: N802
        """The row itself travels with the pointer."""
        index = self.currentIndex()
        if not index.isValid():
            return
        row, picture = self._rows[index.data(ID)], QDrag(self)
        picture.setMimeData(self._model.mimeData([index]))
        picture.setPixmap(row.grab())
        picture.setHotSpot(row.mapFromGlobal(QCursor.pos()))
        picture.exec(Qt.DropAction.MoveAction)

    def dragEnterEvent(self, event) -> None:                 # noqa: N802
        if not self._judge(event):
            return
        super().dragEnterEvent(event)
        event.acceptProposedAction()

    def dragMoveEvent(self, event) -> None:                  # noqa: N802
        if self._judge(event):
            super().dragMoveEvent(event)
            event.acceptProposedAction()
            self._show_line(self.place_at(event.position().toPoint()))

    def dragLeaveEvent(self, event) -> None:                 # noqa: N802
        self._hover_ended()
        super().dragLeaveEvent(event)

    def dropEvent(self, event) -> None:                      # noqa: N802
        self._hover_ended()
        load, place = drag.unpack(event.mimeData()), self.place_at(event.position().toPoint())
        if load.files:
            folders = [found for file in load.files if (found := drag.adapter_folder(file))]
            event.acceptProposedAction()
            if folders:
                self.files.emit(folders, place)
            else:
                self.failed.emit(StudioError(text.no_adapter_in_drop(), do=text.no_adapter_in_drop_do()))
        elif self._model.drop_refusal(event.mimeData()) is None:
            count = self._model.rowCount()
            event.setDropAction(Qt.DropAction.MoveAction if load.entries else Qt.DropAction.CopyAction)
            self._model.dropMimeData(event.mimeData(), event.dropAction(), place, 0, QModelIndex())
            event.accept()
            self.setState(QAbstractItemView.State.NoState)
            if self._model.rowCount() > count:
                self.setCurrentIndex(self._model.index(min(place, self._model.rowCount() - 1)))
        self.viewport().update()

    def place_at(self, point) -> int:
        """Between which rows a drop at this point goes: before a row above its middle, behind it below."""
        for number in range(self._model.rowCount()):
            if point.y() < self.visualRect(self._model.index(number)).center().y():
                return number
        return self._model.rowCount()

    def _judge(self, event) -> bool:
        why = self._model.drop_refusal(event.mimeData())
        self.hovered.emit(why is None)
        self.refused.emit(why or "")
        if why is not None:
            self._line.hide()
            event.ignore()
        return why is None

    def _show_line(self, place: int) -> None:
        count = self._model.rowCount()
        if count:
            last = self.visualRect(self._model.index(min(place, count - 1)))
            y = last.top() - 3 if place < count else last.bottom() + 1
            self._line.setGeometry(last.left() + 8, max(y, 0), last.width() - 16, 3)
            self._line.show()
            self._line.raise_()

    def _hover_ended(self) -> None:
        self._line.hide()
        self.hovered.emit(False)
        self.refused.emit("")
