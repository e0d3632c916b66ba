"""Teach, step 4: what is going on, in a sentence, a curve, sample answers through time, and numbers. Safe to close at any moment."""

from __future__ import annotations

from PySide6.QtCore import Qt, QTimer, Signal
from PySide6.QtWidgets import QMenu, QProgressBar, QSlider, QVBoxLayout, QWidget

from engine import events
from engine.errors import Diverged, StudioError, WorkerDied
from engine.specs import TrainSpec
from studio.core import plan
from studio.core.text import amounts, number
from studio.core.text import teach as words
from studio.core.text import work
from studio.core.text.spoken import spoken
from studio.core.verdict import judge
from studio.jobs.job import Job, State
from studio.models.past import Past
from studio.models.teach_draft import TeachDraft
from studio.views import a11y, theme
from studio.views.curve_view import CurveView
from studio.views.flow import Flow
from studio.views.parts import Column, Row, button, card, clear, error_card, page, text

TONES = {"good": "notice-good", "plain": "card", "warn": "notice-warn", "bad": "notice-bad"}
CALM = 250                                 # milliseconds between two changes of the words


class TrainPage(QWidget):
    """Follows the training that the draft's ``job_id`` names. Signals: `said(str)`, `failed(StudioError)`, `ended(Job)`,
    `go(str)` to another step."""

    said = Signal(str)
    failed = Signal(object)
    ended = Signal(object)
    go = Signal(str)

    def __init__(self, draft: TeachDraft, queue_bridge):
        super().__init__()
        self._draft, self._queue = draft, queue_bridge
        self.job: Job | None = None
        self.answers: dict[int, dict[str, str]] = {}       # step → question → answer
        self._seq, self._last, self._stage, self._saved, self._asked = 0, None, "", None, ""
        self._past = Past(self)
        self._words = QTimer(self, interval=CALM, singleShot=True)
        self._words.timeout.connect(self._say)
        self._build()
        draft.changed.connect(lambda part: part == "job" and self._follow())
        queue_bridge.changed.connect(self._job_changed)
        queue_bridge.removed.connect(self._job_removed)
        queue_bridge.event.connect(self._heard)
        self._list_jobs()

    def _build(self) -> None:
        self.picker = a11y.name(a11y.Choice(12), words.REVIEW_PICK())
        self.picker.activated.connect(lambda _: self._draft.look_at(self.picker.currentData()))
        self._head = text("", "title")
        self.verdict, self._advice = text("", "heading", selectable=True), text("", "muted")
        self.evidence = button("", self._point_out, "link")
        self._verdict_card = card(self.verdict, self._advice, Row(self.evidence, None), spacing=theme.XS)
        self.curve = CurveView()
        self._heighten()
        theme.changed.connect(self._heighten)
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        a11y.name(self.bar, words.TRAIN_HEAD(name=""))
        self._numbers, self._safe = text("", "muted"), text("", "small")
        self.pause = button(words.TRAIN_PAUSE(), self._pause_or_go_on, icon="pause")
        self.stop = button(words.TRAIN_STOP(), self._stop, help=words.TRAIN_STOP_HELP(), icon="stop")
        self.more = button(words.TRAIN_MORE(), self._offer_time, help=words.TRAIN_MORE_HELP(), icon="time")
        self.more.setMenu(QMenu(self.more))
        self.more.menu().aboutToShow.connect(self._offer_time)
        self.sample = button(words.TRAIN_SAMPLE(), self._sample, help=words.TRAIN_SAMPLE_HELP(), icon="try")
        self._trouble = QVBoxLayout()
        self._strip = card(*self._strip_parts())
        begin = Row(text(words.NEEDS_START()), button(words.TRAIN_TO_PLAN(), lambda: self.go.emit("plan"), icon="teach"))
        begin.setStretch(0, 1)
        self._none = card(begin, looks="sunken")
        self._all = QWidget()
        theme.look(self._all, "page")
        buttons = Column(Flow(self.pause, self.stop, self.more, self.sample), self._safe)
        Column(self._verdict_card, self._trouble, buttons, card(self.curve, self.bar, self._numbers),
               self._strip, spacing=theme.L, parent=self._all)
        head = Row(self._head, self.picker, spacing=theme.L)
        head.setStretch(0, 1)
        self._page = page(head, self._none, self._all, None)
        Column(self._page, parent=self)
        self._show(None)

    def _strip_parts(self) -> tuple:
        self._when = text("", "muted", wrap=False)
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setPageStep(1)
        self.slider.setMaximumWidth(280)
        a11y.name(self.slider, words.TRAIN_SAMPLES_SLIDER())
        a11y.quiet_wheel(self.slider)
        self.slider.valueChanged.connect(self._show_answers)
        self._answers = QVBoxLayout()
        self._answers.setSpacing(theme.M)
        return Row(text(words.TRAIN_SAMPLES(), "strong", wrap=False), None, self._when, self.slider, spacing=theme.M), self._answers

    def _heighten(self, *_: object) -> None:
        """Larger letters leave the curve its room."""
        self.curve.setFixedHeight(max(350, 21 * self.fontMetrics().height()))

    # --- which training ---

    def _list_jobs(self) -> None:
        jobs = [job for job in self._queue.queue.jobs() if isinstance(job.spec, TrainSpec)]
        self.picker.blockSignals(True)
        self.picker.clear()
        for job in sorted(jobs, key=lambda j: -j.id):
            self.picker.addItem(f"{job.title} – {work.STATES[job.state.value]()}", job.id)
        self.picker.blockSignals(False)
        self.picker.setVisible(len(jobs) > 1)
        if self._draft.job_id is None and jobs:
            busy = [job for job in jobs if job.state is not State.FINISHED]
            self._draft.look_at((busy or jobs)[-1].id)
        self.picker.setCurrentIndex(self.picker.findData(self._draft.job_id))

    def _follow(self) -> None:
        """Show another training, from what its folder tells."""
        id = self._draft.job_id
        try:
            job = self._queue.queue.job(id) if id is not None else None
        except StudioError as error:
            self.failed.emit(error)
            job = None
        self.job = None
        self._page.verticalScrollBar().setValue(0)
        self.curve.clear()
        self.answers.clear()
        self._seq, self._last, self._stage, self._saved, self._asked = 0, None, "", None, ""
        self._show(job)
        self._past.read(job.folder if job else None, self._take, self._caught_up)
        self.picker.setCurrentIndex(self.picker.findData(id))

    def _caught_up(self) -> None:
        self._fill_strip(newest=True)
        self._say()

    def _job_changed(self, job: Job) -> None:
        if not isinstance(job.spec, TrainSpec):
            return
        self._list_jobs()
        if job.id == self._draft.job_id:
            before = self.job.state if self.job else None
            self._show(job)
            if before is not job.state and before is not None:
                if job.state is State.FINISHED:
                    self.ended.emit(job)
                a11y.announce(self, self.verdict.text())

    def _job_removed(self, id: int) -> None:
        if id == self._draft.job_id:
            self._draft.look_at(None)
        self._list_jobs()

    # --- what happens in it ---

    def _heard(self, id: int, event: events.Event) -> None:
        if id != self._draft.job_id or self._past.reading or (event.seq and event.seq <= self._seq):
            return                         # while the past is read, this event stands in it too
        self._take(event)
        if not self._words.isActive():
            self._words.start()

    def _take(self, event: events.Event) -> None:
        self._seq = max(self._seq, event.seq)
        match event:
            case events.Step():
                self._last = event
                self.curve.expect(event.steps)
                self.curve.learned(event.step, event.error)
            case events.Evaluated():
                self.curve.unseen(event.step, event.error)
            case events.Saved():
                self._saved = event.step
                if event.path:
                    self.curve.mark(event.step, words.TRAIN_SAVED())
            case events.Sample():
                self.answers.setdefault(event.step, {})[event.prompt] = event.answer
                if not self._past.reading:
                    self._fill_strip()
            case events.Note(step=int(step), text=said):
                self.curve.mark(step, spoken(said), loud=True)
            case events.Progress():
                self._stage = spoken(event.stage)
                if event.unit == "steps" and event.total:
                    self.curve.expect(event.total)

    # --- words ---

    def _show(self, job: Job | None) -> None:
        self.job = job
        self._none.setVisible(job is None)
        self._all.setVisible(job is not None)
        self._head.setText(words.TRAIN_HEAD(name=job.title) if job else words.STEPS["train"]())
        clear(self._trouble)
        if job is None:
            return
        running, waiting = job.state is State.RUNNING, job.state is State.WAITING
        error = StudioError.from_dict(job.error) if job.state is State.FAILED and job.error else None
        if error is not None:
            self._trouble.addWidget(error_card(error, *self._mending(error)))
        go_on = not running and job.can_resume
        said = words.TRAIN_RESUME() if go_on else words.TRAIN_PAUSE()
        self.pause.setText(f" {said}")
        self.pause.setProperty("tint", ["play" if go_on else "pause", "text"])
        self.pause.setIcon(theme.icon(*self.pause.property("tint")))
        a11y.name(self.pause, said, work.QUEUE_RESUME_HELP() if go_on else work.QUEUE_PAUSE_HELP())
        self.pause.setEnabled(running or waiting or go_on and not job.would_repeat)
        self.pause.setToolTip(words.TRAIN_SAME_AGAIN() if job.would_repeat else "")
        self.stop.setEnabled(running or job.can_finish)
        self.more.setEnabled(running or job.state in (State.PAUSED, State.INTERRUPTED))
        self.sample.setEnabled(running and bool(job.spec.prompts))
        self._strip.setVisible(bool(job.spec.prompts))
        if job.state is not State.RUNNING:
            self._asked = ""
        self._say()

    def _say(self) -> None:
        job = self.job
        if job is None:
            return
        verdict = judge(*self.curve.errors())
        tone, sentence, advice = verdict.tone, verdict.sentence, verdict.advice
        step = job.step if job.step is not None else self._saved
        match job.state:
            case State.WAITING:
                tone, sentence, advice = "plain", words.TRAIN_WAITING(), ""
            case State.RUNNING if self._asked:
                sentence = self._asked
            case State.RUNNING if not self.curve.points:
                tone, sentence, advice = "plain", self._stage or words.TRAIN_PREPARING(), ""
            case State.PAUSED:
                tone, advice = "plain", sentence if self.curve.points else ""
                sentence = words.TRAIN_PAUSED(step=step) if step else words.TRAIN_PAUSED_START()
            case State.INTERRUPTED:
                tone, advice = "warn", _why(job.error or {})
                sentence = words.TRAIN_INTERRUPTED(step=step or 0)
            case State.CANCELLED:
                tone, sentence, advice = "plain", words.TRAIN_CANCELLED(step=step or 0), ""
            case State.FAILED:
                tone, sentence, advice = "bad", spoken((job.error or {}).get("what", "")), ""
            case State.FINISHED:
                if verdict.kind in ("waiting", "learning"):
                    tone, sentence = "good", words.TRAIN_FINISHED()
                if verdict.kind in ("improving", "flat", "no_better"):     # the others say so themselves
                    advice = f"{words.TRAIN_FINISHED()} {advice}".strip()
        self.verdict.setText(sentence)
        self._advice.setText(advice)
        self._advice.setVisible(bool(advice))
        theme.look(self._verdict_card, TONES[tone])
        self._verdict_card.setVisible(job.state is not State.FAILED)
        a11y.name(self._verdict_card, sentence, advice)
        self._show_evidence(verdict.step if job.state in (State.RUNNING, State.FINISHED) else None)
        self._say_numbers(job, step)

    def _show_evidence(self, step: float | None) -> None:
        self._evidence = step
        self.evidence.setVisible(step is not None)
        if step is not None:
            self.evidence.setText(words.TRAIN_EVIDENCE(step=round(step)))
            a11y.name(self.evidence, self.evidence.text())

    def _point_out(self) -> None:
        """Show on the curve what the verdict speaks of."""
        self.curve.point_out(self._evidence)

    _evidence: float | None = None

    def _say_numbers(self, job: Job, saved: int | None) -> None:
        last = self._last
        parts = []
        if last is not None:
            parts = [words.TRAIN_STEPS(step=last.step, steps=last.steps), words.TRAIN_SEEN(n=number(last.passes, 1)),
                     words.TRAIN_SPEED(n=round(last.tokens_per_second)), words.TRAIN_MEMORY(size=amounts.size(last.memory_mb * 1e6))]
            if job.state is State.RUNNING:
                parts.insert(1, amounts.left(last.seconds_left))
            self.bar.setRange(0, last.steps)
            self.bar.setValue(last.step if job.state is not State.FINISHED else last.steps)
        else:
            self.bar.setRange(0, 0 if job.state is State.RUNNING and self.isVisible() else 1)
        self._numbers.setText("  ·  ".join(part for part in parts if part))
        self._numbers.setVisible(bool(parts))
        self.bar.setAccessibleDescription(self._numbers.text())
        safe = ""
        if job.state is State.RUNNING:
            safe = words.TRAIN_SAFE(step=saved) if saved else words.TRAIN_NOT_SAFE()
        self._safe.setText(safe)
        self._safe.setVisible(bool(safe))

    # --- answers through time ---

    def _fill_strip(self, newest: bool = False) -> None:
        follow = newest or self.slider.value() == self.slider.maximum()
        self.slider.setRange(0, max(0, len(self.answers) - 1))
        self.slider.setEnabled(len(self.answers) > 1)
        if follow:
            self.slider.setValue(self.slider.maximum())
        self._show_answers()

    def _show_answers(self, *_: object) -> None:
        steps = sorted(self.answers)
        clear(self._answers)
        if not steps:
            self._when.setText("")
            self._answers.addWidget(text(words.TRAIN_SAMPLES_NONE(), "muted"))
            return
        step = steps[min(self.slider.value(), len(steps) - 1)]
        self._when.setText(words.TRAIN_SAMPLES_AT(step=step) if step else words.TRAIN_SAMPLES_BEFORE())
        self.slider.setAccessibleDescription(self._when.text())
        for question, answer in self.answers[step].items():
            self._answers.addLayout(Column(text(question, "muted small"), text(answer.strip() or "…", selectable=True), spacing=2))

    # --- buttons ---

    def _ask(self, what: str, *values: float) -> bool:
        """Ask the queue for something about this job; a refusal is told."""
        try:
            getattr(self._queue.queue, what)(self.job.id, *values)
            return True
        except StudioError as error:
            self.failed.emit(error)
            return False

    def _pause_or_go_on(self) -> None:
        if self.job is None:
            return
        if self.job.state in (State.RUNNING, State.WAITING):
            if self._ask("pause") and self.job.state is State.RUNNING:
                self._asked = words.TRAIN_STOPPING()
                self._say()
        else:
            self._ask("resume")

    def _offer_time(self) -> None:
        """Fill the menu: how many passes, and what they cost."""
        menu = self.more.menu()
        menu.clear()
        for passes in plan.more_passes(self.job.spec.passes) if self.job is not None else ():
            what = words.TRAIN_MORE_PASSES(passes, shown=number(passes))
            if (seconds := plan.seconds_of(passes, self._last)) is not None:
                what = words.TRAIN_MORE_PRICE(passes=what, amount=amounts.duration(seconds))
            menu.addAction(what, lambda n=passes, said=what: self._add_time(n, said))

    def _add_time(self, passes: float, what: str) -> None:
        if self.job is not None and self._ask("extend", passes):
            self.said.emit((words.TRAIN_MORE_SAID if self.job.state is State.RUNNING else words.TRAIN_MORE_LATER)(what=what))

    def _mending(self, error: StudioError) -> list[QWidget]:
        """Buttons that mend what has gone wrong."""
        if not isinstance(error, Diverged) or error.facts.get("lines"):
            return []
        good = error.facts.get("good", 0)
        said = words.TRAIN_SLOWER(step=good) if good else words.TRAIN_SLOWER_ANEW()
        self.slower = button(said, lambda: self._ask("slow_down"), "primary", help=words.TRAIN_SLOWER_HELP() if good else "")
        return [self.slower]

    def _stop(self) -> None:
        if self.job is not None and self._ask("finish") and self.job.state is State.RUNNING:
            self._asked = words.TRAIN_STOPPING()
            self._say()

    def _sample(self) -> None:
        if self.job is not None:
            self._ask("sample")


def _why(error: dict) -> str:
    """Why a job was interrupted, and what is to be done first, if anything is."""
    parts = [error.get("what", ""), error.get("why", ""), "" if error.get("code") == WorkerDied.code else error.get("do", "")]
    return spoken(" ".join(part for part in parts if part))
