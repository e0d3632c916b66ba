"""All examples of a file as a table of one column: a page is fetched when one of its rows is seen, and the last few pages are kept.

A million rows cost as much as fifty: what is not looked at is neither read nor held.
"""

from __future__ import annotations

from collections import OrderedDict

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QPersistentModelIndex, Qt, QTimer, Signal

from engine.specs import DataReport, RowsPage, ShowRows
from studio.core.text import teach as words
from studio.models.teach_draft import TeachDraft

HEAD = 1000                                # rows that are shown at once, however many there are; the rest is counted meanwhile
PAGE = 50                                  # rows that are asked for at once
KEPT = 20                                  # pages
LETTERS = 600                              # of each message: as many as a list can show
MESSAGES = Qt.ItemDataRole.UserRole + 1    # list of {role, content}, or None while it is on its way
HELD = Qt.ItemDataRole.UserRole + 2        # whether the row is held back for testing
Place = QModelIndex | QPersistentModelIndex


class ExamplesModel(QAbstractTableModel):
    """Signals: `trouble(StudioError)` when a page could not be read."""

    trouble = Signal(object)

    def __init__(self, draft: TeachDraft, talk_bridge, parent=None):
        super().__init__(parent)
        self._draft, self._talk = draft, talk_bridge
        self._rows = self._head = 0
        self._pages: OrderedDict[int, list[tuple[list[dict], bool]]] = OrderedDict()
        self._first: list[list[dict]] = []     # came with the report, so that they are there at once
        self._wanted: list[int] = []       # pages that were looked at and are not here, the latest last
        self._ticket = self._asked = 0
        self._soon = QTimer(self, interval=20, singleShot=True)        # who scrolls past does not ask for what flew by
        self._soon.timeout.connect(self._ask)

    def show(self, report: DataReport | None) -> None:
        """Begin anew with what a report says of a file."""
        self.beginResetModel()
        self._forget()
        self._rows, self._first = (report.rows, report.examples) if report else (0, [])
        self._head = 0 if report is None or report.whole else HEAD
        self.endResetModel()

    def grow(self, report: DataReport) -> None:
        """All rows are counted of which the first stand here: those stay, the others follow; which are held back is known now."""
        if report.rows <= self._rows:
            self.show(report)              # what was changed in them concerns later ones, too
            return
        self._forget()
        self.beginInsertRows(QModelIndex(), self._rows, report.rows - 1)
        self._rows, self._head = report.rows, 0
        self.endInsertRows()
        self.dataChanged.emit(self.index(0, 0), self.index(self._rows - 1, 0))

    def _forget(self) -> None:
        self._talk.forget(self._ticket)
        self._ticket = 0
        self._pages.clear()
        self._wanted.clear()

    # --- what a view asks ---

    def rowCount(self, parent: Place = QModelIndex()) -> int:          # noqa: N802 (Qt's names)
        return 0 if parent.isValid() else self._rows

    def columnCount(self, parent: Place = QModelIndex()) -> int:       # noqa: N802
        return 0 if parent.isValid() else 1

    def data(self, index: Place, role: int = Qt.ItemDataRole.DisplayRole):
        if not index.isValid() or role not in (MESSAGES, HELD, Qt.ItemDataRole.AccessibleTextRole):
            return None
        found = self._row(index.row())
        if role == MESSAGES:
            return found and found[0]
        if role == HELD:
            return bool(found and found[1])
        return words.example(index.row() + 1, *found) if found else words.DATA_LOOKING()

    def _row(self, row: int) -> tuple[list[dict], bool] | None:
        number = row // PAGE
        if (page := self._pages.get(number)) is not None:
            self._pages.move_to_end(number)
            return page[row % PAGE] if row % PAGE < len(page) else None
        if number not in self._wanted:
            self._wanted.append(number)
            self._soon.start()
        return (self._first[row], False) if row < len(self._first) else None

    # --- fetching ---

    def _ask(self) -> None:
        """One page at a time; the one looked at last comes first, and what is long out of sight never."""
        if self._ticket or not self._wanted or not self._draft.draft.data:
            return
        self._asked, draft = self._wanted.pop(), self._draft.draft
        del self._wanted[:-3]
        self._ticket = self._talk.ask(
            ShowRows(draft.data, roles=draft.roles, edits=self._draft.edits, holdout=draft.overrides.get("holdout", 0.1), head=self._head,
                     start=self._asked * PAGE, count=PAGE, letters=LETTERS), on_done=self._arrived, on_error=self._failed)

    def _arrived(self, page: RowsPage | None) -> None:
        self._ticket = 0
        if page is not None:
            number = page.start // PAGE
            self._pages[number] = [(messages, bool(held)) for messages, held in zip(page.examples, page.held)]
            while len(self._pages) > KEPT:
                self._pages.popitem(last=False)
            if self._rows:
                self.dataChanged.emit(self.index(number * PAGE, 0), self.index(min(self._rows, (number + 1) * PAGE) - 1, 0))
        if self._wanted:
            self._soon.start()

    def _failed(self, error) -> None:
        self._ticket = 0
        self._pages[self._asked] = []      # not again and again
        self._wanted.clear()               # the others when they are looked at again
        self.trouble.emit(error)
