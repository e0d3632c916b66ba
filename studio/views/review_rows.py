"""Rows of a comparison, the worst first, and the blind vote over five of them."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QGridLayout, QVBoxLayout, QWidget

from engine.events import Reviewed
from studio.core.review import Ballot
from studio.core.text import number
from studio.core.text import teach as words
from studio.views import a11y, theme
from studio.views.flow import Turning
from studio.views.parts import Column, Row, button, card, clear, text

FIRST = 6                                  # rows that are shown without being asked for
PILLS = {"win": "pill-good", "same": "pill", "loss": "pill-bad"}
MARKS = {"win": "▲", "same": "=", "loss": "▼"}


class ReviewRows(QWidget):
    """Shows rows as they come, in the order in which they come."""

    def __init__(self):
        super().__init__()
        self.rows: list[Reviewed] = []
        self._list = QVBoxLayout()
        self._list.setSpacing(theme.M)
        self.more = button("", self._show_all, "link")
        Column(self._list, Row(self.more, None), spacing=theme.M, parent=self)
        self.clear()

    def clear(self) -> None:
        self.rows.clear()
        clear(self._list)
        self._all = False
        self.more.hide()

    def add(self, row: Reviewed) -> None:
        self.rows.append(row)
        if self._all or len(self.rows) <= FIRST:
            self._list.addWidget(_row(row))
        else:
            self.more.setText(words.REVIEW_ROWS_MORE(n=len(self.rows)))
            a11y.name(self.more, self.more.text())
            self.more.show()

    def _show_all(self) -> None:
        self._all = True
        for row in self.rows[FIRST:]:
            self._list.addWidget(_row(row))
        self.more.hide()


def _row(row: Reviewed) -> QWidget:
    said = words.REVIEW_OUTCOME[row.outcome]()
    pill = text(f"{MARKS[row.outcome]}  {said}", PILLS[row.outcome], wrap=False)
    errors = text(words.REVIEW_ROW_ERRORS(before=number(row.error_before, 2), after=number(row.error_after, 2)), "muted small", wrap=False)
    head = Row(text(row.question, "strong", selectable=True), errors, pill, spacing=theme.M)
    head.setStretch(0, 1)
    parts: list = [head, text(words.REVIEW_WANTED(answer=row.wanted), "muted", selectable=True)]
    if row.before or row.after:
        both = Row(spacing=theme.M)
        for said_by, answer, looks in ((words.REVIEW_BEFORE(), row.before, "sunken"), (words.REVIEW_AFTER(), row.after, "bubble-assistant")):
            both.addWidget(card(text(said_by, "muted small"), text(answer.strip() or "…", selectable=True), None, looks=looks, margin=theme.M), 1)
        parts.append(both)
    frame = card(*parts, looks="card", margin=theme.M)
    a11y.name(frame, f"{row.question}: {said}")
    return frame


class BlindVote(QWidget):
    """Five pairs without names. Signal `voted(list)`: the votes, when the last one is given."""

    voted = Signal(object)

    def __init__(self):
        super().__init__()
        self.ballot = Ballot([])
        self._question, self._place = text("", "strong"), text("", "muted small", wrap=False)
        self._answers = QGridLayout()
        self._answers.setHorizontalSpacing(theme.L)
        self._texts = {}
        for column, (side, said) in enumerate((("A", words.VOTE_A()), ("B", words.VOTE_B()))):
            self._texts[side] = text("", selectable=True)
            self._answers.addWidget(card(text(said, "muted small"), self._texts[side], None, looks="sunken", margin=theme.M), 0, column)
            self._answers.setColumnStretch(column, 1)
        self.choices = {side: button(said, lambda s=side: self._vote(s)) for side, said in (
            ("A", words.VOTE_A()), ("same", words.VOTE_SAME()), ("B", words.VOTE_B()))}
        self._result = text("", "strong")
        self._open = QWidget()
        head = Row(self._question, self._place)
        head.setStretch(0, 1)
        Column(text(words.VOTE_HELP(), "muted small"), head, self._answers, Row(None, Turning(*self.choices.values(), spacing=theme.M), None),
               spacing=theme.M, parent=self._open)
        Column(self._open, self._result, parent=self)
        self.begin([])

    def begin(self, rows: list[Reviewed], votes: list[str] = ()) -> None:
        """Lay these rows before the person; ``votes`` were given earlier."""
        self.ballot = Ballot.of(rows)
        self.ballot.votes = [v for v in votes if v in ("taught", "untaught", "same")][:len(self.ballot.pairs)]
        self._show()

    def _vote(self, side: str) -> None:
        self.ballot.vote(side)
        self._show()
        if self.ballot.now is None:
            self.voted.emit(list(self.ballot.votes))
            a11y.announce(self, self._result.text())

    def _show(self) -> None:
        pair = self.ballot.now
        self._open.setVisible(pair is not None)
        self._result.setVisible(pair is None and bool(self.ballot.votes))
        self.setVisible(bool(self.ballot.pairs))
        if pair is None:
            self._result.setText(self.ballot.sentence() if self.ballot.votes else "")
            return
        self._question.setText(pair.question)
        self._place.setText(words.VOTE_PLACE(k=len(self.ballot.votes) + 1, n=len(self.ballot.pairs)))
        for side, answer in zip("AB", self.ballot.sides()):
            self._texts[side].setText(answer.strip())
