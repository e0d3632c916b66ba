"""The first page: three things to do, recent work, the sample project, this computer in words, and the starter model if it is missing."""

from __future__ import annotations

from PySide6.QtCore import QUrl, Signal
from PySide6.QtGui import QDesktopServices
from PySide6.QtWidgets import QProgressBar, QVBoxLayout

from engine import events
from engine.errors import StudioError
from engine.specs import FetchSpec
from studio.core.text import amounts
from studio.core.text import work as words
from studio.core.text.spoken import spoken
from studio.jobs.job import Job, State
from studio.models.jobs_model import when
from studio.views import a11y, theme
from studio.views.flow import Turning
from studio.views.parts import CardButton, Column, Panel, Row, button, card, clear, error_card, page, picture, text

STARTER = "SmolLM2-135M-Instruct"          # name of its folder in the library
RECENT = 6


class StartPanel(Panel):
    """Signals: `said(str)`, `failed(StudioError)`, `go(str)` to another panel, `sample_wanted()`, `opened(job id)`, `library_changed()`."""

    go = Signal(str)
    sample_wanted = Signal()
    opened = Signal(int)
    library_changed = Signal()

    def __init__(self, home, machine_sentence: str, actions, catalogue, queue_bridge):
        super().__init__(words.START_TITLE())
        self._home, self._catalogue, self._queue = home, catalogue, queue_bridge
        self._fetching: Job | None = None
        self._build(machine_sentence)
        catalogue.subscribe(self.refresh)
        queue_bridge.changed.connect(self._job_changed)
        queue_bridge.removed.connect(self._show_recent)
        queue_bridge.event.connect(self._heard)
        self._fetching = next((job for job in reversed(self._jobs()) if _brings_starter(job)
                               and job.state is not State.FINISHED), None)
        self.refresh()

    def _build(self, machine_sentence: str) -> None:
        self.cards = {}
        for key, icon, title, help in (("teach", "teach", words.START_TEACH(), words.START_TEACH_HELP()),
                                       ("mix", "mix", words.START_MIX(), words.START_MIX_HELP()),
                                       ("try", "try", words.START_TRY(), words.START_TRY_HELP())):
            made = CardButton(title, picture(icon, "accent", 32), theme.S, text(title, "heading"), text(help, "muted"), None,
                              description=help, margin=theme.XL, least=168)
            made.clicked.connect(lambda _=False, k=key: self.go.emit(k))
            self.cards[key] = made
        self._fetch_title, self._fetch_body = text(words.START_FETCH_TITLE(), "heading"), text(words.START_FETCH_BODY(), "muted")
        self.fetch = button(words.START_FETCH(), self.fetch_starter, "primary", icon="import")
        self.cancel_fetch = button(words.CANCEL(), self._cancel_fetch)
        self._fetch_bar, self._fetch_said = QProgressBar(), text("", "muted small")
        self._fetch_bar.setTextVisible(False)
        a11y.name(self._fetch_bar, words.START_FETCH_RUNS())
        self._fetch_trouble = QVBoxLayout()
        self._fetch_card = card(self._fetch_title, self._fetch_body, self._fetch_bar, self._fetch_said, self._fetch_trouble,
                                Row(self.fetch, self.cancel_fetch, None), spacing=theme.M, margin=theme.XL)
        self.sample = CardButton(words.START_SAMPLE(), Row(picture("spark", "accent", 24), text(words.START_SAMPLE(), "strong"), None),
                                 text(words.START_SAMPLE_HELP(), "muted"), None, description=words.START_SAMPLE_HELP(), spacing=theme.S)
        self.sample.clicked.connect(lambda _=False: self.sample_wanted.emit())
        machine = card(Row(picture("memory", "muted", 24), text(words.START_MACHINE(), "strong"), None), text(machine_sentence, "muted"),
                       None)
        self._recent = QVBoxLayout()
        self._recent.setSpacing(0)
        Column(page(Column(text(words.START_WELCOME(), "title"), text(words.START_INTRO(), "muted"), spacing=theme.XS),
                    Turning(*self.cards.values(), letters=22), self._fetch_card, Turning(self.sample, machine, letters=30),
                    Column(text(words.START_RECENT(), "heading"), self._recent), None, spacing=theme.XL), parent=self)

    # --- what is shown ---

    def refresh(self) -> None:
        """Read catalogue and queue anew."""
        self._show_fetch()
        self._show_recent()

    def _jobs(self) -> list[Job]:
        return self._queue.queue.jobs()

    def _show_fetch(self) -> None:
        ready = bool(self._catalogue.models)
        busy = self._fetching is not None and self._fetching.active
        self._fetch_card.setVisible(not ready or busy)
        self.sample.setEnabled(ready)
        self.sample.setToolTip("" if ready else words.START_SAMPLE_NO_MODEL())
        clear(self._fetch_trouble)
        self._fetch_title.setText(words.START_FETCH_RUNS() if busy else words.START_FETCH_TITLE())
        self.fetch.setVisible(not busy)
        self.cancel_fetch.setVisible(busy)
        self._fetch_bar.setVisible(busy)
        self._fetch_said.setVisible(busy)
        if busy and self._fetching.state is State.WAITING:
            self._fetch_said.setText(words.START_WAITS())
            self._fetch_bar.setRange(0, 0 if self.isVisible() else 1)
        stopped = self._fetching is not None and not busy and self._fetching.state is not State.FINISHED
        said = words.START_FETCH_AGAIN() if stopped else words.START_FETCH()
        self.fetch.setText(f" {said}")
        a11y.name(self.fetch, said)
        if stopped and self._fetching.error:
            self._fetch_trouble.addWidget(error_card(StudioError.from_dict(self._fetching.error)))

    def _show_recent(self, *_: object) -> None:
        clear(self._recent)
        jobs = sorted(self._jobs(), key=lambda job: -(job.ended or job.started or job.created))
        jobs = [job for job in jobs if job.spec.kind in ("train", "export")][:RECENT]
        if not jobs:
            self._recent.addWidget(text(words.START_RECENT_NONE(), "muted"))
        for job in jobs:
            state = f"{words.STATE_MARKS[job.state.value]}  {words.STATES[job.state.value]()}"
            row = CardButton(f"{job.title}, {words.KINDS[job.spec.kind]()}, {words.STATES[job.state.value]()}",
                             Row(theme.look(a11y.ElidedLabel(job.title), "strong"), text(words.KINDS[job.spec.kind](), "muted", wrap=False), None,
                                 text(state, _tone(job.state), wrap=False), text(when(job), "muted small"), spacing=theme.M),
                                 margin=theme.M)
            row.clicked.connect(lambda _=False, j=job: self._open(j))
            self._recent.addWidget(row)
            self._recent.addSpacing(theme.XS)

    def _open(self, job: Job) -> None:
        if job.spec.kind == "train":
            self.opened.emit(job.id)
        elif job.state is State.FINISHED:
            QDesktopServices.openUrl(QUrl.fromLocalFile((job.result or {}).get("path", "")))
        else:
            self.go.emit("queue")

    # --- fetching the starter model ---

    def fetch_starter(self) -> None:
        """Put the download into the queue, or go on with the one that was cut off."""
        try:
            if self._fetching is not None and self._fetching.can_resume:
                self._queue.queue.resume(self._fetching.id)
            else:
                self._fetching = self._queue.queue.submit(FetchSpec(out=str(self._home.models / STARTER)), words.START_FETCH_JOB())
        except StudioError as error:
            self.failed.emit(error)
        self._show_fetch()

    def _cancel_fetch(self) -> None:
        try:
            self._queue.queue.cancel(self._fetching.id)
        except StudioError as error:
            self.failed.emit(error)

    def _job_changed(self, job: Job) -> None:
        self._show_recent()
        if not _brings_starter(job):
            return
        self._fetching = job
        if job.state is State.FINISHED:
            self.said.emit(words.START_FETCHED())
            self.library_changed.emit()
        self._show_fetch()

    def _heard(self, id: int, event: events.Event) -> None:
        if self._fetching is None or id != self._fetching.id or not isinstance(event, events.Progress):
            return
        self._fetch_bar.setRange(0, 1000 if event.total else 0)
        if event.total:
            self._fetch_bar.setValue(round(1000 * event.done / event.total))
        amount = f"{amounts.size(event.done)} / {amounts.size(event.total)}" if event.unit == "bytes" and event.total else ""
        self._fetch_said.setText(" · ".join(part for part in (spoken(event.stage), amount, amounts.left(event.seconds_left)) if part))


def _brings_starter(job: Job) -> bool:
    return isinstance(job.spec, FetchSpec) and job.spec.is_starter


def _tone(state: State) -> str:
    return {State.FINISHED: "good", State.FAILED: "bad", State.INTERRUPTED: "warn"}.get(state, "muted")
