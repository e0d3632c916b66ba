"""Mix: the adapter stack on its model. What the sliders say is heard at the next token."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QPoint, Qt, Signal
from PySide6.QtWidgets import QCheckBox, QFrame, QLabel, QMenu, QStackedLayout, QVBoxLayout, QWidget

from studio.core.catalogue import Catalogue
from studio.core.stack_document import Change, StackDocument, same_path
from studio.core.text import amounts, number
from studio.core.text import frame as text
from studio.models.stack_model import StackModel
from studio.models.undo import UndoStack
from studio.views import a11y, theme
from studio.views.flow import Flow
from studio.views.parts import Row, button, retint
from studio.views.stack_rows import StackList


class MixPanel(QWidget):
    """A model to stand on, the rows of the stack, and one sentence that says what is heard."""

    said = Signal(str)
    failed = Signal(object)
    files = Signal(list, int)              # adapter folders to be brought into the library, and the place in the stack
    wish = Signal(str)                     # the person wants to go on in another workspace: "try" or "export"
    selected = Signal(object)              # AdapterInfo of the current row

    def __init__(self, document: StackDocument, undo: UndoStack, catalogue: Catalogue, parent: QWidget | None = None):
        super().__init__(parent)
        self.title = text.mix()
        self._document, self._undo, self._catalogue = document, undo, catalogue
        self.model = StackModel(document, undo, catalogue, self)
        self.list = StackList(self.model)
        self.base = a11y.name(a11y.Choice(20), text.stack_model(), text.stack_model_help())
        self.base.activated.connect(self._choose_base)
        self.add_button = button(text.add_adapter_menu(), self._offer, icon="plus")
        self.wide = QCheckBox(text.advanced())
        self.wide.setToolTip(text.advanced_stack_help())
        self.wide.toggled.connect(self.list.set_wide)
        self.heard = theme.look(QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText), "muted")
        self.try_button = button(text.go_try(), lambda: self.wish.emit("try"), "primary", icon="try")
        self.export_button = button(text.go_export(), lambda: self.wish.emit("export"), icon="export")
        self._empty = _EmptyStack(self.add_button.click)
        self._lay_out()
        self.list.hovered.connect(self._empty.glow)
        self.list.refused.connect(self._show_refusal)
        self.list.spoke.connect(self._speak)
        self.list.failed.connect(self.failed)
        self.list.files.connect(self.files)
        self.list.selectionModel().currentChanged.connect(lambda *_: self._tell_selected())
        document.changed.connect(self._follow)
        catalogue.subscribe(self._fill_bases)
        theme.changed.connect(self._retint)
        self._retint()
        self._fill_bases()
        self._show_state()

    def add(self, adapters: list[Path], strength: float = 1.0) -> None:
        """Put adapters at the end of the stack, this strong; says in the status line what cannot join, and why."""
        refusals = self.model.add(adapters, strength=strength)
        joined = len(adapters) - len(refusals)
        if refusals:
            self.said.emit(" ".join(refusals))
        elif joined:
            self.said.emit(text.added(name=self._document.entries[-1].name, count=len(self._document)))
        if joined:
            self.list.setCurrentIndex(self.model.index(self.model.rowCount() - 1))

    # --- making ---

    def _lay_out(self) -> None:
        heading = theme.look(QLabel(text.mix_heading()), "title")
        stands = theme.look(QLabel(text.stands_on()), "muted")
        stands.setBuddy(self.base)
        model = QWidget()
        Row(stands, self.base, spacing=theme.M, parent=model)
        top = Flow(model, self.wide, self.add_button, spacing=theme.M)
        rows = QWidget()
        self._pages = QStackedLayout(rows)
        self._pages.setStackingMode(QStackedLayout.StackingMode.StackAll)
        self._pages.addWidget(self.list)
        self._pages.addWidget(self._empty)
        bottom = Row(self.heard, Flow(self.export_button, self.try_button, spacing=theme.M), spacing=theme.M)
        bottom.setStretch(0, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(theme.XL, theme.L, theme.XL, theme.L)
        layout.setSpacing(theme.M)
        layout.addWidget(heading)
        layout.addWidget(theme.look(QLabel(text.mix_intro(), wordWrap=True), "muted"))
        layout.addLayout(top)
        layout.addWidget(rows, 1)
        layout.addLayout(bottom)

    def _retint(self, *_) -> None:
        retint(self)
        self.heard.setMinimumWidth(16 * self.fontMetrics().averageCharWidth())
        self._empty.retint()

    # --- showing ---

    def _follow(self, change: Change) -> None:
        if change.kind == "base":
            self._fill_bases()
        self._show_state()

    def _fill_bases(self) -> None:
        """All models of the library; the stack's own one even if it is gone."""
        self.base.blockSignals(True)
        self.base.clear()
        self.base.addItem(text.no_model_yet() if not self._catalogue.models else text.choose_model(), None)
        for model in self._catalogue.models:
            self.base.addItem(model.name, str(model.path))
            self.base.setItemData(self.base.count() - 1, amounts.count(model.parameters), Qt.ItemDataRole.ToolTipRole)
        chosen = self._document.base
        place = next((n for n in range(1, self.base.count()) if same_path(self.base.itemData(n), chosen)), 0)
        if chosen is not None and place == 0:
            self.base.addItem(text.gone(name=chosen.name), str(chosen))
            place = self.base.count() - 1
        self.base.setCurrentIndex(place)
        self.base.setEnabled(bool(self._catalogue.models))
        self.base.blockSignals(False)
        self._show_state()

    def _show_state(self) -> None:
        empty = not len(self._document)
        self._empty.setVisible(empty)
        if empty:
            self._empty.raise_()
        heard = [e for e in self._document.heard() if not self.model.problem(e)]
        said = text.heard(self._document.base is not None, [(e.name, _percent(e.strength)) for e in heard])
        self.heard.setText(said.replace(" %", "\N{NO-BREAK SPACE}%"))       # a number and its sign stay together
        self.try_button.setEnabled(self._document.base is not None)
        self.export_button.setEnabled(bool(heard))
        self.export_button.setToolTip("" if heard else text.export_needs())
        self.add_button.setEnabled(bool(self._catalogue.adapters))
        self.add_button.setToolTip("" if self._catalogue.adapters else text.no_adapters_yet())

    def _show_refusal(self, why: str) -> None:
        """While something that cannot join hovers over the stack, say why right below it."""
        theme.look(self.heard, "warn" if why else "muted")
        if why:
            self.heard.setText(why)
            self.said.emit(why)
        else:
            self._show_state()

    def _tell_selected(self) -> None:
        if (entry := self.list.current()) and (info := self._catalogue.adapter(entry.adapter)):
            self.selected.emit(info)

    def _speak(self, words: str) -> None:
        self.said.emit(words)
        a11y.announce(self.list, words)

    # --- doing ---

    def _choose_base(self, place: int) -> None:
        path = self.base.itemData(place)
        if path is None:
            self._fill_bases()
        else:
            self.choose_base(Path(path))

    def choose_base(self, base: Path) -> None:
        """Stand the stack on another model; says which adapters had to leave."""
        if left := self.model.choose_base(base):
            self.said.emit(text.left_the_stack(len(left), names=", ".join(left)))

    def _offer(self) -> None:
        """A menu of all adapters; those that cannot join are grey and say why."""
        menu = QMenu(self)
        menu.setToolTipsVisible(True)
        for adapter in self._catalogue.adapters:
            why = self.model.refusal(adapter.path)
            name = adapter.name.replace("&", "&&")     # a name's own sign, no key
            action = menu.addAction(f"{name}   {text.kind_and_rank(adapter.peft_type, adapter.rank, adapter.config)}")
            action.setEnabled(why is None)
            action.setToolTip(why or "")
            action.triggered.connect(lambda _=False, path=adapter.path: self.add([path]))
        menu.aboutToHide.connect(menu.deleteLater)
        menu.popup(self.add_button.mapToGlobal(QPoint(0, self.add_button.height() + 2)))


class _EmptyStack(QFrame):
    """The place where the first adapter is dropped. Drops go through it to the list below."""

    def __init__(self, offer):
        super().__init__()
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.setAcceptDrops(False)
        self._over = False
        self._mark = QLabel(alignment=Qt.AlignmentFlag.AlignCenter)
        layout = QVBoxLayout(self)
        layout.setSpacing(theme.S)
        layout.addStretch(1)
        layout.addWidget(self._mark)
        layout.addWidget(theme.look(QLabel(text.stack_empty(), alignment=Qt.AlignmentFlag.AlignCenter, wordWrap=True), "heading"))
        layout.addWidget(theme.look(QLabel(text.stack_empty_do(), alignment=Qt.AlignmentFlag.AlignCenter, wordWrap=True), "muted"))
        layout.addStretch(1)
        self.glow(False)

    def glow(self, over: bool) -> None:
        self._over = over
        theme.look(self, "drop-over" if over else "drop")

    def retint(self) -> None:
        self._mark.setPixmap(theme.icon("mix", "muted").pixmap(48, 48))


def _percent(strength: float) -> str:
    value = strength * 100
    return number(value, 0 if value == round(value) else 1)
