"""Teach, step 1: what is wrong with the examples, rule by rule, and buttons that mend it. The file itself is never changed."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QFrame, QScrollArea, QVBoxLayout, QWidget

from engine.specs import DataReport, LintData, LintReport, Problem
from studio.core.text import teach as words
from studio.models.teach_draft import TeachDraft
from studio.views import a11y, theme
from studio.views.parts import Column, Fold, Row, button, card, clear, text

AT_ONCE = 50_000                           # more rows are looked at when a person asks for it: it takes minutes
TALLEST = 230                              # pixels of the list; the examples below it need room, too
SHOWN = 3                                  # pieces of evidence for each problem


class Problems(QWidget):
    """A list of problems with their fixes; hidden while no examples are chosen."""

    def __init__(self, draft: TeachDraft, talk_bridge):
        super().__init__()
        self._draft, self._talk, self._asked = draft, talk_bridge, 0
        self._status = text("", "muted")
        self.undo = button(words.PROBLEMS_UNDO(), draft.undo_edit, "quiet", icon="undo")
        self.redo = button(words.PROBLEMS_REDO(), draft.redo_edit, "quiet", icon="redo")
        self.check = button(words.PROBLEMS_CHECK(), self._ask)
        self.fixes: dict[tuple[str, str], QWidget] = {}
        inside = QWidget()
        theme.look(inside, "page")
        self._list = QVBoxLayout()
        self._list.setContentsMargins(0, 0, theme.S, 0)
        self._list.setSpacing(theme.S)
        holder = QWidget()
        theme.look(holder, "page")
        holder.setLayout(Column(self._list, None))
        self._scroll = QScrollArea()
        self._scroll.setWidget(holder)
        self._scroll.setWidgetResizable(True)
        self._scroll.setFrameShape(QFrame.Shape.NoFrame)
        self._scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        Column(Row(self._status, None, self.check, self.undo, self.redo, spacing=theme.S), self._scroll, parent=inside)
        self.fold = Fold(words.PROBLEMS_TITLE(), inside)
        Column(self.fold, parent=self)

    def look(self, report: DataReport) -> None:
        """The examples were read anew: look for problems, at once if they are few enough."""
        clear(self._list)
        self.fixes.clear()
        self.check.setVisible(report.rows > AT_ONCE)
        self.fold.set_title(words.PROBLEMS_TITLE())
        self._status.setText(words.PROBLEMS_MANY(n=f"{report.rows:,}") if report.rows > AT_ONCE else "")
        self.undo.setEnabled(self._draft.can_undo_edit)
        self.redo.setEnabled(self._draft.can_redo_edit)
        if report.rows <= AT_ONCE:
            self._ask()

    def _ask(self) -> None:
        draft, settings = self._draft.draft, self._draft.draft.overrides
        self._talk.forget(self._asked)
        self.check.hide()
        self._status.setText(words.PROBLEMS_LOOKING())
        self._asked = self._talk.ask(
            LintData(draft.data, roles=draft.roles, edits=self._draft.edits, base=draft.base, max_length=settings.get("max_length", 1024),
                     system=settings.get("system", ""), holdout=settings.get("holdout", 0.1)),
            on_done=self._found, on_error=lambda error: self._status.setText(f"{error.what} {error.do}"))

    def _found(self, report: LintReport) -> None:
        clear(self._list)
        self.fixes.clear()
        concerned = len(report.problems)
        self.fold.set_title(words.PROBLEMS_COUNT(concerned) if concerned else words.PROBLEMS_NONE())
        self._status.setText(" ".join(report.notes))
        self._status.setVisible(bool(report.notes))
        for problem in report.problems:
            self._list.addWidget(self._card(problem))
        self._scroll.setFixedHeight(min(TALLEST, self._list.sizeHint().height()))
        self._scroll.setVisible(bool(concerned))
        if concerned:
            self.fold.open()
        a11y.announce(self, words.PROBLEMS_COUNT(concerned) if concerned else words.PROBLEMS_NONE())

    def _card(self, problem: Problem) -> QWidget:
        said = words.problem(problem.rule, problem.count, problem.facts)
        buttons = []
        for fix in problem.fixes:
            made = button(words.FIXES[fix.name](), lambda f=fix: self._draft.edit(f.edits))
            a11y.name(made, words.FIXES[fix.name](), said)
            self.fixes[problem.rule, fix.name] = made
            buttons.append(made)
        shown = [text(evidence, "muted small") for evidence in dict.fromkeys(filter(None, problem.evidence[:SHOWN]))]
        head = Row(text(said, "strong"), *buttons, spacing=theme.S)
        head.setStretch(0, 1)
        return card(head, *shown, margin=theme.M, spacing=theme.XS)
