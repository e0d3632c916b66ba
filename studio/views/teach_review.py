"""Teach, step 5: is it better? Unseen examples one by one, a blind vote and the pinned answers; then keep, train more or discard."""

from __future__ import annotations

import shutil
from pathlib import Path

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QGridLayout, QProgressBar, QVBoxLayout, QWidget

from engine import events
from engine.errors import StudioError, explain
from engine.specs import ReviewSpec
from engine.store.recipe import add_to_recipe, read_recipe
from studio.core import review
from studio.core.text import amounts, number
from studio.core.text import teach as words
from studio.core.text.spoken import spoken
from studio.jobs.job import Job, State
from studio.models.past import Past
from studio.models.teach_draft import TeachDraft
from studio.views import a11y, theme
from studio.views.flow import Flow
from studio.views.parts import Column, Fold, Row, button, card, clear, error_card, page, text
from studio.views.review_rows import BlindVote, ReviewRows


class ReviewPage(QWidget):
    """Shows a finished training, and the comparison that follows it (a job of its own).

    Signals: `kept(adapter Path, base Path, strength float)`, `more_wanted(Job)`, `discarded(adapter Path)`, `said`, `failed`.
    """

    kept = Signal(object, object, float)
    more_wanted = Signal(object)
    discarded = Signal(object)
    said = Signal(str)
    failed = Signal(object)

    def __init__(self, draft: TeachDraft, queue_bridge):
        super().__init__()
        self._draft, self._queue, self._job = draft, queue_bridge, None
        self._comparison: Job | None = None
        self._sure, self._past, self._past_rows, self._seq = False, Past(self), Past(self), 0
        self._build()
        draft.changed.connect(lambda part: part == "job" and self.refresh())
        queue_bridge.changed.connect(self._job_changed)
        queue_bridge.event.connect(self._heard)

    def _build(self) -> None:
        self._head, self.answer = text("", "title"), text("", "heading")
        self._facts = text("", "muted small")
        self._scores = QGridLayout()
        self._scores.setHorizontalSpacing(theme.L)
        self._scores.setColumnStretch(1, 1)
        self._found = text("", selectable=True)
        self.compare = button(words.REVIEW_COMPARE(), self.start_comparison, help=words.REVIEW_COMPARE_HELP(), icon="compare")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        a11y.name(self.bar, words.REVIEW_COMPARING())
        self._stage = text("", "muted small")
        self._running = QWidget()
        Column(text(words.REVIEW_COMPARING(), "muted"), self.bar, self._stage, parent=self._running)
        self._fault = QVBoxLayout()
        self._score_card = card(text(words.REVIEW_ERROR(), "strong"), self._scores, self._found, Row(self.compare, None), self._running, self._fault)
        self.rows = ReviewRows()
        self.row_fold = Fold(words.REVIEW_ROWS(), self.rows)
        self._row_card = card(self.row_fold, margin=theme.M)
        self.vote = BlindVote()
        self.vote.voted.connect(self._voted)
        self._vote_card = card(text(words.VOTE_HEAD(), "strong"), self.vote, spacing=theme.M)
        self._answers = QGridLayout()
        self._answers.setHorizontalSpacing(theme.L)
        self._answers.setVerticalSpacing(theme.M)
        self._answers.setColumnStretch(0, 1)
        self._answers.setColumnStretch(1, 1)
        self._answer_card = card(text(words.REVIEW_ANSWERS(), "strong"), self._answers)
        self.keep = button(words.REVIEW_KEEP(), self._keep, "primary big", help=words.REVIEW_KEEP_HELP(), icon="check")
        self.more = button(words.REVIEW_MORE(), lambda: self.more_wanted.emit(self._job), help=words.REVIEW_MORE_HELP())
        self.lower = button(words.REVIEW_LOWER(), self._keep_lower)
        self.discard = button(words.REVIEW_DISCARD(), self._discard, "danger", help=words.REVIEW_DISCARD_HELP())
        self._trouble = text("", "bad")
        self._none = card(text(words.NEEDS_RESULT()), looks="sunken")
        self._all = QWidget()
        theme.look(self._all, "page")
        Column(Column(self._head, self.answer, spacing=theme.XS), Flow(self.keep, self.lower, self.more, self.discard, spacing=theme.M),
               self._trouble,
               self._score_card, self._vote_card, self._row_card, self._answer_card, self._facts, spacing=theme.L, parent=self._all)
        Column(page(self._none, self._all, None), parent=self)
        self._show(None)

    def refresh(self) -> None:
        """Show what the training that is looked at has brought."""
        id = self._draft.job_id
        try:
            job = self._queue.queue.job(id) if id is not None else None
        except StudioError:
            job = None                     # it was removed a moment ago: there is nothing to review
        self._show(job if job is not None and job.state is State.FINISHED else None)

    def _job_changed(self, job: Job) -> None:
        if job.id == self._draft.job_id:
            self.refresh()
        elif self._job is not None and isinstance(job.spec, ReviewSpec) and job.spec.adapter == self._adapter:
            self._show_comparison(job)

    def _show(self, job: Job | None) -> None:
        self._job = job
        self._none.setVisible(job is None)
        self._all.setVisible(job is not None)
        if job is None:
            return
        self._be_sure(False)
        result = job.result or {}
        self._head.setText(words.REVIEW_HEAD(name=job.title))
        self._show_scores(result)
        samples: list[events.Sample] = []
        self._past.read(job.folder, lambda event: isinstance(event, events.Sample) and samples.append(event),
                        lambda: self._show_answers(samples, result.get("best_step")))
        self._facts.setText(words.REVIEW_FACTS(best=result.get("best_step", "–"), steps=result.get("steps", "–"),
                                               rows=words.EXAMPLES(result.get("rows", 0)),
                                               held=result.get("held_out", 0), time=amounts.duration(result.get("seconds") or 0)))
        self._show_comparison(self._latest_comparison())
        there = Path(self._adapter).is_dir() and bool(self._adapter)
        self.keep.setEnabled(there)
        self.discard.setEnabled(there)
        self._trouble.setText("" if there else words.REVIEW_GONE())
        self._trouble.setVisible(not there)

    def _show_scores(self, result: dict) -> None:
        clear(self._scores)
        before, after = result.get("error_before"), result.get("error_after")
        measured = before is not None and after is not None
        self._score_card.setVisible(measured)
        if not measured:
            self.answer.setText(words.REVIEW_NO_UNSEEN())
            theme.look(self.answer, "heading")
            return
        rows = words.EXAMPLES(result.get("held_out", 0))
        better = after < before
        self.answer.setText(words.REVIEW_BETTER(share=amounts.percent((before - after) / before), rows=rows) if better
                            else words.REVIEW_WORSE(rows=rows))
        theme.look(self.answer, "heading good" if better else "heading warn")
        for row, (label, value) in enumerate(((words.REVIEW_BEFORE(), before), (words.REVIEW_AFTER(), after))):
            bar = QProgressBar()
            bar.setTextVisible(False)
            bar.setRange(0, 1000)
            bar.setValue(round(1000 * value / max(before, after, 1e-9)))
            a11y.name(bar, f"{label}: {number(value, 2)}")
            self._scores.addWidget(text(label, wrap=False), row, 0)
            self._scores.addWidget(bar, row, 1)
            self._scores.addWidget(text(number(value, 2), "strong", wrap=False), row, 2)

    def _show_answers(self, samples: list[events.Sample], best: int | None) -> None:
        """The answers of step 0 beside those nearest to the kept state."""
        clear(self._answers)
        first = {s.prompt: s.answer for s in samples if s.step == 0}
        steps = sorted({s.step for s in samples if s.step})
        near = min(steps, key=lambda step: abs(step - (best or step)), default=None)
        last = {s.prompt: s.answer for s in samples if s.step == near}
        if not first or not last:
            self._answers.addWidget(text(words.REVIEW_NO_ANSWERS(), "muted"), 0, 0, 1, 2)
            return
        self._answers.addWidget(text(words.REVIEW_BEFORE(), "muted small"), 0, 0)
        self._answers.addWidget(text(words.REVIEW_AFTER(), "muted small"), 0, 1)
        row = 1
        for question in last:
            self._answers.addWidget(text(question, "strong"), row, 0, 1, 2)
            for column, answer in enumerate((first.get(question, ""), last[question])):
                bubble = card(text(answer.strip() or "…", selectable=True), looks="sunken" if not column else "bubble-assistant",
                              margin=theme.M)
                self._answers.addWidget(bubble, row + 1, column, Qt.AlignmentFlag.AlignTop)
            row += 2

    # --- the comparison ---

    @property
    def _adapter(self) -> str:
        return (self._job.result or {}).get("adapter", "") if self._job else ""

    def _latest_comparison(self) -> Job | None:
        return next((job for job in sorted(self._queue.queue.jobs(), key=lambda j: -j.id)
                     if isinstance(job.spec, ReviewSpec) and job.spec.adapter == self._adapter), None)

    def start_comparison(self) -> None:
        """Put the comparison of this training's adapter into the queue."""
        try:
            self._queue.queue.submit(ReviewSpec(adapter=self._adapter), self._job.title)
        except StudioError as error:
            self.failed.emit(error)

    def _show_comparison(self, job: Job | None) -> None:
        """What is known of the comparison: nothing yet, how far it is, what it found, or why it failed."""
        again = job is not None and self._comparison is not None and job.id == self._comparison.id
        state = job.state if job else None
        self._running.setVisible(job is not None and job.active)
        self.compare.setVisible(state is not State.FINISHED and not (job is not None and job.active))
        clear(self._fault)
        if state is State.FAILED and job.error:
            self._fault.addWidget(error_card(StudioError.from_dict(job.error)))
        result = (job.result or {}) if state is State.FINISHED else {}
        self._found.setText("\n".join(review.sentences(result)))
        self._found.setVisible(bool(result))
        self._lower = review.better_strength(result) or 0.75
        self.lower.setToolTip(words.REVIEW_LOWER_HELP(strength=amounts.percent(self._lower)))
        a11y.name(self.lower, words.REVIEW_LOWER(), self.lower.toolTip())
        self.lower.setEnabled(bool(self._adapter) and Path(self._adapter).is_dir())
        if not again or state is State.FINISHED:
            self._comparison = job
            self.rows.clear()
            self._seq = 0
            self._past_rows.read(job.folder if job else None, self._take, self._all_there)

    _lower = 0.75

    def _heard(self, id: int, event: events.Event) -> None:
        if self._comparison is None or id != self._comparison.id or self._past_rows.reading or event.seq and event.seq <= self._seq:
            return
        self._take(event)
        self._all_there()

    def _take(self, event: events.Event) -> None:
        self._seq = max(self._seq, event.seq)
        if isinstance(event, events.Reviewed):
            self.rows.add(event)
        elif isinstance(event, events.Progress):
            self.bar.setRange(0, int(event.total))
            self.bar.setValue(int(event.done))
            self._stage.setText(spoken(event.stage))

    def _all_there(self) -> None:
        self._row_card.setVisible(bool(self.rows.rows))
        over = self._comparison is not None and self._comparison.state is State.FINISHED
        if over:
            self.vote.begin(self.rows.rows, self._earlier_votes())
        self._vote_card.setVisible(over and bool(self.vote.ballot.pairs))
        self.row_fold.open(over and self.vote.ballot.now is None)      # before the vote it would say which answer is whose

    def _earlier_votes(self) -> list[str]:
        try:
            votes = read_recipe(self._adapter).get("votes", [])
        except StudioError:
            return []                      # the adapter was deleted meanwhile
        return votes if isinstance(votes, list) else []

    def _voted(self, votes: list[str]) -> None:
        self.row_fold.open()
        try:
            add_to_recipe(self._adapter, votes=votes)
        except (StudioError, OSError) as error:
            self.failed.emit(explain(error))

    # --- what a person decides ---

    def _keep(self, strength: float = 1.0) -> None:
        self.said.emit(words.REVIEW_KEPT(name=self._job.title))
        self.kept.emit(Path(self._adapter), Path(self._job.spec.base), strength)

    def _keep_lower(self) -> None:
        self._keep(self._lower)

    def _be_sure(self, yes: bool) -> None:
        self._sure = yes
        self.discard.setText(words.REVIEW_DISCARD_SURE() if yes else words.REVIEW_DISCARD())
        a11y.name(self.discard, self.discard.text(), words.REVIEW_DISCARD_HELP())

    def _discard(self) -> None:
        """The first press asks, the second one does it."""
        if not self._sure:
            self._be_sure(True)
            return
        path = Path(self._job.result["adapter"])
        try:
            shutil.rmtree(path)
        except OSError as error:
            self.failed.emit(explain(error))
            return
        self.said.emit(words.REVIEW_DISCARDED(name=self._job.title))
        self.discarded.emit(path)
        self.refresh()
