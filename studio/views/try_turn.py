"""One question in Try and its answers side by side: differing words marked, a stamp of what really answered, and, blind, none of that yet."""

from __future__ import annotations

import html
import re

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QFrame, QGridLayout, QLabel, QPlainTextEdit, QPushButton, QSizePolicy, QWidget

from engine import events
from engine.errors import StudioError
from studio.core.compare import differing
from studio.core.text import amounts
from studio.core.text import work as words
from studio.core.trial import MOST, SAME
from studio.views import a11y, theme
from studio.views.correction import CorrectionEditor
from studio.views.parts import Column, Row, button, card, error_card, text

NARROWEST = 210                            # pixels of an answer; with less room, answers stand in two lines or one below the other


class Answer(QFrame):
    """One answer being spoken, then spoken: text and stamp. A person may put it right: `corrected(str)`.

    With a ``number``, nothing tells who speaks until it is revealed.
    """

    corrected = Signal(str)
    chosen = Signal(str)                   # of several, this one is the best: its column

    def __init__(self, column: str, number: int = 0):
        super().__init__()
        self.column, self.said, self.stamp, self.hidden = column, "", None, bool(number)
        self.editor: CorrectionEditor | None = None
        theme.look(self, "bubble-assistant" if column == "stack" and not number else "bubble-answer")
        self._head = text(words.TRY_BLIND_ANSWER(n=number) if number else words.TRY_COLUMNS[column](), "muted small")
        self._text = QLabel("…")
        self._text.setWordWrap(True)
        self._text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard)
        self._text.setTextFormat(Qt.TextFormat.PlainText)
        self._stamp = text("", "muted small", selectable=True)
        self._stamp.setToolTip(words.TRY_STAMP_HELP())
        self._stamp.hide()
        self.correct = button(words.TRY_CORRECT(), self._correct, "link", help=words.TRY_CORRECT_HELP())
        self.correct.hide()
        self.best = a11y.name(button(words.TRY_BLIND_THIS(), lambda: self.chosen.emit(column)), f"{self._head.text()}: {words.TRY_BLIND_THIS()}",
                              words.TRY_BLIND_ASK())
        self.best.hide()
        Column(self._head, self._text, None, self._stamp, Row(self.correct, self.best, None), spacing=theme.S, margin=theme.M, parent=self)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)

    def hear(self, piece: str) -> None:
        self.said += piece
        self._text.setText(self.said)

    def finish(self, event: events.Answered) -> None:
        """Take the engine's final word as the truth and show its stamp."""
        self.said, self.stamp = event.text, event
        self._text.setText(event.text or "…")
        self._tell()

    def reveal(self, best: bool = False) -> None:
        """Say who spoke, and whether this answer was found the best."""
        self.hidden = False
        self.best.hide()
        self._head.setText(f"{words.TRY_COLUMNS[self.column]()}{f' · ✓ {words.TRY_BLIND_BEST()}' if best else ''}")
        theme.look(self, "bubble-assistant" if self.column == "stack" else "bubble-answer")
        self._tell()

    def _tell(self) -> None:
        if self.stamp is not None and not self.hidden:
            self._stamp.setText(stamp_words(self.stamp))
            self._stamp.show()
            self.correct.setVisible(self.column == "stack")
        a11y.name(self._text, f"{self._head.text()}: {self.said}", self._stamp.text())

    def _correct(self) -> None:
        """Let the person write the answer they would like to hear, in its place."""
        if self.editor is None:
            self.editor = CorrectionEditor(self.said)
            self.editor.kept.connect(self._kept)
            self.editor.left.connect(self._close_editor)
            self.layout().addWidget(self.editor)
        self._text.hide()
        self.correct.hide()
        self.editor.box.setFocus()

    def _kept(self, better: str) -> None:
        self._close_editor()
        self.said = better
        self.mark([])
        self._head.setText(f"{words.TRY_COLUMNS[self.column]()} · {words.TRY_CORRECTED()}")
        self.corrected.emit(better)

    def _close_editor(self) -> None:
        self.editor.hide()
        self.editor.deleteLater()
        self.editor = None
        self._text.show()
        self.correct.show()
        self.correct.setFocus()

    def fail(self, error: StudioError) -> None:
        self.layout().addWidget(error_card(error))

    def mark(self, pieces: list[tuple[str, bool]]) -> None:
        """Underline and tint the pieces that differ; everything is escaped, for it was written by a model."""
        if not any(differs for _, differs in pieces):
            self._text.setTextFormat(Qt.TextFormat.PlainText)
            self._text.setText(self.said or "…")
            return
        style = f"background-color:{theme.tokens().added_mark};text-decoration:underline"
        body = "".join(_marked(piece, style) if differs else html.escape(piece) for piece, differs in pieces)
        self._text.setTextFormat(Qt.TextFormat.RichText)
        self._text.setText(f'<div style="white-space:pre-wrap">{body}</div>')


class Turn(QWidget):
    """A question and its answers side by side; ``blind`` without saying whose they are, until one was chosen: `voted(column or SAME)`."""

    voted = Signal(str)

    def __init__(self, question: str, columns: list[str], blind: bool = False):
        super().__init__()
        self.question, self.blind = question, blind
        self.replaced = False              # the same was asked again: this does not count as said
        self.answers = {column: Answer(column, number if blind else 0) for number, column in enumerate(columns, 1)}
        self.votes: dict[str, QPushButton] = {}
        for answer in self.answers.values():
            answer.chosen.connect(self.vote)
        asked = card(text(question, selectable=True), margin=theme.M, looks="bubble-user")
        a11y.name(asked, f"{words.TRY_YOU()}: {question}")
        ask_row = Row(80, asked)
        ask_row.setStretch(1, 1)
        self._grid = QGridLayout()
        self._grid.setSpacing(theme.M)
        self._side_by_side = 0
        self._arrange(len(self.answers))
        self._vote = QWidget()
        self._vote.hide()
        Column(ask_row, self._grid, self._vote, spacing=theme.S, parent=self)

    def complete(self) -> None:
        """All have answered, or were stopped: mark what differs, or ask which is best."""
        answered = [column for column, answer in self.answers.items() if answer.stamp is not None]
        if not self.blind:
            self.mark()
        elif len(answered) < 2:
            self._reveal()                 # nothing to choose between
        elif not self.votes:
            self.votes = {column: self.answers[column].best for column in answered} | {SAME: button(words.TRY_BLIND_SAME(), lambda: self.vote(SAME))}
            for column in answered:
                self.answers[column].best.show()
            Row(text(words.TRY_BLIND_ASK(), "strong", wrap=False), self.votes[SAME], None, spacing=theme.S, parent=self._vote)
            self._vote.show()

    def vote(self, who: str) -> None:
        """This answer is the best, or `SAME`; then it is told whose it was."""
        self._reveal(who)
        self.voted.emit(who)

    def _reveal(self, best: str = "") -> None:
        self.blind = False
        self._vote.hide()
        for column, answer in self.answers.items():
            answer.reveal(column == best)
        self.mark()

    def resizeEvent(self, event) -> None:  # noqa: N802 (Qt's name)
        super().resizeEvent(event)
        count = len(self.answers)
        self._arrange(next((n for n in (count, (count + 1) // 2) if n and self.width() // n >= NARROWEST), 1))

    def _arrange(self, side_by_side: int) -> None:
        """So many answers in a line."""
        if side_by_side == self._side_by_side:
            return
        self._side_by_side = side_by_side
        for number, answer in enumerate(self.answers.values()):
            self._grid.addWidget(answer, number // side_by_side, number % side_by_side)
        for column in range(MOST):
            self._grid.setColumnStretch(column, 1 if column < side_by_side else 0)

    def mark(self) -> None:
        """Mark what differs once all have answered: in each column against the stack, in the stack against the last."""
        if not self.blind and len(self.answers) > 1 and all(a.stamp is not None for a in self.answers.values()):
            for column, answer in self.answers.items():
                if column != "stack":
                    ours, theirs = differing(self.answers["stack"].said, answer.said)
                    answer.mark(theirs)
            self.answers["stack"].mark(ours)


class Question(QPlainTextEdit):
    """Enter asks, Shift+Enter begins a new line."""

    asked = Signal()

    def keyPressEvent(self, event) -> None:    # noqa: N802 (Qt's name)
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            self.asked.emit()
        else:
            super().keyPressEvent(event)


def _marked(piece: str, style: str) -> str:
    """A differing piece; the blanks before it stay plain."""
    words_ = piece.lstrip()
    return f'{html.escape(piece[:len(piece) - len(words_)])}<span style="{style}">{html.escape(words_)}</span>'


def stamp_words(event: events.Answered) -> str:
    """What really answered, from the engine's own account."""
    said = " + ".join(words.TRY_STAMP_ENTRY(name=name, print=str(print_)[:8], strength=amounts.percent(strength)) for name, print_,
                       strength in event.adapters)
    if event.column == "file":
        who = words.TRY_STAMP_FILE(print=event.base[:8])
    else:
        who = words.TRY_STAMP_WHO(base=words.TRY_STAMP_BASE(print=event.base[:8]), stack=said or words.TRY_STAMP_NONE())
    said = words.TRY_STAMP(who=who, tokens=event.tokens, seconds=amounts.seconds(event.seconds))
    ending = {"stop": words.TRY_STOPPED(), "length": words.TRY_CUT()}.get(event.stopped, "")
    return re.sub(r"(?<=\d) (?=\S)", "\N{NO-BREAK SPACE}", f"{said} · {ending}" if ending else said)     # "3.9 s" stays together
