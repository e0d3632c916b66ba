"""Chat with the stack beside the untaught model: same question, same seed, differing words marked, and a stamp of what really answered."""

from __future__ import annotations

import random
from pathlib import Path

from PySide6.QtCore import QSize, QTimer, Qt, Signal
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import QApplication, QBoxLayout, QDoubleSpinBox, QFrame, QScrollArea, QSpinBox, QTabBar, QVBoxLayout, QWidget

from engine import events
from engine.errors import StudioError
from engine.specs import OpenChat, Say, SetStrengths
from studio.core.corrections import ENOUGH, Corrections
from studio.core.stack_commands import SetBase
from studio.core.stack_document import Change, same_path
from studio.core.text import work as words
from studio.views import a11y, theme
from studio.views.flow import Flow
from studio.views.parts import Column, Fold, Panel, Row, Scrolled, button, card, clear, error_card, text
from studio.views.strength_strip import StrengthStrip
from studio.views.try_beside import Beside
from studio.views.try_turn import Answer, Question, Turn

WIDEST = (1 << 24) - 1                     # Qt's own bound, i.e. none


class TryPanel(Panel):
    """Signals: `said(str)`, `failed(StudioError)`, `teach_wanted(Path)` for a file of corrected answers."""

    teach_wanted = Signal(object)

    def __init__(self, document, talk_bridge, catalogue, undo, home):
        super().__init__(words.TRY_TITLE())
        self._home = home
        self._document, self._talk, self._catalogue, self._undo = document, talk_bridge, catalogue, undo
        self.turns: list[Turn] = []
        self._opened_beside = ""           # the exported model that was asked for last
        self._tickets: set[int] = set()
        self._shuffle = random.shuffle
        self._opening = 0                  # ticket of the request that is under way
        self._stale, self._ready, self._pending = True, False, ""
        self._narrow: bool | None = None   # model and stack stand above the chat
        self._open_later = QTimer(self, interval=250, singleShot=True)
        self._open_later.timeout.connect(self._open)
        self._strength_later = QTimer(self, interval=20, singleShot=True)
        self._strength_later.timeout.connect(self._send_strengths)
        self._build()
        document.changed.connect(self._changed)
        catalogue.subscribe(self._list_models)
        self._list_models()
        self._arrange()
        self._enable()

    def _build(self) -> None:
        self._conversation = QVBoxLayout()
        self._conversation.setSpacing(theme.L)
        self._empty = text(words.TRY_EMPTY(), "muted")
        self._empty.setAlignment(Qt.AlignmentFlag.AlignCenter)
        holder = QWidget()
        theme.look(holder, "page")
        Column(self._conversation, None, self._empty, None, margin=theme.L, parent=holder)
        self.scroll = QScrollArea()
        self.scroll.setWidget(holder)
        self.scroll.setWidgetResizable(True)
        self.scroll.setFrameShape(QFrame.Shape.NoFrame)
        self.scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        a11y.name(self.scroll, words.TRY_CHAT())
        self.scroll.verticalScrollBar().rangeChanged.connect(self._to_the_end)
        self.question = Question()
        self.question.setPlaceholderText(words.TRY_ASK())
        self.question.setTabChangesFocus(True)
        self.question.setFixedHeight(68)
        a11y.name(self.question, words.TRY_ASK_NAME())
        self.question.asked.connect(self.ask)
        self.send = button(words.TRY_SEND(), self.ask, "primary", icon="send")
        self.stop = button(words.TRY_STOP(), self.stop_speaking, icon="stop")
        for one_of_two in (self.send, self.stop):      # they take turns in one place, which must not jump
            one_of_two.setMinimumWidth(96)
        QShortcut(QKeySequence("Escape"), self, context=Qt.ShortcutContext.WidgetWithChildrenShortcut).activated.connect(self.stop_speaking)
        self.again = button(words.TRY_AGAIN(), self.ask_again, "quiet", help=words.TRY_AGAIN_HELP(), icon="refresh")
        self.clear = button(words.TRY_CLEAR(), self.new_chat, "quiet", icon="plus")
        self._trouble = QVBoxLayout()
        self._state = text("", "muted small")
        ask = Row(self.question, Column(self.send, self.stop, spacing=theme.XS))
        ask.setStretch(0, 1)
        below = Row(self._state, Flow(self.again, self.clear))
        below.setStretch(0, 1)
        self._chat = QWidget()
        Column(self.scroll, self._trouble, ask, below, spacing=theme.S, parent=self._chat).setStretch(0, 1)
        self._card = self._side()
        self.side = Fold(words.TRY_SIDE(), Scrolled(self._card), open=True)
        self.side.toggled.connect(self._arrange)
        self._columns = Row(self._chat, self.side, spacing=theme.L)
        Column(self._columns, margin=theme.L, parent=self)

    def _side(self) -> QWidget:
        self.models = a11y.name(a11y.Choice(), words.TRY_MODEL())
        self.models.activated.connect(self._choose_model)
        self.length = QSpinBox()
        self.length.setRange(8, 4096)
        self.length.setValue(120)
        self.length.setSingleStep(20)
        self.length.setSuffix(f" {words.TRY_TOKENS()}")
        a11y.name(self.length, words.TRY_LENGTH())
        self.temperature = QDoubleSpinBox()
        self.temperature.setRange(0, 2)
        self.temperature.setDecimals(1)
        self.temperature.setSingleStep(0.1)
        a11y.name(self.temperature, words.TRY_TEMPERATURE(), words.TRY_TEMPERATURE_HELP())
        self.temperature.setToolTip(words.TRY_TEMPERATURE_HELP())
        for number in (self.length, self.temperature):
            number.setAlignment(Qt.AlignmentFlag.AlignRight)
        self.temperature.setMinimumWidth(self.length.sizeHint().width())
        a11y.quiet_wheel(self.length, self.temperature)
        self.strip = StrengthStrip(self._document, self._undo)
        self.beside = Beside(self._document, self._catalogue)
        self.beside.said.connect(self.said)
        return card(text(words.TRY_MODEL(), "strong"), self.models, theme.S, text(words.TRY_STACK(), "strong"), self.strip,
                    self.beside, None,
                    Row(text(words.TRY_LENGTH(), "muted small", wrap=False), None, self.length),
                    Row(text(words.TRY_TEMPERATURE(), "muted small", wrap=False), None, self.temperature))

    # --- model and stack ---

    def _list_models(self) -> None:
        self.models.blockSignals(True)
        self.models.clear()
        for model in self._catalogue.models:
            self.models.addItem(model.name, str(model.path))
        place = next((i for i in range(self.models.count()) if same_path(self.models.itemData(i), self._document.base)), -1)
        if place < 0 and self._document.base is not None:
            self.models.addItem(Path(self._document.base).name, str(self._document.base))
            place = self.models.count() - 1
        self.models.setCurrentIndex(place)
        self.models.setPlaceholderText(words.TRY_NO_BASE())
        self.models.blockSignals(False)
        self.beside.show_trial()
        self._enable()

    def _choose_model(self, row: int) -> None:
        path = Path(self.models.itemData(row))
        if same_path(path, self._document.base):
            return
        fitting = {a.path for a in self._catalogue.adapters_for(self._catalogue.model(path))} if self._catalogue.model(path) else set()
        leaving = tuple(entry.id for entry in self._document.entries if Path(entry.adapter) not in fitting)
        self._undo.push(SetBase(path, leaving))

    def _changed(self, change: Change) -> None:
        if change.kind not in ("strength", "enabled"):
            self.beside.show_trial()
        if change.kind in ("structure", "base") or change.kind == "trial" and self.beside.model() != self._opened_beside:
            self._stale, self._ready = True, False
            if change.kind == "base":
                self._list_models()
            self._open_later.start()
            self._enable()
        elif change.kind != "trial" and not self._strength_later.isActive():
            self._strength_later.start()

    def showEvent(self, event) -> None:    # noqa: N802 (Qt's name)
        super().showEvent(event)
        if self._stale:
            self._open_later.start()
        if not isinstance(QApplication.focusWidget(), QTabBar):    # who walks along the tabs by keys stays there
            self.question.setFocus()
        if self._document.base is None and self.models.count() == 1:
            self._choose_model(0)

    def _open(self) -> None:
        """Bring the document's stack onto its base, in the talking child; only when somebody is here to talk."""
        if not self._stale or self._document.base is None or not (self.isVisible() or self._pending):
            return
        clear(self._trouble)
        self._talk.forget(self._opening)
        self._stale, self._ready = False, False
        self._state.setText(words.TRY_OPENING(name=Path(self._document.base).name))
        self._opened_beside = self.beside.model()
        self._opening = self._talk.ask(OpenChat(str(self._document.base), self._document.to_specs(), self._opened_beside), on_done=self._opened,
                                       on_error=self._not_opened)
        self._enable()

    def _opened(self, _answer) -> None:
        if self._stale:
            return                         # it changed again meanwhile; the next request is on its way
        self._ready = True
        self._state.setText(words.TRY_READY())
        self._send_strengths()
        self._enable()
        if self._pending:
            question, self._pending = self._pending, ""
            self._speak(question)

    def _not_opened(self, error: StudioError) -> None:
        self._ready = False
        self._stale = True                 # tried again at the next question or change
        if self._pending and not self.question.toPlainText():
            self.question.setPlainText(self._pending)
        self._pending = ""
        self._state.setText("")
        clear(self._trouble)
        self._trouble.addWidget(error_card(error))
        self._enable()

    def _send_strengths(self) -> None:
        """One number an entry; heard at the next word, even of an answer that is being spoken."""
        if self._ready and not self._stale and len(self._document):
            self._talk.ask(SetStrengths([entry.strength if entry.enabled else 0.0 for entry in self._document.entries]),
                           on_error=self.failed.emit)

    # --- asking ---

    @property
    def speaking(self) -> bool:
        return bool(self._tickets)

    def ask(self) -> None:
        """Send what was typed."""
        question = self.question.toPlainText().strip()
        if not question or self.speaking or self._pending:
            return
        if self._document.base is None:
            self.said.emit(words.TRY_NO_BASE())
            self.models.setFocus()
            return
        self.question.clear()
        if self._ready and not self._stale:
            self._speak(question)
            return
        self._pending = question
        self._open()
        self._enable()

    def ask_again(self) -> None:
        """The last question once more, with today's strengths; its earlier answers do not count as said."""
        if self.turns and not self.speaking:
            self.turns[-1].replaced = True
            self._speak(self.turns[-1].question)

    def stop_speaking(self) -> None:
        for ticket in list(self._tickets):
            self._talk.stop(ticket)

    def new_chat(self) -> None:
        """Forget the conversation."""
        for ticket in list(self._tickets):
            self._talk.forget(ticket)
        self._tickets.clear()
        for turn in self.turns:
            turn.hide()
            turn.deleteLater()
        self.turns.clear()
        if self._pending and not self.question.toPlainText():
            self.question.setPlainText(self._pending)      # it was meant for what is forgotten
        self._pending = ""
        clear(self._trouble)
        if self._ready:
            self._state.setText(words.TRY_READY())
        self._enable()
        self.question.setFocus()

    def _speak(self, question: str) -> None:
        columns = self.beside.columns()
        blind = self.beside.blind.isChecked() and len(columns) > 1
        if blind:
            self._shuffle(columns)         # also the order in which they answer tells nothing
        past = [turn for turn in self.turns if not turn.replaced]
        turn = Turn(question, columns, blind)
        turn.voted.connect(self._voted)
        turn.answers["stack"].corrected.connect(lambda better, before=past, q=question: self._keep(before, q, better))
        self.turns.append(turn)
        self._conversation.addWidget(turn)
        for column in columns:
            request = Say(messages=[*_history(past, column), {"role": "user", "content": question}], columns=[column],
                          max_new_tokens=self.length.value(),
                          temperature=round(self.temperature.value(), 2), seed=len(past), strengths=self.beside.strengths(column))
            answer, ticket = turn.answers[column], [0]
            ticket[0] = self._talk.ask(request, on_event=lambda event, a=answer: self._heard(a, event),
                                       on_done=lambda _, t=ticket, u=turn: self._over(t[0], u),
                                       on_error=lambda error, t=ticket, a=answer, u=turn: (a.fail(error), self._over(t[0], u)))
            self._tickets.add(ticket[0])
        self._state.setText(words.TRY_SPEAKING())
        self._enable()

    def _heard(self, answer: Answer, event: events.Event) -> None:
        if isinstance(event, events.Token):
            answer.hear(event.text)
        elif isinstance(event, events.Answered):
            answer.finish(event)

    def _over(self, ticket: int, turn: Turn) -> None:
        self._tickets.discard(ticket)
        if not self.speaking:
            turn.complete()
            self._state.setText(words.TRY_READY())
            self._enable()
            a11y.announce(self.scroll, words.TRY_BLIND_ASK() if turn.blind else turn.answers["stack"].said)

    def _voted(self, who: str) -> None:
        self.beside.vote(who)
        self.question.setFocus()

    def _keep(self, before: list[Turn], question: str, better: str) -> None:
        """Keep a corrected answer as an example of the skill that spoke."""
        skill = next((entry.name for entry in self._document.entries if entry.enabled), Path(self._document.base).name)
        corrections = Corrections(self._home, skill)
        try:
            count = corrections.keep([*_history(before, "stack"), {"role": "user", "content": question}, {"role": "assistant", "content": better}])
        except StudioError as error:
            self.failed.emit(error)
            return
        self.said.emit(words.TRY_CORRECT_KEPT(count, enough=ENOUGH))
        if count >= ENOUGH:
            clear(self._trouble)
            line = Row(text(words.TRY_CORRECT_ENOUGH(n=count)),
                       button(words.TRY_CORRECT_TEACH(), lambda: self.teach_wanted.emit(corrections.path), "primary", icon="teach"))
            line.setStretch(0, 1)
            self._trouble.addWidget(card(line, looks="notice-good", margin=theme.M))

    # --- looks ---

    def _enable(self) -> None:
        there = self._document.base is not None
        self._empty.setVisible(not self.turns)
        self._empty.setText(words.TRY_EMPTY() if there else words.TRY_NO_BASE_DO())
        self.send.setEnabled(there and not self.speaking and not self._pending)
        self.stop.setEnabled(self.speaking)
        self.stop.setVisible(self.speaking)
        self.send.setVisible(not self.speaking)
        self.again.setEnabled(bool(self.turns) and not self.speaking)
        self.clear.setEnabled(bool(self.turns))

    def resizeEvent(self, event) -> None:  # noqa: N802 (Qt's name)
        super().resizeEvent(event)
        self._arrange()

    def minimumSizeHint(self) -> QSize:    # noqa: N802
        return QSize(self._chat.minimumSizeHint().width() + 2 * theme.L, super().minimumSizeHint().height())

    def _arrange(self, *_: object) -> None:
        """Model and stack beside the chat, growing with the text size; where both have no room, folded away above it."""
        high = self.fontMetrics().height()
        side, chat = max(264, self._card.minimumSizeHint().width()), max(20 * high, self._chat.minimumSizeHint().width())
        narrow = self.width() < chat + side + 3 * theme.L
        if narrow != self._narrow:
            self._narrow = narrow
            self.side.head.setVisible(narrow)
            self.side.open(not narrow)
        self._state.setMinimumWidth(12 * self.fontMetrics().averageCharWidth())
        self._columns.setDirection(QBoxLayout.Direction.BottomToTop if narrow else QBoxLayout.Direction.LeftToRight)
        self._columns.setStretch(0, 1)
        self._columns.setStretch(1, int(narrow and self.side.head.isChecked()))
        self.side.setMinimumWidth(0 if narrow else side)
        self.side.setMaximumWidth(WIDEST if narrow else side)

    def _to_the_end(self, _low: int, high: int) -> None:
        self.scroll.verticalScrollBar().setValue(high)

    def restyle(self, *_: object) -> None:
        super().restyle()
        self._arrange()
        for turn in self.turns:
            turn.mark()


def _history(turns: list[Turn], column: str) -> list[dict]:
    """The chat so far as this column has lived it; where it was not asked, the other's answer stands in."""
    messages = []
    for turn in turns:
        answer = turn.answers.get(column) or turn.answers["stack"]
        if answer.said:
            messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": answer.said}]
    return messages
