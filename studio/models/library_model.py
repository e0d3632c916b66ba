"""The library as a tree: models > adapters > checkpoints, layers > places; trainings, data sets, exports.

What lies inside an adapter is read only when it is opened.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any
from collections.abc import Callable, Iterable

from PySide6.QtCore import QAbstractItemModel, QModelIndex, QObject, Qt

from engine.errors import StudioError
from engine.store.library import AdapterInfo, ModelInfo
from studio.core import catalogue as library
from studio.core.catalogue import Catalogue, Module
from studio.core.history import Checkpoint, DataSet, Run
from studio.core.text import amounts, number
from studio.core.text import frame as text
from studio.core.text.spoken import spoken
from studio.models import drag

KIND, NOTE, THING, KEY = (Qt.ItemDataRole.UserRole + n for n in range(4))


class Node:
    """One row. ``children`` is None until somebody looked; ``load`` makes them."""

    __slots__ = ("kind", "label", "note", "thing", "key", "parent", "row", "children", "load", "tip")

    def __init__(self, kind: str, label: str, *, note: str = "", thing: object = None, key: str = "", tip: str = "",
                 load: Callable[[], list["Node"]] | None = None, children: list["Node"] | None = None):
        self.kind, self.label, self.note, self.thing, self.key, self.tip = kind, label, note, thing, key or label, tip
        self.parent: Node | None = None
        self.row = 0
        self.load = load
        self.children = children if children is not None else (None if load else [])
        self._adopt()

    def fetch(self) -> list["Node"]:
        nodes = self.load()
        self.load = None
        return nodes

    def take_in(self, nodes: list["Node"]) -> None:
        self.children = nodes
        self._adopt()

    def _adopt(self) -> None:
        for row, child in enumerate(self.children or ()):
            child.parent, child.row = self, row


class LibraryModel(QAbstractItemModel):
    """Follows a `Catalogue`. ``filter`` shows only adapters and models with these letters in their name."""

    def __init__(self, catalogue: Catalogue, parent: QObject | None = None):
        super().__init__(parent)
        self._catalogue, self._words = catalogue, ""
        self._root = Node("root", "", children=self._tree())
        catalogue.subscribe(self.rebuild)

    def rebuild(self) -> None:
        """Make the tree anew from the catalogue (views keep what was open by `KEY`)."""
        self.beginResetModel()
        self._root = Node("root", "", children=self._tree())
        self.endResetModel()

    def filter(self, words: str) -> None:
        if words.casefold().strip() != self._words:
            self._words = words.casefold().strip()
            self.rebuild()

    def find(self, key: str) -> QModelIndex:
        """The row with this key among those that are loaded; invalid if there is none."""
        def search(node: Node) -> Node | None:
            for child in node.children or ():
                if child.key == key:
                    return child
                if found := search(child):
                    return found
            return None
        found = search(self._root)
        return self.createIndex(found.row, 0, found) if found else QModelIndex()

    # --- Qt's side ---

    def index(self, row: int, column: int, parent: QModelIndex = QModelIndex()) -> QModelIndex:
        node = self._node(parent)
        if column == 0 and node.children and 0 <= row < len(node.children):
            return self.createIndex(row, 0, node.children[row])
        return QModelIndex()

    def parent(self, index: QModelIndex) -> QModelIndex:
        above = self._node(index).parent if index.isValid() else None
        return QModelIndex() if above is None or above is self._root else self.createIndex(above.row, 0, above)

    def rowCount(self, parent: QModelIndex = QModelIndex()) -> int:      # noqa: N802
        return len(self._node(parent).children or ())

    def columnCount(self, parent: QModelIndex = QModelIndex()) -> int:   # noqa: N802
        return 1

    def hasChildren(self, parent: QModelIndex = QModelIndex()) -> bool:  # noqa: N802
        node = self._node(parent)
        return node.children is None or bool(node.children)

    def canFetchMore(self, parent: QModelIndex) -> bool:                 # noqa: N802
        return self._node(parent).children is None

    def fetchMore(self, parent: QModelIndex) -> None:                    # noqa: N802
        node = self._node(parent)
        if node.children is None:
            nodes = node.fetch()
            if nodes:
                self.beginInsertRows(parent, 0, len(nodes) - 1)
                node.take_in(nodes)
                self.endInsertRows()
            else:
                node.take_in([])

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid():
            return None
        node = self._node(index)
        if role == Qt.ItemDataRole.DisplayRole:
            return node.label
        if role == KIND:
            return node.kind
        if role == NOTE:
            return node.note
        if role == THING:
            return node.thing
        if role == KEY:
            return node.key
        if role == Qt.ItemDataRole.ToolTipRole:
            return node.tip or node.label
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return f"{node.label}, {node.note}" if node.note else node.label
        return None

    def flags(self, index: QModelIndex) -> Qt.ItemFlag:
        if not index.isValid():
            return Qt.ItemFlag.NoItemFlags
        flags = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        return flags | Qt.ItemFlag.ItemIsDragEnabled if self._node(index).kind == "adapter" else flags

    def mimeTypes(self) -> list[str]:                                    # noqa: N802
        return [drag.MIME]

    def mimeData(self, indexes: list[QModelIndex]):                      # noqa: N802
        infos = [self._node(i).thing for i in indexes if self._node(i).kind == "adapter"]
        return drag.pack(adapters=[a.path for a in infos], names=[a.name for a in infos]) if infos else None

    def supportedDragActions(self) -> Qt.DropAction:                     # noqa: N802
        return Qt.DropAction.CopyAction

    def _node(self, index: QModelIndex) -> Node:
        return index.internalPointer() if index.isValid() else self._root

    # --- the tree ---

    def _tree(self) -> list[Node]:
        shown = self._catalogue
        nodes = [node for model in shown.models if (node := self._model_node(model, shown.adapters_for(model)))]
        strangers = [self._adapter_node(a, "stranger") for a in shown.strangers() if self._matches(a.name)]
        if strangers:
            nodes.append(Node("group", text.tree_strangers(), key="strangers", children=strangers, tip=text.tree_strangers_tip()))
        exports = [Node("export", m.name, note=amounts.size(m.bytes), thing=m, key=f"export {m.path}")
                   for m in shown.snapshot.exports if self._matches(m.name)]
        runs = [_run_node(run) for run in shown.snapshot.runs if self._matches(run.name)]
        files = [_data_node(found) for found in shown.snapshot.datasets if self._matches(found.name)]
        for key, name, children in (("runs", text.tree_runs(), runs), ("datasets", text.tree_data(), files)):
            if children:                   # they grow long: closed at first
                nodes.append(Node("shelf", name, note=number(len(children)), key=key, children=children))
        if exports:
            nodes.append(Node("group", text.tree_exports(), key="exports", children=exports))
        if shown.problems and not self._words:
            nodes.append(Node("group", text.tree_problems(), key="problems", note=str(len(shown.problems)),
                              children=[_problem_node(p) for p in shown.problems]))
        return nodes

    def _model_node(self, model: ModelInfo, adapters: list[AdapterInfo]) -> Node | None:
        kept = [a for a in adapters if self._matches(a.name)]
        if not kept and not self._matches(model.name):
            return None
        return Node("model", model.name, note=amounts.count(model.parameters), thing=model, key=f"model {model.path}",
                    children=[self._adapter_node(a, str(model.path)) for a in kept], tip=str(model.path))

    def _matches(self, name: str) -> bool:
        return self._words in name.casefold()

    def _adapter_node(self, adapter: AdapterInfo, under: str) -> Node:
        saved = [checkpoint for run in self._catalogue.runs_of(adapter) for checkpoint in run.checkpoints]
        return Node("adapter", adapter.name, note=text.kind_and_rank(adapter.peft_type, adapter.rank, adapter.config), thing=adapter,
                    key=f"adapter {adapter.path} under {under}", tip=text.tree_adapter_tip(name=adapter.name),
                    load=lambda: _checkpoints(saved, under) + _inside(adapter))


def _checkpoints(saved: Iterable[Checkpoint], under: str) -> list[Node]:
    return [Node("checkpoint", text.checkpoint(step=found.step), note=amounts.size(found.bytes), thing=found, key=f"{found.path} under {under}",
                 tip=str(found.path)) for found in saved]


def _run_node(run: Run) -> Node:
    return Node("run", run.name, note=text.run_state(run.state), thing=run, key=f"run {run.path}", tip=str(run.path),
                children=_checkpoints(run.checkpoints, "run"))


def _data_node(found: DataSet) -> Node:
    return Node("data", found.name, note="" if found.there else text.missing_file(), thing=found, key=f"data {found.path}", tip=str(found.path))


def _inside(adapter: AdapterInfo) -> list[Node]:
    nodes = []
    for layer, found in groupby(library.modules(adapter), key=lambda m: m.layer):
        places = [_module_node(adapter, module) for module in found]
        if layer is None:
            nodes.extend(places)
        else:
            nodes.append(Node("layer", text.layer(layer + 1), note=text.places(len(places)), key=f"{adapter.path} {layer}", children=places))
    return nodes


def _module_node(adapter: AdapterInfo, module: Module) -> Node:
    return Node("module", module.name, note=amounts.count(module.parameters), thing=module, key=f"{adapter.path} {module.path}", tip=module.path)


def _problem_node(problem: StudioError) -> Node:
    path = Path(str(problem.facts.get("path", "")))
    folder = path if path.is_dir() or not path.suffix else path.parent
    return Node("problem", folder.name or spoken(problem.what), thing=problem, key=f"problem {problem}", tip=spoken(str(problem)))
