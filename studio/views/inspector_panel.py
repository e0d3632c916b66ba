"""The inspector: what is known about the thing that is selected, told from its small files."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any
from collections.abc import Callable

from PySide6.QtCore import QLocale, QSize, QUrl, Qt, Signal
from PySide6.QtGui import QDesktopServices, QGuiApplication
from PySide6.QtWidgets import QBoxLayout, QFrame, QGridLayout, QLabel, QPushButton, QScrollArea, QVBoxLayout, QWidget

from engine.errors import StudioError
from engine.store.library import AdapterInfo, ModelInfo
from studio.core.catalogue import Catalogue, Module, base_name, modules
from studio.core.history import Checkpoint, DataSet, Run
from studio.core.text import amounts, number
from studio.core.text import frame as text
from studio.core.text.spoken import spoken
from studio.views import a11y, theme

Fact = tuple[str, str]


def facts_of(thing: object, catalogue: Catalogue) -> tuple[str, str, str, list[tuple[str, list[Fact]]]]:
    """(icon, title, subtitle, sections of facts) of whatever can be selected."""
    match thing:
        case ModelInfo():
            return "model", thing.name, text.a_model(), [
                ("", [(text.fact_parameters(), amounts.count(thing.parameters)), (text.fact_family(), thing.model_type or "–"),
                      (text.fact_format(), thing.dtype or "–"), (text.fact_size(), amounts.size(thing.bytes)),
                      (text.fact_chat(), text.yes() if thing.has_chat_template else text.no_chat()),
                      (text.fact_adapters(), str(len(catalogue.adapters_for(thing))))]),
                (text.on_disk(), [(text.fact_folder(), str(thing.path)), (text.fact_fingerprint(), thing.fingerprint[:16])])]
        case AdapterInfo():
            return "adapter", thing.name, text.an_adapter(kind=text.kind(thing.peft_type, thing.config)), _adapter_facts(thing, catalogue)
        case Module():
            return "module", thing.name, text.a_place(), [
                ("", [(text.fact_path(), thing.path), (text.fact_numbers(), amounts.count(thing.parameters)),
                      *((part, " × ".join(map(str, shape))) for part, shape in thing.parts)])]
        case Run():
            return "teach", thing.name, text.a_run(), _run_facts(thing)
        case Checkpoint():
            run = catalogue.run(thing.run)
            return "disk", text.checkpoint(step=thing.step), text.a_checkpoint(), [
                ("", [*([(text.fact_of_run(), run.name)] if run else []), (text.fact_made(), _day(thing.made)),
                      (text.fact_size(), amounts.size(thing.bytes))]), (text.on_disk(), [(text.fact_folder(), str(thing.path))])]
        case DataSet():
            return "data", thing.name, text.a_dataset(), [
                ("", [(text.fact_used_by(), ", ".join(thing.used_by) or text.nobody()),
                      *([] if thing.there else [(text.fact_state(), text.missing_file())])]),
                (text.on_disk(), [(text.fact_path(), str(thing.path))])]
        case StudioError():
            return "warning", spoken(thing.what), "", [("", [(label, words) for label, words in (
                (text.fact_why(), spoken(thing.why)), (text.fact_do(), spoken(thing.do)),
                (text.fact_folder(), str(thing.facts.get("path", "")))) if words])]
    return "info", text.inspector_empty(), text.inspector_empty_do(), []


def _adapter_facts(adapter: AdapterInfo, catalogue: Catalogue) -> list[tuple[str, list[Fact]]]:
    places = modules(adapter)
    layers = {m.layer for m in places if m.layer is not None}
    home = catalogue.home_of(adapter)
    facts = [(text.fact_base(), home.name if home else text.gone(name=base_name(adapter)))]
    if adapter.rank:
        facts.append((text.fact_capacity(), str(adapter.rank)))
    facts += [(text.fact_places(), text.places_in_layers(text.places(len(places)), text.layers(len(layers)))),
              (text.fact_numbers(), amounts.count(adapter.parameters)), (text.fact_size(), amounts.size(adapter.bytes))]
    sections = [("", facts)]
    if taught := _taught(adapter.recipe):
        sections.append((text.taught(), taught))
    sections.append((text.on_disk(), [(text.fact_folder(), str(adapter.path)), (text.fact_fingerprint(), adapter.fingerprint[:16])]))
    return sections


def _run_facts(run: Run) -> list[tuple[str, list[Fact]]]:
    spec, facts = run.spec, [(text.fact_state(), text.run_state(run.state)), (text.fact_made(), _day(run.made))]
    facts += [(text.fact_base(), Path(spec.base).name), (text.fact_examples(), Path(spec.data).name),
              (text.fact_method(), text.kind(spec.method)), (text.fact_passes(), number(spec.passes))]
    if isinstance(steps := run.result.get("steps"), int):
        facts.append((text.fact_steps(), number(steps)))
    before, after = run.result.get("error_before"), run.result.get("error_after")
    if isinstance(before, (int, float)) and isinstance(after, (int, float)):
        facts.append((text.fact_error(), text.from_to(before=number(before, 2), after=number(after, 2))))
    facts.append((text.fact_saved(), number(len(run.checkpoints))))
    return [("", facts), (text.on_disk(), [(text.fact_folder(), str(run.path))])]


def _day(made: float | str) -> str:
    """The day of a moment in seconds, or of one that a recipe gives as text; what is no date stays as it is."""
    try:
        day = datetime.fromisoformat(made) if isinstance(made, str) else datetime.fromtimestamp(made)
    except ValueError:
        return str(made)[:10]
    return QLocale().toString(day.date(), QLocale.FormatType.ShortFormat)


def _taught(recipe: dict[str, Any]) -> list[Fact]:
    """What a recipe says about the teaching. It may come from anywhere: each part is looked at before it is believed."""
    facts: list[Fact] = []
    data, scores, spec = (part if isinstance(part := recipe.get(name), dict) else {} for name in ("data", "scores", "spec"))
    if isinstance(file := data.get("file"), str):
        facts.append((text.fact_examples(), file[:120]))
    if isinstance(rows := data.get("rows"), int):
        facts.append((text.fact_rows(), number(rows)))
    if isinstance(passes := spec.get("passes"), (int, float)):
        facts.append((text.fact_passes(), number(passes)))
    before, after = scores.get("before"), scores.get("after")
    if isinstance(before, (int, float)) and isinstance(after, (int, float)):
        facts.append((text.fact_error(), text.from_to(before=number(before, 2), after=number(after, 2))))
    compared, votes = recipe.get("review"), recipe.get("votes")
    if isinstance(compared, dict) and all(isinstance(compared.get(name), int) for name in ("wins", "same", "losses")):
        facts.append((text.fact_compared(), text.compared(**{name: compared[name] for name in ("wins", "same", "losses")})))
    if isinstance(votes, list) and votes:
        facts.append((text.fact_votes(), text.voted(taught=votes.count("taught"), n=len(votes))))
    if isinstance(made := recipe.get("made"), str):
        facts.append((text.fact_made(), _day(made)))
    return facts


class InspectorPanel(QScrollArea):
    """The dock at the right. ``add`` puts an adapter into the stack. `rebuild_wanted(AdapterInfo)`: teach it again from its recipe;
    `run_wanted(Path)`: show this run's training; `data_wanted(Path)`: teach from this file."""

    said = Signal(str)
    rebuild_wanted = Signal(object)
    run_wanted = Signal(object)
    data_wanted = Signal(object)

    def __init__(self, catalogue: Catalogue, add: Callable[[list[Path]], object], parent: QWidget | None = None):
        super().__init__(parent)
        self.title = text.inspector()
        a11y.name(self, self.title)
        self._catalogue, self._add, self._thing, self._facts = catalogue, add, None, None
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        theme.changed.connect(lambda *_: self.show_thing(self._thing))
        catalogue.subscribe(self._refresh)
        self.show_thing(None)

    def thing(self) -> object:
        return self._thing

    def show_thing(self, thing: object) -> None:
        """Show a `ModelInfo`, `AdapterInfo`, `Module`, `Run`, `Checkpoint`, `DataSet`, `StudioError`, or None."""
        self._thing, self._narrow = thing, self._is_narrow()
        icon, title, subtitle, sections = self._facts = facts_of(thing, self._catalogue)
        content = QWidget()
        theme.look(content, "page")
        layout = QVBoxLayout(content)
        layout.setContentsMargins(theme.M, theme.M, theme.M, theme.L)
        layout.setSpacing(theme.S)
        mark = QLabel()
        mark.setPixmap(theme.icon(icon, "accent" if thing is not None else "muted").pixmap(24, 24))
        layout.addWidget(mark)
        layout.addWidget(_label(title, "heading" if thing is not None else "strong"))
        if subtitle:
            layout.addWidget(_label(subtitle, "muted"))
        for heading, facts in sections:
            layout.addSpacing(theme.XS)
            if heading:
                layout.addWidget(_label(heading, "strong"))
            layout.addLayout(_table(facts, self._narrow))
        layout.addSpacing(theme.S)
        layout.addLayout(self._buttons(thing))
        layout.addStretch(1)
        self.setWidget(content)
        self.setMinimumWidth(max(180, self.fontMetrics().averageCharWidth() * 16))

    def sizeHint(self) -> QSize:           # noqa: N802 (Qt's names)
        return QSize(theme.beside_work(self, 32), 400)

    def resizeEvent(self, event) -> None:  # noqa: N802
        super().resizeEvent(event)
        if self._narrow != self._is_narrow():
            self.show_thing(self._thing)

    def _is_narrow(self) -> bool:
        """Too narrow for names and values side by side."""
        return self.width() < self.fontMetrics().averageCharWidth() * 28

    def _buttons(self, thing: object) -> QVBoxLayout:
        column = QVBoxLayout()
        column.setSpacing(theme.S)
        if isinstance(thing, AdapterInfo):
            add = theme.look(QPushButton(text.add_to_stack()), "primary")
            add.clicked.connect(lambda: self._add([thing.path]))
            column.addWidget(add)
            if isinstance(thing.recipe.get("spec"), dict) and isinstance(thing.recipe.get("result"), dict):
                again = QPushButton(text.rebuild())
                again.setToolTip(text.rebuild_help())
                a11y.name(again, text.rebuild(), text.rebuild_help())
                again.clicked.connect(lambda: self.rebuild_wanted.emit(thing))
                column.addWidget(again)
        if isinstance(thing, (Run, Checkpoint)):
            column.addWidget(_primary(text.show_run(), lambda: self.run_wanted.emit(thing.path if isinstance(thing, Run) else thing.run)))
        if isinstance(thing, DataSet) and thing.there:
            column.addWidget(_primary(text.teach_from(), lambda: self.data_wanted.emit(thing.path)))
        if isinstance(thing, (AdapterInfo, ModelInfo, Run, Checkpoint)):
            show, copy = QPushButton(text.open_folder()), QPushButton(text.copy_path())
            show.clicked.connect(lambda: QDesktopServices.openUrl(QUrl.fromLocalFile(str(thing.path))))
            copy.clicked.connect(lambda: (QGuiApplication.clipboard().setText(str(thing.path)), self.said.emit(text.copied())))
            row = QBoxLayout(QBoxLayout.Direction.TopToBottom if self._narrow else QBoxLayout.Direction.LeftToRight)
            row.setSpacing(theme.S)
            row.addWidget(show)
            row.addWidget(copy)
            column.addLayout(row)
        return column

    def _refresh(self) -> None:
        """The library changed: show the newest knowledge of the same thing, or nothing if it is gone."""
        now = self._thing
        match now:
            case AdapterInfo():
                now = self._catalogue.adapter(now.path)
            case ModelInfo():
                now = self._catalogue.model(now.path)
            case Run():
                now = self._catalogue.run(now.path)
            case Checkpoint() if not now.path.exists():
                now = self._catalogue.run(now.run)
            case DataSet():
                now = next((found for found in self._catalogue.snapshot.datasets if found.path == now.path), None)
        if facts_of(now, self._catalogue) != self._facts:      # otherwise who stands on a button there, or reads far down, stays
            self.show_thing(now)


def _primary(words: str, do: Callable[[], object]) -> QPushButton:
    made = theme.look(QPushButton(words), "primary")
    made.clicked.connect(lambda _=False: do())
    return a11y.name(made, words)


def _label(words: str, looks: str) -> QLabel:
    """Sentences wrap; a single long name is cut, with the whole as tooltip."""
    label = QLabel(words, wordWrap=True, textFormat=Qt.TextFormat.PlainText) if " " in words else a11y.ElidedLabel(words)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return theme.look(label, looks)


def _table(facts: list[Fact], narrow: bool) -> QGridLayout:
    """Names at the left, or above where it is narrow, and values; long ones wrap between words, or are cut with the whole as tooltip."""
    grid = QGridLayout()
    grid.setHorizontalSpacing(theme.M)
    grid.setVerticalSpacing(theme.XS)
    grid.setColumnStretch(0 if narrow else 1, 1)
    for row, (name, value) in enumerate(facts):
        called = theme.look(QLabel(name, wordWrap=narrow), "muted small")
        shown = _label(value, "small")
        grid.addWidget(called, row * 2, 0, Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        grid.addWidget(shown, row * 2 + narrow, 1 - narrow)
    return grid
