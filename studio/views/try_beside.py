"""Who else answers in Try: the untaught model, strengths that were kept, an exported model; and whether one hears them blind."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QCheckBox, QFileDialog, QVBoxLayout, QWidget

from studio.core.stack_document import same_path
from studio.core.text import amounts
from studio.core.text import work as words
from studio.core.trial import COLUMNS, KEPT, MOST, SAME
from studio.views import a11y, theme
from studio.views.parts import Column, Row, button, clear, text


class Beside(QWidget):
    """Shows and changes the document's `Trial`. Signals: `said(str)`."""

    said = Signal(str)

    def __init__(self, document, catalogue):
        super().__init__()
        self._document, self._catalogue = document, catalogue
        self.keep = button(words.TRY_KEEP(), self.keep_strengths, "link", help=words.TRY_KEEP_HELP())
        self._rows = QVBoxLayout()
        self._rows.setSpacing(theme.XS)
        self.compare = self._check(words.TRY_COMPARE(), words.TRY_COMPARE_HELP())
        self.compare.setChecked(True)
        self.blind = self._check(words.TRY_BLIND(), words.TRY_BLIND_HELP())
        self.models = a11y.name(a11y.Choice(), words.TRY_FILE(), words.TRY_FILE_HELP())
        self.models.activated.connect(self._choose)
        self._votes = text("", "muted small")
        self.anew = button(words.TRY_BLIND_ANEW(), lambda: document.set_trial(votes={}), "link")
        Column(Row(self.keep, None), self._rows, self.compare, text(words.TRY_FILE(), "muted small", wrap=False), self.models, theme.XS, self.blind,
               self._votes, Row(self.anew, None), parent=self)
        self.compare.toggled.connect(self.show_trial)
        self.show_trial()

    @staticmethod
    def _check(said: str, help: str) -> QCheckBox:
        made = QCheckBox(said)
        made.setToolTip(help)
        return a11y.name(made, said, help)

    # --- what is asked ---

    @property
    def kept(self) -> dict[str, dict[int, float]]:
        """Column → entry → strength, of those that say something about today's stack."""
        there = {entry.id for entry in self._document.entries}
        return {column: strengths for column, strengths in self._document.trial.kept.items() if strengths.keys() & there}

    def columns(self) -> list[str]:
        """Who answers, the stack first, the untaught model last."""
        base = ["base"] if self.compare.isChecked() and len(self._document) else []
        return ["stack", *self.kept, *(["file"] if self.model() else []), *base]

    def model(self) -> str:
        """Folder of the exported model beside; empty if there is none (any more)."""
        chosen = self._document.trial.model
        return chosen if chosen and _is_model(Path(chosen)) else ""

    def strengths(self, column: str) -> list[float]:
        """By position in the stack as it is now; an adapter that came later is off there."""
        return [self.kept[column].get(entry.id, 0.0) for entry in self._document.entries] if column in self.kept else []

    # --- what a person does ---

    def keep_strengths(self) -> None:
        """A column of its own for the strengths as they are now; of two at most."""
        kept = self.kept
        free = [column for column in KEPT if column not in kept]
        if free and len(self._document):
            kept[free[0]] = {entry.id: entry.strength if entry.enabled else 0.0 for entry in self._document.entries}
            self._document.set_trial(kept=dict(sorted(kept.items())))

    def unkeep(self, column: str) -> None:
        """No longer compare with these."""
        self._document.set_trial(kept={name: strengths for name, strengths in self.kept.items() if name != column})
        self.keep.setFocus()

    def vote(self, who: str) -> None:
        """One more for this column, or for `SAME`."""
        votes = self._document.trial.votes
        self._document.set_trial(votes=votes | {who: votes.get(who, 0) + 1})

    def _choose(self, row: int) -> None:
        folder = self.models.itemData(row)
        if folder is None:
            folder = QFileDialog.getExistingDirectory(self, words.TRY_FILE_TITLE(), str(self._catalogue.home.exports)) or self._document.trial.model
            if folder and not _is_model(Path(folder)):
                self.said.emit(words.TRY_FILE_WRONG(name=Path(folder).name))
                folder = self._document.trial.model
        self._document.set_trial(model=folder)

    # --- what stands there ---

    def show_trial(self, *_: object) -> None:
        """As the document has it now."""
        if len(self.columns()) > MOST:
            self.compare.setChecked(False)     # comes back here
            return
        clear(self._rows)
        there = {entry.id: entry.name for entry in self._document.entries}
        for column, strengths in self.kept.items():
            self._rows.addLayout(self._row(column, {name: strengths.get(id, 0.0) for id, name in there.items()}))
        full = len(self.columns()) >= MOST
        self.keep.setVisible(bool(there) and len(self.kept) < len(KEPT) and not full)
        for part, chosen, help in ((self.compare, self.compare.isChecked(), words.TRY_COMPARE_HELP()),
                                   (self.models, bool(self.model()), words.TRY_FILE_HELP())):
            part.setEnabled(chosen or not full)
            part.setToolTip(help if part.isEnabled() else words.TRY_FULL())
        self.blind.setEnabled(len(self.columns()) > 1)
        self._list_models()
        votes = self._document.trial.votes
        counts = " · ".join(words.TRY_BLIND_COUNT(name=_called(who), n=votes[who]) for who in (*COLUMNS, SAME) if who in votes)
        self._votes.setText(words.TRY_BLIND_COUNTS(counts=counts))
        self._votes.setVisible(bool(votes))
        self.anew.setVisible(bool(votes))

    def _row(self, column: str, strengths: dict[str, float]) -> Row:
        help = words.TRY_UNKEEP(column=_called(column))
        away = a11y.name(button("", lambda: self.unkeep(column), "quiet", help=help, icon="close"), help)
        shown = text(words.TRY_KEPT(column=_called(column), strengths=" · ".join(map(amounts.percent, strengths.values()))), "small")
        shown.setToolTip(", ".join(f"{name} {amounts.percent(strength)}" for name, strength in strengths.items()))
        a11y.name(shown, shown.text(), shown.toolTip())
        line = Row(shown, away)
        line.setStretch(0, 1)
        return line

    def _list_models(self) -> None:
        chosen = self.model()
        self.models.clear()
        self.models.addItem(words.TRY_FILE_NONE(), "")
        for export in self._catalogue.snapshot.exports:
            self.models.addItem(export.name, str(export.path))
        place = next((row for row in range(1, self.models.count()) if same_path(self.models.itemData(row), chosen)), 0) if chosen else 0
        if chosen and not place:
            place = self.models.count()
            self.models.addItem(Path(chosen).name, chosen)
        self.models.addItem(words.TRY_FILE_OTHER())
        self.models.setCurrentIndex(place)


def _called(who: str) -> str:
    return words.TRY_BLIND_SAME() if who == SAME else words.TRY_COLUMNS[who]()


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()
