"""The library: a tree of models and adapters with a search field. Enter or a drag brings an adapter into the stack."""

from __future__ import annotations

from pathlib import Path
from collections.abc import Callable

from PySide6.QtCore import QItemSelectionModel, QModelIndex, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QFontMetrics, QGuiApplication, QKeyEvent, QKeySequence, QPainter
from PySide6.QtWidgets import (QAbstractItemView, QFrame, QHBoxLayout, QLabel, QLineEdit, QPushButton, QStackedLayout, QStyle,
                               QStyledItemDelegate, QStyleOptionViewItem, QTreeView, QVBoxLayout, QWidget)

from engine.errors import StudioError
from engine.store.library import AdapterInfo
from studio.core.catalogue import Catalogue
from studio.core.text import frame as text
from studio.models import drag
from studio.models.background import Background
from studio.models.library_model import KEY, KIND, NOTE, THING, LibraryModel
from studio.views import a11y, theme

ICON_OF = {"model": "model", "adapter": "adapter", "layer": "module", "module": "fact", "group": "folder", "export": "export",
           "shelf": "folder", "run": "teach", "checkpoint": "disk", "data": "data", "problem": "warning"}


class TreeDelegate(QStyledItemDelegate):
    """Icon, name, and a quiet note at the right edge; asks the model for as little as it can."""

    def initStyleOption(self, option: QStyleOptionViewItem, index: QModelIndex) -> None:    # noqa: N802
        kind, note = index.data(KIND), self._note(option, index)
        option.features |= QStyleOptionViewItem.ViewItemFeature.HasDisplay | QStyleOptionViewItem.ViewItemFeature.HasDecoration
        option.icon = theme.icon(ICON_OF.get(kind, "fact"), "warn" if kind == "problem" else "accent" if kind == "adapter" else "muted")
        option.decorationSize = QSize(option.fontMetrics.height(), option.fontMetrics.height())
        if kind in ("model", "group", "shelf"):
            option.font.setWeight(option.font.Weight.DemiBold)
        metrics = QFontMetrics(option.font)
        room = option.rect.width() - option.decorationSize.width() - 26 - (option.fontMetrics.horizontalAdvance(note) + 14 if note else 0)
        option.text = metrics.elidedText(index.data(), Qt.TextElideMode.ElideMiddle, max(room, 40))
        option.index = index

    @staticmethod
    def _note(option: QStyleOptionViewItem, index: QModelIndex) -> str:
        """The note, where it leaves the name twelve letters."""
        note, metrics = index.data(NOTE) or "", option.fontMetrics
        room = option.rect.width() - metrics.height() - 32 - metrics.horizontalAdvance(note)
        return note if room >= min(metrics.horizontalAdvance(index.data()), 12 * metrics.averageCharWidth()) else ""

    def sizeHint(self, option: QStyleOptionViewItem, index: QModelIndex) -> QSize:          # noqa: N802
        return QSize(120, max(26, round(option.fontMetrics.height() * 1.7)))

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex) -> None:
        super().paint(painter, option, index)
        if note := self._note(option, index):
            painter.save()
            painter.setPen(theme.color("text" if option.state & QStyle.StateFlag.State_Selected else "muted"))
            painter.drawText(option.rect.adjusted(0, 0, -8, 0), Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, note)
            painter.restore()


class LibraryTree(QTreeView):
    """Tells on Enter which adapters are meant; Ctrl+C puts them on the clipboard as a drag would carry them."""

    entered = Signal(list)                 # adapter paths

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.setHeaderHidden(True)
        self.setUniformRowHeights(True)
        self.setItemDelegate(TreeDelegate(self))
        self.setDragEnabled(True)
        self.setDragDropMode(QAbstractItemView.DragDropMode.DragOnly)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setIndentation(16)
        self.setExpandsOnDoubleClick(False)
        self.doubleClicked.connect(self._double)
        theme.look(self, "flat")

    def adapters(self) -> list[AdapterInfo]:
        """The selected adapters, from top to bottom."""
        rows = sorted(self.selectedIndexes(), key=lambda i: self.visualRect(i).top())
        return [i.data(THING) for i in rows if i.data(KIND) == "adapter"]

    def copy(self) -> None:
        """The selected adapters to the clipboard, as a drag would carry them."""
        if adapters := self.adapters():
            QGuiApplication.clipboard().setMimeData(drag.pack(adapters=[a.path for a in adapters], names=[a.name for a in adapters]))

    def keyPressEvent(self, event: QKeyEvent) -> None:      # noqa: N802
        if event.matches(QKeySequence.StandardKey.Copy):
            self.copy()
        elif event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and self.adapters():
            self.entered.emit([a.path for a in self.adapters()])
        elif event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and self.currentIndex().isValid():
            self.setExpanded(self.currentIndex(), not self.isExpanded(self.currentIndex()))
        else:
            super().keyPressEvent(event)

    def _double(self, index: QModelIndex) -> None:
        if index.data(KIND) == "adapter":
            self.entered.emit([index.data(THING).path])
        else:
            self.setExpanded(index, not self.isExpanded(index))


class LibraryPanel(QWidget):
    """The dock at the left. ``add`` puts adapters into the stack (paths); ``fetch_starter`` brings the first model."""

    said = Signal(str)
    failed = Signal(object)
    selected = Signal(object)              # ModelInfo, AdapterInfo, Module, Run, Checkpoint, DataSet, StudioError or None
    imported = Signal(list)                # new adapter paths

    def __init__(self, catalogue: Catalogue, background: Background, add: Callable[[list[Path]], object],
                 fetch_starter: Callable[[], object], parent: QWidget | None = None):
        super().__init__(parent)
        self.title = text.library()
        self._catalogue, self._background, self._add = catalogue, background, add
        self.model = LibraryModel(catalogue, self)
        self.search = a11y.name(QLineEdit(), text.library_search())
        self.search.setPlaceholderText(text.library_search())
        self.search.setClearButtonEnabled(True)
        self.tree = a11y.name(LibraryTree(), text.library(), text.library_help())
        self.tree.setModel(self.model)
        self.tree.entered.connect(self._enter)
        self._empty = _EmptyLibrary(fetch_starter)
        self._pages = QStackedLayout()
        self._pages.addWidget(self.tree)
        self._pages.addWidget(self._empty)
        self._no_hits = theme.look(QLabel(text.library_no_hits(), alignment=Qt.AlignmentFlag.AlignCenter, wordWrap=True), "muted")
        self._pages.addWidget(self._no_hits)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(theme.S, theme.S, theme.S, theme.S)
        layout.setSpacing(theme.S)
        layout.addWidget(self.search)
        layout.addLayout(self._pages, 1)
        self.setAcceptDrops(True)
        self._wait = QTimer(self, singleShot=True, interval=150)
        self._wait.timeout.connect(lambda: self.model.filter(self.search.text()))
        self.search.textChanged.connect(lambda: self._wait.start())
        self._open: set[str] = set()
        self._chosen: list[str] = []
        self._known: set[str] = set()
        self.model.modelAboutToBeReset.connect(self._note_open)
        self.model.modelReset.connect(self._reopen)
        self.tree.selectionModel().selectionChanged.connect(self._tell_selection)
        theme.changed.connect(self._repaint)
        self._repaint()
        self._reopen()

    def select(self, path: Path) -> None:
        """Show and select the adapter or model that lies at ``path``."""
        for key in [f"model {path}", *(f"adapter {path} under {m.path}" for m in self._catalogue.models), f"adapter {path} under stranger"]:
            if (index := self.model.find(key)).isValid():
                self.tree.setCurrentIndex(index)
                self.tree.scrollTo(index)
                return

    def refresh(self) -> None:
        """Look at the folders again, in the background."""
        self._background.run(self._catalogue.look, self._catalogue.adopt, self.failed.emit)

    def bring_in(self, folders: list[Path]) -> None:
        """Check adapter folders, copy them into the library and say so."""
        for folder in folders:
            self._background.run(lambda folder=folder: (self._catalogue.bring_in(folder), self._catalogue.look()), self._arrived, self.failed.emit)

    def _arrived(self, found: tuple) -> None:
        path, snapshot = found
        self._catalogue.adopt(snapshot)
        self.select(path)
        self.said.emit(text.imported(name=path.name))
        self.imported.emit([path])

    def _enter(self, adapters: list[Path]) -> None:
        self._add(adapters)

    # --- files dropped from outside ---

    def dragEnterEvent(self, event) -> None:                 # noqa: N802
        if drag.unpack(event.mimeData()).files:
            event.acceptProposedAction()

    def dropEvent(self, event) -> None:                      # noqa: N802
        files = drag.unpack(event.mimeData()).files
        folders = [found for file in files if (found := drag.adapter_folder(file))]
        event.acceptProposedAction()
        if folders:
            self.bring_in(folders)
        elif files:
            self.failed.emit(StudioError(text.no_adapter_in_drop(), do=text.no_adapter_in_drop_do()))

    # --- keeping what was open over a rebuild ---

    def _note_open(self) -> None:
        def walk(parent: QModelIndex) -> None:
            for row in range(self.model.rowCount(parent)):
                index = self.model.index(row, 0, parent)
                self._known.add(index.data(KEY))
                if self.tree.isExpanded(index):
                    self._open.add(index.data(KEY))
                else:
                    self._open.discard(index.data(KEY))
                walk(index)
        walk(QModelIndex())
        self._chosen = [i.data(KEY) for i in self.tree.selectedIndexes()]

    def _reopen(self) -> None:
        def walk(parent: QModelIndex) -> None:
            for row in range(self.model.rowCount(parent)):
                index = self.model.index(row, 0, parent)
                key, kind = index.data(KEY), index.data(KIND)
                fresh = key not in self._known and kind in ("model", "group")      # new models stand open
                if key in self._open or fresh:
                    if self.model.canFetchMore(index):
                        self.model.fetchMore(index)
                    self.tree.setExpanded(index, True)
                walk(index)
        walk(QModelIndex())
        selection = self.tree.selectionModel()
        for key in self._chosen:
            if (index := self.model.find(key)).isValid():
                selection.select(index, QItemSelectionModel.SelectionFlag.Select)
        bare, sought = self.model.rowCount() == 0, bool(self.search.text())
        self._pages.setCurrentWidget(self.tree if not bare else self._no_hits if sought else self._empty)
        self.search.setVisible(sought or not bare)

    def _tell_selection(self) -> None:
        chosen = self.tree.selectedIndexes()
        if chosen:
            self.selected.emit(chosen[-1].data(THING))

    def sizeHint(self) -> QSize:            # noqa: N802 (Qt's name)
        return QSize(theme.beside_work(self, 36), 400)

    def _repaint(self, *_) -> None:
        self.setMinimumWidth(max(180, self.fontMetrics().averageCharWidth() * 16))
        self.tree.viewport().update()


class _EmptyLibrary(QWidget):
    """What a person sees first: what a library is, and the one button that fills it."""

    def __init__(self, fetch_starter: Callable[[], object]):
        super().__init__()
        frame = theme.look(QFrame(), "drop")
        self._mark = QLabel(alignment=Qt.AlignmentFlag.AlignCenter)
        heading = theme.look(QLabel(text.library_empty(), alignment=Qt.AlignmentFlag.AlignCenter, wordWrap=True), "strong")
        words = theme.look(QLabel(text.library_empty_do(), alignment=Qt.AlignmentFlag.AlignCenter, wordWrap=True), "muted")
        button = theme.look(QPushButton(text.get_starter()), "primary")
        button.clicked.connect(lambda: fetch_starter())
        button.setToolTip(text.do_starter_help())
        inner = QVBoxLayout(frame)
        inner.setContentsMargins(*theme.margins(theme.L))
        inner.setSpacing(theme.M)
        for widget in (self._mark, heading, words):
            inner.addWidget(widget)
        row = QHBoxLayout()
        row.addStretch(1)
        row.addWidget(button)
        row.addStretch(1)
        inner.addLayout(row)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(theme.XS, theme.S, theme.XS, theme.S)
        layout.addWidget(frame)
        layout.addStretch(1)
        theme.changed.connect(self._tint)
        self._tint()

    def _tint(self) -> None:
        self._mark.setPixmap(theme.icon("library", "muted").pixmap(32, 32))
