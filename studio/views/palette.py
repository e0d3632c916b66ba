"""The command palette (Ctrl+Shift+P): every action by a few letters; what cannot be done now is grey and says why."""

from __future__ import annotations

from PySide6.QtCore import QAbstractListModel, QEvent, QModelIndex, QObject, QRect, QSize, Qt, Signal
from PySide6.QtGui import QKeySequence, QPainter
from PySide6.QtWidgets import QDialog, QFrame, QLineEdit, QListView, QStyle, QStyledItemDelegate, QStyleOptionViewItem, QVBoxLayout, QWidget

from studio.core.actions import Action, ActionRegistry
from studio.core.text import frame as text
from studio.views import a11y, theme

ACTION, WHY = Qt.ItemDataRole.UserRole, Qt.ItemDataRole.UserRole + 1


class _Found(QAbstractListModel):
    def __init__(self, parent: QObject | None = None):
        super().__init__(parent)
        self._rows: list[tuple[Action, str | None]] = []

    def show(self, actions: list[Action]) -> None:
        self.beginResetModel()
        self._rows = [(action, action.refusal()) for action in actions]
        self.endResetModel()

    def rowCount(self, parent: QModelIndex = QModelIndex()) -> int:      # noqa: N802
        return 0 if parent.isValid() else len(self._rows)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole):
        if not index.isValid():
            return None
        action, why = self._rows[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return action.title.rstrip("…")
        if role == ACTION:
            return action
        if role == WHY:
            return why
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return ". ".join(part for part in (action.title, action.category, action.shortcut, why) if part)
        if role == Qt.ItemDataRole.ToolTipRole:
            return why or action.help
        return None


class _Line(QStyledItemDelegate):
    """Title, why not (or what it does), shortcut."""

    def sizeHint(self, option: QStyleOptionViewItem, index: QModelIndex) -> QSize:      # noqa: N802
        return QSize(300, round(option.fontMetrics.height() * 2.6))

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex) -> None:
        action, why = index.data(ACTION), index.data(WHY)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if option.state & QStyle.StateFlag.State_Selected:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(theme.color("accent_soft"))
            painter.drawRoundedRect(option.rect.adjusted(2, 1, -2, -1), 6, 6)
        box = option.rect.adjusted(12, 5, -12, -5)
        half = QRect(box.left(), box.top(), box.width() - 110, box.height() // 2)
        painter.setPen(theme.color("muted" if why is not None else "text"))
        self._draw(painter, half, action.title.rstrip("…"))
        small = option.font
        small.setPointSizeF(small.pointSizeF() * 0.88)
        painter.setFont(small)
        painter.setPen(theme.color("warn" if why else "muted"))
        below = QRect(box.left(), half.bottom(), box.width() - 110, box.height() - half.height())
        self._draw(painter, below, why or action.help)
        painter.setPen(theme.color("muted"))
        shortcut = QKeySequence(action.shortcut).toString(QKeySequence.SequenceFormat.NativeText)
        painter.drawText(box, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, shortcut or action.category)
        painter.restore()

    def _draw(self, painter: QPainter, box: QRect, words: str) -> None:
        painter.drawText(box, Qt.AlignmentFlag.AlignVCenter, painter.fontMetrics().elidedText(words, Qt.TextElideMode.ElideRight, box.width()))


class Palette(QDialog):
    """Type, Up/Down, Enter. Esc closes. ``refused`` tells why a chosen action cannot be done."""

    refused = Signal(str)

    def __init__(self, registry: ActionRegistry, parent: QWidget | None = None):
        super().__init__(parent, Qt.WindowType.Popup | Qt.WindowType.FramelessWindowHint)
        self._registry, self._tallest = registry, 460
        self.setWindowTitle(text.palette())
        a11y.name(self, text.palette())
        self.field = a11y.name(QLineEdit(), text.palette_field())
        self.field.setPlaceholderText(text.palette_field())
        self._model = _Found(self)
        self.list = theme.look(a11y.name(QListView(), text.palette_list()), "flat")
        self.list.setModel(self._model)
        self.list.setItemDelegate(_Line(self.list))
        self.list.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.list.setUniformItemSizes(True)
        self.list.setVerticalScrollMode(QListView.ScrollMode.ScrollPerPixel)
        self.list.clicked.connect(self._choose)
        frame = theme.look(QFrame(), "card")
        inner = QVBoxLayout(frame)
        inner.setContentsMargins(*theme.margins(theme.S))
        inner.setSpacing(theme.S)
        inner.addWidget(self.field)
        inner.addWidget(self.list)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(frame)
        self.field.textChanged.connect(self._search)
        self.field.installEventFilter(self)

    def open_over(self, window: QWidget) -> None:
        """Show it, empty and ready to type, at the upper middle of the window."""
        width, self._tallest = min(640, window.width() - 40), min(460, window.height() - 80)
        self.resize(width, self._tallest)
        self.field.clear()
        self._search("")
        corner = window.mapToGlobal(window.rect().topLeft())
        self.move(corner.x() + (window.width() - width) // 2, corner.y() + 56)
        self.show()
        self.field.setFocus()

    def shown(self) -> list[Action]:
        return [self._model.index(row).data(ACTION) for row in range(self._model.rowCount())]

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:      # noqa: N802
        if event.type() == QEvent.Type.KeyPress:
            step = {Qt.Key.Key_Down: 1, Qt.Key.Key_Up: -1, Qt.Key.Key_PageDown: 8, Qt.Key.Key_PageUp: -8}.get(event.key())
            if step is not None and self._model.rowCount():
                row = max(0, min(self._model.rowCount() - 1, self.list.currentIndex().row() + step))
                self.list.setCurrentIndex(self._model.index(row))
                a11y.announce(self.field, self._model.index(row).data(Qt.ItemDataRole.AccessibleTextRole))
                return True
            if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
                self._choose(self.list.currentIndex())
                return True
        return False

    def _search(self, query: str) -> None:
        self._model.show(self._registry.search(query))
        if self._model.rowCount():
            self.list.setCurrentIndex(self._model.index(0))
        rows = max(1, self._model.rowCount()) * self.list.sizeHintForRow(0) if self._model.rowCount() else 40
        self.resize(self.width(), min(self._tallest, rows + self.field.sizeHint().height() + 4 * theme.S))

    def _choose(self, index: QModelIndex) -> None:
        if not index.isValid():
            return
        action = index.data(ACTION)
        self.close()
        if (why := self._registry.execute(action.id)) is not None:
            self.refused.emit(why)
