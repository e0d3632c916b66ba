"""Teach, step 1: what is wrong with the examples, rule by rule, and buttons that mend it. The file itself is never changed."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QFrame, QProgressBar, QScrollArea, QVBoxLayout, QWidget

from engine import events
from engine.errors import StudioError
from engine.specs import DataReport, LintData, LintReport, Problem
from studio.core.text import teach as words
from studio.core.text.spoken import spoken
from studio.models.teach_draft import TeachDraft
from studio.views import a11y, theme
from studio.views.flow import Flow
from studio.views.parts import Column, Fold, Row, button, card, clear, text

MANY = 50_000                              # rows from which on it takes minutes: said before, and it can be stopped
TALLEST = 230                              # pixels of the list; the examples below it need room, too
SHOWN = 3                                  # pieces of evidence for each problem


class Problems(QWidget):
    """A list of problems with their fixes; hidden while no examples are chosen. Signals: `show_row(int)`, a row that a person wants to see."""

    show_row = Signal(int)

    def __init__(self, draft: TeachDraft, talk_bridge):
        super().__init__()
        self._draft, self._talk, self._asked = draft, talk_bridge, 0
        self._status = text("", "muted")
        self.undo = button(words.PROBLEMS_UNDO(), draft.undo_edit, "quiet", icon="undo")
        self.redo = button(words.PROBLEMS_REDO(), draft.redo_edit, "quiet", icon="redo")
        self.check = button(words.PROBLEMS_CHECK(), self._ask)
        self.stop = button(words.PROBLEMS_STOP(), self._stop, "quiet", icon="stop")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        a11y.name(self.bar, words.PROBLEMS_LOOKING())
        for hidden in (self.check, self.stop, self.bar):
            hidden.hide()
        self.fixes: dict[tuple[str, str], QWidget] = {}
        self.shows: dict[str, QWidget] = {}
        self._shown: dict[str, int] = {}       # rule → which of its rows was shown last
        self._rows = 0
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
        head = Row(self._status, Flow(self.check, self.stop, self.undo, self.redo), spacing=theme.S)
        head.setStretch(0, 1)
        Column(head, self.bar, self._scroll, parent=inside)
        self.fold = Fold(words.PROBLEMS_TITLE(), inside)
        Column(self.fold, parent=self)

    def look(self, report: DataReport) -> None:
        """The examples were read anew: look for problems. Very many are looked at while one goes on."""
        clear(self._list)
        self.fixes.clear()
        self.shows.clear()
        self._shown.clear()
        self.fold.set_title(words.PROBLEMS_TITLE())
        self.undo.setEnabled(self._draft.can_undo_edit)
        self.redo.setEnabled(self._draft.can_redo_edit)
        self._rows = report.rows
        self._ask()

    def _ask(self) -> None:
        draft, settings = self._draft.draft, self._draft.draft.overrides
        self._talk.forget(self._asked)
        self._busy(True)
        self._status.setText(words.PROBLEMS_MANY(n=self._rows) if self._rows > MANY else words.PROBLEMS_LOOKING())
        self._asked = self._talk.ask(
            LintData(draft.data, roles=draft.roles, edits=self._draft.edits, base=draft.base, max_length=settings.get("max_length", 1024),
                     system=settings.get("system", ""), holdout=settings.get("holdout", 0.1)),
            on_event=self._told, on_done=self._found, on_error=self._failed)

    def _told(self, event: events.Event) -> None:
        if isinstance(event, events.Progress) and event.total:
            self.bar.setRange(0, 1000 if event.done < event.total else 0)      # the comparing afterwards has no known end
            self.bar.setValue(round(1000 * event.done / event.total))
            self.bar.show()
            self.stop.show()
            self._status.setText(words.PROBLEMS_SO_FAR(n=round(event.done), total=round(event.total)))

    def _stop(self) -> None:
        self._talk.forget(self._asked)
        self._busy(False)
        self._status.setText(words.PROBLEMS_STOPPED())
        self.check.show()
        self.check.setFocus()

    def _failed(self, error: StudioError) -> None:
        self._busy(False)
        self._status.setText(spoken(error.what, error.do))
        self.check.show()

    def _busy(self, yes: bool) -> None:
        self.bar.setRange(0, 1000)
        self.bar.setValue(0)
        self.bar.setVisible(yes and self._rows > MANY)
        self.stop.setVisible(yes and self._rows > MANY)
        self.check.hide()
        self._status.show()

    def _found(self, report: LintReport) -> None:
        self._busy(False)
        clear(self._list)
        self.fixes.clear()
        self.shows.clear()
        self._shown.clear()
        concerned = len(report.problems)
        self.fold.set_title(words.PROBLEMS_COUNT(concerned) if concerned else words.PROBLEMS_NONE())
        self._status.setText(spoken(" ".join(report.notes)))
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
        if problem.rows:
            made = button(words.PROBLEMS_SHOW(), lambda: self._next(problem), "quiet", help=words.PROBLEMS_SHOW_HELP())
            a11y.name(made, words.PROBLEMS_SHOW(), said)
            self.shows[problem.rule] = made
            buttons.insert(0, made)
        shown = [text(spoken(evidence), "muted small") for evidence in dict.fromkeys(filter(None, problem.evidence[:SHOWN]))]
        head = Row(text(said, "strong"), Flow(*buttons), spacing=theme.S)
        head.setStretch(0, 1)
        return card(head, *shown, margin=theme.M, spacing=theme.XS)

    def _next(self, problem: Problem) -> None:
        """The first row that is concerned; pressed again, the next one."""
        place = self._shown[problem.rule] = (self._shown.get(problem.rule, -1) + 1) % len(problem.rows)
        self.show_row.emit(problem.rows[place])
