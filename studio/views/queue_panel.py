"""Every job: running, waiting and past. Pause, continue, stop, remove, move; and what happened in the chosen one."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QGuiApplication, QKeySequence, QShortcut
from PySide6.QtWidgets import (QAbstractItemView, QHeaderView, QPlainTextEdit, QProgressBar, QSplitter, QStackedWidget, QTableView,
                               QVBoxLayout, QWidget)

from engine import events
from engine.errors import StudioError
from studio.core.text import number
from studio.core.text import work as words
from studio.core.text.spoken import spoken
from studio.jobs.job import Job, State
from studio.models.jobs_model import KIND, PROGRESS, STATE, TITLE, WHEN, JobRole, JobsModel, when
from studio.models.past import Past
from studio.views import a11y, theme
from studio.views.flow import Flow
from studio.views.parts import Column, Panel, Row, button, card, clear, error_card, text

LOG_LINES = 400
LEAST = 5                                  # of them that are seen, however large the letters
TITLE_LETTERS = 14                         # of a job's name that are seen


class QueuePanel(Panel):
    """Signals: `said(str)`, `failed(StudioError)`, `opened(job id)` for a training that should be shown in Teach."""

    opened = Signal(int)

    def __init__(self, queue_bridge):
        super().__init__(words.QUEUE_TITLE())
        self._queue = queue_bridge
        self.model = JobsModel(queue_bridge, self)
        self._shown: int | None = None
        self._past, self._last = Past(self), 0
        self._build()
        self.model.rowsInserted.connect(lambda *_: self._refresh())
        self.model.rowsRemoved.connect(lambda *_: self._refresh())
        self.model.dataChanged.connect(lambda *_: self._refresh())
        queue_bridge.event.connect(self._heard)
        self._refresh()

    def _build(self) -> None:
        self.view = QTableView()
        self.view.setModel(self.model)
        self.view.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.view.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.view.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.view.setShowGrid(False)
        self.view.setTabKeyNavigation(False)
        self.view.setWordWrap(False)
        self.view.verticalHeader().hide()
        self.view.verticalHeader().setDefaultSectionSize(36)
        header = self.view.horizontalHeader()
        header.setHighlightSections(False)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        for column in range(5):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.Stretch if column in (TITLE, PROGRESS)
                                        else QHeaderView.ResizeMode.ResizeToContents)
        a11y.name(self.view, words.QUEUE_LIST())
        self.view.selectionModel().currentRowChanged.connect(lambda *_: self._refresh())
        self.view.doubleClicked.connect(lambda index: self._open())
        self.pause = button(words.QUEUE_PAUSE(), lambda: self._ask("pause"), help=words.QUEUE_PAUSE_HELP(), icon="pause")
        self.resume = button(words.QUEUE_RESUME(), lambda: self._ask("resume"), help=words.QUEUE_RESUME_HELP(), icon="play")
        self.cancel = button(words.QUEUE_CANCEL(), lambda: self._ask("cancel"), help=words.QUEUE_CANCEL_HELP(), icon="stop")
        self.remove = button(words.REMOVE(), self._remove, help=words.QUEUE_REMOVE_HELP(), icon="remove")
        self.up = button("", lambda: self._move(-1), "quiet", help=words.QUEUE_UP(), icon="up")
        self.down = button("", lambda: self._move(1), "quiet", help=words.QUEUE_DOWN(), icon="down")
        self.open = button(words.QUEUE_OPEN(), self._open, icon="teach")
        a11y.name(self.up, words.QUEUE_UP())
        a11y.name(self.down, words.QUEUE_DOWN())
        for keys, made in (("Alt+Up", self.up), ("Alt+Down", self.down), ("Del", self.remove), ("Space", None), ("Return", self.open)):
            shortcut = QShortcut(QKeySequence(keys), self.view, context=Qt.ShortcutContext.WidgetShortcut)
            shortcut.activated.connect(made.click if made is not None else self._toggle)
            if made is not None:
                made.setToolTip(f"{made.toolTip()} ({shortcut.key().toString(QKeySequence.SequenceFormat.NativeText)})".strip())
        buttons = Flow(self.pause, self.resume, self.cancel, self.up, self.down, self.remove)
        self._detail_title, self._detail = text("", "heading"), text("", "muted", selectable=True)
        self._bar = QProgressBar()
        self._bar.setTextVisible(False)
        a11y.name(self._bar, words.QUEUE_COLUMNS[PROGRESS]())
        self._trouble = QVBoxLayout()
        self._log = QPlainTextEdit()
        self._log.setReadOnly(True)
        self._log.setMaximumBlockCount(LOG_LINES)
        theme.look(self._log, "mono plain")
        a11y.name(self._log, words.QUEUE_LOG())
        self.copy = button(words.COPY_DETAILS(), self._copy, "link")
        head = Row(self._detail_title, Flow(self.open, self.copy))
        head.setStretch(0, 1)
        self._card = detail = card(head, self._detail, self._bar, self._trouble, text(words.QUEUE_LOG(), "small muted"), self._log)
        self._empty = card(text(words.QUEUE_EMPTY(), "muted"), looks="sunken", margin=theme.XL)
        full = QWidget()
        splitter = QSplitter(Qt.Orientation.Vertical)
        splitter.setChildrenCollapsible(False)
        splitter.setHandleWidth(theme.L)
        splitter.setStyleSheet("QSplitter::handle { background: transparent; }")
        splitter.addWidget(self.view)
        splitter.addWidget(detail)
        splitter.setSizes([300, 260])
        self._log.setMinimumHeight(LEAST * self._log.fontMetrics().lineSpacing())
        Column(buttons, splitter, spacing=theme.M, parent=full).setStretch(1, 1)
        nothing = QWidget()
        Column(self._empty, None, parent=nothing)
        self._stack = QStackedWidget()
        self._stack.addWidget(nothing)
        self._stack.addWidget(full)
        Column(text(words.QUEUE_TITLE(), "title"), self._stack, spacing=theme.L, margin=theme.XL, parent=self).setStretch(1, 1)

    # --- what is shown ---

    def current(self) -> Job | None:
        """The chosen job."""
        return self.model.job(self.view.currentIndex().row())

    def select(self, id: int) -> None:
        """Choose a job."""
        row = self.model.row_of(id)
        if row >= 0:
            self.view.setCurrentIndex(self.model.index(row, 0))

    def _refresh(self) -> None:
        self._stack.setCurrentIndex(1 if self.model.rowCount() else 0)
        if self.model.rowCount() and not self.view.currentIndex().isValid():
            running = [job.id for job in self.model.jobs() if job.state is State.RUNNING]
            self.select(running[0] if running else self.model.job(self.model.rowCount() - 1).id)
        job = self.current()
        self._enable(job)
        if job is None:
            self._detail_title.setText(words.QUEUE_PICK())
            return
        self._detail_title.setText(job.title)
        state = words.STATES[job.state.value]()
        parts = [words.KINDS.get(job.spec.kind, words.START_TITLE)(), state, when(job),
                 words.QUEUE_ATTEMPTS(job.attempt) if job.attempt > 1 else "",
                 self.model.progress_words(job) if job.state is not State.FAILED else ""]
        self._detail.setText("  ·  ".join(part for part in parts if part))
        fraction = self.model.fraction(job)
        self._bar.setVisible(job.state is State.RUNNING)
        self._bar.setRange(0, 1000 if fraction is not None or not self.isVisible() else 0)
        self._bar.setValue(round(1000 * (fraction or 0)))
        if (job.id, job.state) != getattr(self, "_told", None):
            self._told = (job.id, job.state)
            clear(self._trouble)
            if job.error and job.state in (State.FAILED, State.INTERRUPTED):
                self._trouble.addWidget(error_card(StudioError.from_dict({**job.error, "details": ""})))
        if job.id != self._shown:
            self._shown = job.id
            self._show_log()
        self._fit()

    def _heard(self, id: int, event: events.Event) -> None:
        if id == self._shown and not self._past.reading:
            self._write(event)

    def _enable(self, job: Job | None) -> None:
        row, last = self.view.currentIndex().row(), self.model.rowCount() - 1
        allowed = {self.pause: job is not None and job.active,
                   self.resume: job is not None and job.can_resume and not job.would_repeat,
                   self.cancel: job is not None and (job.state is State.RUNNING or job.may(State.CANCELLED)),
                   self.remove: job is not None and job.state is not State.RUNNING, self.up: job is not None and row > 0,
                   self.down: job is not None and row < last, self.open: job is not None and job.spec.kind == "train"}
        for made, yes in allowed.items():
            made.setEnabled(yes)
        self.resume.setToolTip(words.QUEUE_SAME_AGAIN() if job is not None and job.would_repeat else words.QUEUE_RESUME_HELP())

    def _show_log(self) -> None:
        """The lines of the chosen job; steps and progress are left to the bar."""
        self._log.clear()
        self._last = 0
        job = self.current()
        self._past.read(job.folder if job else None, self._write, _scrolled(self._log))

    def _write(self, event: events.Event) -> None:
        if event.seq > self._last and (line := sentence(event)):
            self._log.appendPlainText(line)
        self._last = max(self._last, event.seq)

    def showEvent(self, event) -> None:    # noqa: N802 (Qt's names)
        super().showEvent(event)
        self._refresh()

    def resizeEvent(self, event) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._fit()

    def restyle(self, *_: object) -> None:
        super().restyle()
        self._fit()

    def _fit(self) -> None:
        """Nothing is squeezed: titles keep some letters, what else is known of a job goes first; the page scrolls before the details shrink."""
        if not self.isVisible():
            return
        letter, line = self.view.fontMetrics().averageCharWidth(), self.view.fontMetrics().height()
        self.view.verticalHeader().setDefaultSectionSize(max(36, 2 * line))
        self.view.setMinimumHeight(5 * line + self.view.horizontalHeader().sizeHint().height())
        for hidden in (set(), {KIND}, {KIND, WHEN}, {KIND, WHEN, PROGRESS}):
            for column in (KIND, PROGRESS, WHEN):
                self.view.setColumnHidden(column, column in hidden)
            fixed = sum(max(self.view.sizeHintForColumn(column), self.view.horizontalHeader().sectionSizeHint(column))
                        for column in {KIND, STATE, WHEN} - hidden)
            if self.width() - 2 * theme.XL - fixed >= TITLE_LETTERS * letter * (1 if PROGRESS in hidden else 2):
                break
        self._log.setMinimumHeight(LEAST * self._log.fontMetrics().lineSpacing())
        width = max(1, self.width() - 2 * theme.XL)
        self._card.setMinimumHeight(self._card.layout().totalHeightForWidth(width))

    # --- what a person does ---

    def _ask(self, what: str) -> bool:
        """Ask the queue for something about the chosen job; a refusal is told."""
        job = self.current()
        if job is None:
            self.said.emit(words.QUEUE_NEEDS_JOB())
            return False
        try:
            getattr(self._queue.queue, what)(job.id)
            return True
        except StudioError as error:
            self.failed.emit(error)
            return False

    def _toggle(self) -> None:
        """Space: pause what runs or waits, continue what stands."""
        if self.pause.isEnabled() or self.resume.isEnabled():
            self._ask("pause" if self.pause.isEnabled() else "resume")

    def _remove(self) -> None:
        job = self.current()
        if job is not None and self._ask("remove"):
            self.said.emit(words.QUEUE_REMOVED(title=job.title))

    def _move(self, by: int) -> None:
        job = self.current()
        if job is None:
            return
        target = self.model.job(self.model.row_of(job.id) + by)
        if target is None:
            return
        try:
            self._queue.queue.move(job.id, target.position)
        except StudioError as error:
            self.failed.emit(error)
            return
        self._queue.tick()
        self.select(job.id)
        a11y.announce(self.view, f"{job.title}: {self.view.currentIndex().row() + 1} / {self.model.rowCount()}")

    def _open(self) -> None:
        job = self.current()
        if job is not None and job.spec.kind == "train":
            self.opened.emit(job.id)

    def _copy(self) -> None:
        job = self.current()
        if job is None:
            return
        error = job.error or {}
        parts = [job.title, words.STATES[job.state.value](), *(error.get(k, "") for k in ("what", "why", "do", "details")),
                 str(job.spec.to_dict()),
                 self._log.toPlainText()]
        QGuiApplication.clipboard().setText("\n".join(part for part in parts if part))
        self.said.emit(words.COPIED())


def _scrolled(log: QPlainTextEdit):
    return lambda: log.verticalScrollBar().setValue(log.verticalScrollBar().maximum())


def sentence(event: events.Event) -> str:
    """One line of the log for an event, or nothing for those that only move a bar."""
    match event:
        case events.Note():
            return spoken(event.text)
        case events.Evaluated():
            said = words.QUEUE_TESTED(step=event.step, error=number(event.error, 3), n=event.rows)
            return words.QUEUE_BEST(said=said) if event.best else said
        case events.Checked():
            return f"{'✓' if event.passed else '✗'} {spoken(event.sentence)}"
        case events.Failed():
            return f"✗ {spoken(event.error.get('what', ''))} {spoken(event.error.get('why', ''))}".strip()
        case events.Finished():
            return f"✓ {words.STATES['finished']()}"
        case events.Stopped():
            return f"■ {words.STATES['paused' if event.reason == 'pause' else 'cancelled']()}"
        case events.Progress(done=0.0):
            return spoken(event.stage)
    return ""


__all__ = ["QueuePanel", "JobRole", "STATE", "sentence"]
