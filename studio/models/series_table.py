"""The table twin of a curve: every step that has a number or an event, for readers who cannot or will not look at a picture."""

from __future__ import annotations

import bisect
import math

from PySide6.QtCore import QAbstractTableModel, QModelIndex, Qt

from studio.core.text import number
from studio.core.text import teach as words

LEARNED, UNSEEN, EVENT = 1, 2, 3


class SeriesTable(QAbstractTableModel):
    """Rows by step; columns step, error on learned, error on unseen, what happened. Grows while a training runs."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._steps: list[float] = []
        self._rows: list[list] = []

    def put(self, step: float, column: int, value: float | str) -> None:
        """Set one cell; the row is made where it belongs."""
        place = bisect.bisect_left(self._steps, step)
        if place == len(self._steps) or self._steps[place] != step:
            self.beginInsertRows(QModelIndex(), place, place)
            self._steps.insert(place, step)
            self._rows.insert(place, [step, None, None, ""])
            self.endInsertRows()
        row = self._rows[place]
        if column != EVENT or not row[EVENT]:
            row[column] = value
        elif value not in row[EVENT]:
            row[EVENT] = f"{row[EVENT]}; {value}"
        self.dataChanged.emit(self.index(place, column), self.index(place, column))

    def row_of(self, step: float) -> int | None:
        """The row of this step, if there is one."""
        place = bisect.bisect_left(self._steps, step)
        return place if place < len(self._steps) and self._steps[place] == step else None

    def rewind(self, step: float) -> None:
        """Forget everything at or beyond ``step``: a resumed run tells it anew."""
        place = bisect.bisect_left(self._steps, step)
        if place < len(self._steps):
            self.beginRemoveRows(QModelIndex(), place, len(self._steps) - 1)
            del self._steps[place:], self._rows[place:]
            self.endRemoveRows()

    def clear(self) -> None:
        self.beginResetModel()
        self._steps.clear()
        self._rows.clear()
        self.endResetModel()

    def rowCount(self, parent: QModelIndex = QModelIndex()) -> int:            # noqa: N802 (Qt's names)
        return 0 if parent.isValid() else len(self._rows)

    def columnCount(self, parent: QModelIndex = QModelIndex()) -> int:         # noqa: N802
        return 0 if parent.isValid() else 4

    def headerData(self, section: int, orientation, role: int = Qt.ItemDataRole.DisplayRole):    # noqa: N802
        if role == Qt.ItemDataRole.DisplayRole and orientation == Qt.Orientation.Horizontal:
            return words.TABLE_COLUMNS[section]()
        return None

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole):
        if not index.isValid() or role not in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.TextAlignmentRole):
            return None
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return int(Qt.AlignmentFlag.AlignVCenter | (Qt.AlignmentFlag.AlignLeft if index.column() == EVENT
                                                        else Qt.AlignmentFlag.AlignRight))
        value = self._rows[index.row()][index.column()]
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        return number(value, 0 if index.column() == 0 else 4) if math.isfinite(value) else "–"
