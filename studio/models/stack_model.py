"""The stack as a list: what a row shows, what may be dropped between rows and why not. All changes are undoable commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PySide6.QtCore import QAbstractListModel, QMimeData, QModelIndex, QObject, Qt

from studio.core.catalogue import Catalogue, base_name
from studio.core.stack_commands import AddAdapter, Command, MoveAdapter, RemoveAdapter, SetBase, Several
from studio.core.stack_document import Change, Entry, StackDocument, same_path
from studio.core.text import frame as text
from studio.models import drag
from studio.models.undo import UndoStack

ID, ENTRY, PROBLEM = (Qt.ItemDataRole.UserRole + n for n in range(3))


class StackModel(QAbstractListModel):
    """One row an entry. Drops and their keyboard twins call the same methods: `add`, `move`, `remove`."""

    def __init__(self, document: StackDocument, undo: UndoStack, catalogue: Catalogue, parent: QObject | None = None):
        super().__init__(parent)
        self.document, self.undo, self.catalogue = document, undo, catalogue
        self._rows = list(document.entries)            # what Qt was told; the document is ahead of it while it is being told
        document.changed.connect(self._follow)
        catalogue.subscribe(self._all_data_changed)

    # --- what can be done ---

    def refusal(self, adapter: Path) -> str | None:
        """None if this adapter of the library may join the stack, else a sentence why not."""
        info = self.catalogue.adapter(adapter)
        if info is None:
            return text.not_in_library(name=adapter.name)
        if any(same_path(entry.adapter, adapter) for entry in self.document.entries):
            return text.already_in_stack(name=info.name)
        if self.document.base is None:
            return None if self.catalogue.home_of(info) else text.base_missing(adapter=info.name, base=base_name(info))
        model = self.catalogue.model(self.document.base)
        return self.catalogue.misfit(info, model) if model else text.stack_base_gone(model=self.document.base.name)

    def add(self, adapters: list[Path], place: int | None = None, strength: float = 1.0) -> list[str]:
        """Put adapters into the stack as one step; returns a sentence for each that cannot join."""
        refusals = [(path, self.refusal(path)) for path in adapters]
        joining = [self.catalogue.adapter(path) for path, why in refusals if why is None]
        if joining and self.document.base is None:         # the first one decides which model the stack stands on
            base = self.catalogue.home_of(joining[0])
            refusals += [(a.path, self.catalogue.misfit(a, base)) for a in joining[1:]]
            joining = [a for a in joining if self.catalogue.misfit(a, base) is None]
        else:
            base = None
        commands: list[Command] = [AddAdapter(a.path, a.name, None if place is None else place + n, strength, base.path if base else None)
                                   for n, a in enumerate(joining)]
        if len(commands) == 1:
            self.undo.push(commands[0])
        elif commands:
            self.undo.push(Several(commands, text.undo_add_many(len(commands))))
        return [why for _, why in refusals if why is not None]

    def move(self, id: int, place: int) -> bool:
        return self.undo.push(MoveAdapter(id, place))

    def remove(self, id: int) -> None:
        self.undo.push(RemoveAdapter(id))

    def choose_base(self, base: Path | None) -> list[str]:
        """Stand the stack on another model; returns the names of the adapters that had to leave because they do not fit it."""
        model = self.catalogue.model(base)
        leaving = [e for e in self.document.entries
                   if model is None or (info := self.catalogue.adapter(e.adapter)) is None or self.catalogue.misfit(info, model)]
        self.undo.push(SetBase(base, tuple(e.id for e in leaving)))
        return [e.name for e in leaving]

    def problem(self, entry: Entry) -> str:
        """Why an entry of the stack cannot be heard, or nothing."""
        info = self.catalogue.adapter(entry.adapter)
        if info is None:
            return text.entry_gone() if self.catalogue.looked else ""
        model = self.catalogue.model(self.document.base)
        return self.catalogue.misfit(info, model) or "" if model else ""

    # --- Qt's side ---

    def rowCount(self, parent: QModelIndex = QModelIndex()) -> int:      # noqa: N802
        return 0 if parent.isValid() else len(self._rows)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid():
            return None
        entry = self._rows[index.row()]
        if role == ID:
            return entry.id
        if role == Qt.ItemDataRole.DisplayRole:
            return entry.name
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return text.row_spoken(name=entry.name, place=index.row() + 1, count=len(self._rows), percent=round(entry.strength * 100),
                                   state=text.on() if entry.enabled else text.off())
        if role == ENTRY:
            return entry
        if role in (PROBLEM, Qt.ItemDataRole.ToolTipRole):
            return self.problem(entry)
        return None

    def flags(self, index: QModelIndex) -> Qt.ItemFlag:
        if not index.isValid():
            return Qt.ItemFlag.ItemIsDropEnabled
        return Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsDragEnabled

    def mimeTypes(self) -> list[str]:                                    # noqa: N802
        return [drag.MIME, "text/uri-list"]

    def mimeData(self, indexes: list[QModelIndex]) -> QMimeData:         # noqa: N802
        entries = [i.data(ENTRY) for i in indexes]
        return drag.pack(entries=[e.id for e in entries], names=[e.name for e in entries])

    def supportedDropActions(self) -> Qt.DropAction:                     # noqa: N802
        return Qt.DropAction.CopyAction | Qt.DropAction.MoveAction

    def supportedDragActions(self) -> Qt.DropAction:                     # noqa: N802
        return Qt.DropAction.MoveAction

    def drop_refusal(self, mime: QMimeData) -> str | None:
        """None if this may be dropped here, else why not (empty when it is nothing of ours)."""
        load = drag.unpack(mime)
        if load.entries:
            return None if set(load.entries) <= set(self._ids()) else ""
        if load.adapters:
            whys = [self.refusal(path) for path in load.adapters]
            return None if None in whys else whys[0]
        if load.files:
            return None if any(drag.adapter_folder(path) for path in load.files) else text.no_adapter_in_drop()
        return ""

    def canDropMimeData(self, mime: QMimeData, action, row: int, column: int, parent: QModelIndex) -> bool:     # noqa: N802
        return self.drop_refusal(mime) is None

    def dropMimeData(self, mime: QMimeData, action, row: int, column: int, parent: QModelIndex) -> bool:        # noqa: N802
        """Adapters join, rows move. (Files from outside are the panel's: they must be copied first.)"""
        load = drag.unpack(mime)
        place = row if row >= 0 else len(self._rows)
        if load.entries:
            for id in load.entries:
                if id in self._ids():
                    here = self._ids().index(id)
                    self.move(id, place - 1 if here < place else place)
            return True
        if load.adapters:
            self.add(list(load.adapters), place)
            return True
        return False

    # --- following the document ---

    def _follow(self, change: Change) -> None:
        if change.kind == "structure":
            self._follow_structure(list(self.document.entries))
        elif change.kind == "base":
            self._all_data_changed()
        elif change.entry_id in self._ids():
            row = self._ids().index(change.entry_id)
            self._rows[row] = self.document.entry(change.entry_id)
            self.dataChanged.emit(self.index(row), self.index(row))

    def _ids(self) -> list[int]:
        return [entry.id for entry in self._rows]

    def _follow_structure(self, rows: list[Entry]) -> None:
        old, new, none = self._ids(), [e.id for e in rows], QModelIndex()
        gone, come = [i for i in old if i not in new], [i for i in new if i not in old]
        if len(come) == 1 and not gone:
            place = new.index(come[0])
            self.beginInsertRows(none, place, place)
            self._rows = rows
            self.endInsertRows()
        elif len(gone) == 1 and not come:
            place = old.index(gone[0])
            self.beginRemoveRows(none, place, place)
            self._rows = rows
            self.endRemoveRows()
        elif (moved := _moved(old, new)) is not None:
            self.beginMoveRows(none, moved[0], moved[0], none, moved[1] + (moved[1] > moved[0]))
            self._rows = rows
            self.endMoveRows()
        elif old != new:
            self.beginResetModel()
            self._rows = rows
            self.endResetModel()

    def _all_data_changed(self) -> None:
        if self._rows:
            self.dataChanged.emit(self.index(0), self.index(len(self._rows) - 1))


def _moved(old: list[int], new: list[int]) -> tuple[int, int] | None:
    """(from, to) if one element was taken out and put in elsewhere."""
    if old == new or sorted(old) != sorted(new):
        return None
    start = next(n for n, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
    end = max(n for n, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
    for here, there in ((start, end), (end, start)):
        tried = list(old)
        tried.insert(there, tried.pop(here))
        if tried == new:
            return here, there
    return None
