"""Rows for narrow windows, large letters and languages of long words: `Flow` goes on in the next line, `Turning` becomes a column."""

from __future__ import annotations

from PySide6.QtCore import QPoint, QRect, QSize, Qt
from PySide6.QtWidgets import QBoxLayout, QLayout, QLayoutItem, QWidget

from studio.views import theme


class Flow(QLayout):
    """Widgets from left to right (from right to left where the language is), line by line."""

    def __init__(self, *widgets: QWidget, spacing: int = theme.S):
        super().__init__()
        self._items: list[QLayoutItem] = []
        self.setSpacing(spacing)
        for widget in widgets:
            self.addWidget(widget)

    # --- what Qt asks of a layout ---

    def addItem(self, item: QLayoutItem) -> None:            # noqa: N802
        self._items.append(item)

    def count(self) -> int:
        return len(self._items)

    def itemAt(self, place: int) -> QLayoutItem | None:      # noqa: N802
        return self._items[place] if 0 <= place < len(self._items) else None

    def takeAt(self, place: int) -> QLayoutItem | None:      # noqa: N802
        return self._items.pop(place) if 0 <= place < len(self._items) else None

    def expandingDirections(self) -> Qt.Orientation:         # noqa: N802
        return Qt.Orientation(0)

    def hasHeightForWidth(self) -> bool:                     # noqa: N802
        return True

    def heightForWidth(self, width: int) -> int:             # noqa: N802
        return self._lay_out(QRect(0, 0, width, 0), move=False)

    def setGeometry(self, rect: QRect) -> None:              # noqa: N802
        super().setGeometry(rect)
        self._lay_out(rect, move=True)

    def sizeHint(self) -> QSize:                             # noqa: N802
        sizes = [item.sizeHint() for item in self._shown()]
        return QSize(sum(size.width() for size in sizes) + self.spacing() * max(0, len(sizes) - 1), max((s.height() for s in sizes), default=0))

    def minimumSize(self) -> QSize:                          # noqa: N802
        sizes = [item.minimumSize() for item in self._shown()]
        return QSize(max((size.width() for size in sizes), default=0), max((size.height() for size in sizes), default=0))

    # --- laying out ---

    def _shown(self) -> list[QLayoutItem]:
        return [item for item in self._items if not item.isEmpty()]

    def _lay_out(self, rect: QRect, move: bool) -> int:
        """Returns the height that is needed at this width."""
        lines: list[list[tuple[QLayoutItem, QSize, int]]] = [[]]
        x = 0
        for item in self._shown():
            size = item.sizeHint()
            if lines[-1] and x + size.width() > rect.width():
                lines.append([])
                x = 0
            lines[-1].append((item, size, x))
            x += size.width() + self.spacing()
        widget, y = self.parentWidget(), rect.y()
        mirrored = widget is not None and widget.layoutDirection() == Qt.LayoutDirection.RightToLeft
        for line in lines:
            high = max((size.height() for _, size, _ in line), default=0)
            for item, size, x in line if move else ():
                left = rect.right() + 1 - x - size.width() if mirrored else rect.x() + x
                item.setGeometry(QRect(QPoint(left, y + (high - size.height()) // 2), size))
            y += high + self.spacing()
        return y - self.spacing() - rect.y()


class Turning(QWidget):
    """Widgets side by side, equally wide; one below the other where they have no room for that, or for ``letters`` in a line of each."""

    def __init__(self, *widgets: QWidget, spacing: int = theme.L, letters: int = 0):
        super().__init__()
        self._letters = letters
        self._box = QBoxLayout(QBoxLayout.Direction.LeftToRight, self)
        self._box.setContentsMargins(0, 0, 0, 0)
        self._box.setSpacing(spacing)
        for widget in widgets:
            self._box.addWidget(widget, 1)

    def minimumSizeHint(self) -> QSize:                      # noqa: N802 (Qt's names)
        return QSize(max(self._widths(), default=0), super().minimumSizeHint().height())

    def sizeHint(self) -> QSize:                             # noqa: N802
        return QSize(max(super().sizeHint().width(), self._row()), super().sizeHint().height())

    def resizeEvent(self, event) -> None:                    # noqa: N802
        super().resizeEvent(event)
        room = self._row() <= self.width()
        self._box.setDirection(QBoxLayout.Direction.LeftToRight if room else QBoxLayout.Direction.TopToBottom)

    def _row(self) -> int:
        """The least width of all side by side."""
        widths = self._widths()
        each = max(*widths, self._letters * self.fontMetrics().averageCharWidth()) if widths else 0
        return (each + self._box.spacing()) * len(widths) - self._box.spacing()

    def _widths(self) -> list[int]:
        return [self._box.itemAt(place).minimumSize().width() for place in range(self._box.count()) if not self._box.itemAt(place).isEmpty()]
