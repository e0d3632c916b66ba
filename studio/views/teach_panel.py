"""The Teach panel: Data → Model → Plan → Train → Review, in any order; what is missing carries a mark and a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QPushButton, QSizePolicy, QStackedWidget, QWidget

from engine.errors import StudioError, explain
from engine.specs import FetchSpec
from engine.store.resources import resource
from studio.core import plan
from studio.core.actions import Action
from studio.core.text import teach as words
from studio.jobs.job import Job
from studio.models.teach_draft import TeachDraft
from studio.views import a11y, theme
from studio.views.parts import Column, OneOf, Panel, Row, text
from studio.views.teach_data import DataPage
from studio.views.teach_model import ModelPage
from studio.views.teach_plan import PlanPage
from studio.views.teach_review import ReviewPage
from studio.views.teach_train import TrainPage

STEPS = ("data", "model", "plan", "train", "review")


class TeachPanel(Panel):
    """Signals: `said(str)`, `failed(StudioError)`, `kept(adapter Path, base Path)`, `library_changed()`, `go(str)` to another panel."""

    kept = Signal(object, object, float)
    library_changed = Signal()
    go = Signal(str)

    def __init__(self, home, catalogue, queue_bridge, talk_bridge, settings, *, in_steps: bool = False):
        super().__init__(words.TITLE())
        self._catalogue, self._queue, self._talk, self._settings = catalogue, queue_bridge, talk_bridge, settings
        self.draft = TeachDraft(home, settings)
        self._whole = False
        self._pages = QStackedWidget()
        self.steps: dict[str, QPushButton] = {}
        self._said: dict[str, str] = {}    # mark and number of each
        self._group = OneOf(self)
        bar = Row(spacing=0)
        for number, key in enumerate(STEPS):
            step = QPushButton()
            theme.look(step, "step")
            step.setCheckable(True)
            step.setMinimumWidth(1)        # it says less where it has no room: `_name_steps`
            step.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
            step.clicked.connect(lambda _=False, k=key: self.show_step(k))
            self._group.addButton(step, number)
            self.steps[key] = step
            bar.addWidget(step)
        self._hint = text("", "muted small")
        self.next = QPushButton()
        self.next.clicked.connect(lambda _=False: self.show_step(STEPS[min(self._group.checkedId() + 1, 4)]))
        foot = Row(self._hint, self.next, spacing=theme.L, margin=theme.M)
        foot.setStretch(0, 1)
        self._foot = QWidget()
        self._foot.setLayout(foot)
        Column(bar, self._pages, self._foot, spacing=0, parent=self).setStretch(1, 1)
        if not in_steps:
            for _ in self.build():
                pass

    def build(self) -> Iterator[None]:
        """The pages, in short steps; with ``in_steps`` nothing else may be asked of the panel before the last of them."""
        self._samples, damaged = _samples()
        self.data = self._add(DataPage(self.draft, self._talk, self._settings, self._samples))
        yield from self.data.build()
        self.model = self._add(ModelPage(self.draft, self._catalogue))
        yield
        self.plan = self._add(PlanPage(self.draft, self._talk, self._queue))
        yield from self.plan.build()
        self.train = TrainPage(self.draft, self._queue)
        yield
        self._add(self.train)
        yield
        self.review = self._add(ReviewPage(self.draft, self._queue))
        yield
        self._whole = True
        self._connect()
        self.show_step("data")
        self.review.refresh()
        a11y.quiet_wheels_inside(self)
        if damaged is not None:
            self.failed.emit(damaged)
        if self.isVisible():
            self.data.look_once()

    def _add(self, page: QWidget) -> QWidget:
        self._pages.addWidget(page)
        return page

    def _connect(self) -> None:
        for part in (self.data, self.model, self.plan, self.train, self.review):
            part.said.connect(self.said)
            if hasattr(part, "failed"):
                part.failed.connect(self.failed)
        self.draft.changed.connect(lambda _: self._mark())
        self._catalogue.subscribe(self._mark)
        self.model.fetch_wanted.connect(lambda: self.go.emit("start"))
        self.model.wanted.connect(self._bring_model)
        self.plan.started.connect(self._started)
        self.train.ended.connect(self._ended)
        self.train.go.connect(self.show_step)
        self.review.kept.connect(self.kept)
        self.review.more_wanted.connect(self._more)
        self.review.discarded.connect(lambda _: self.library_changed.emit())

    def showEvent(self, event) -> None:    # noqa: N802 (Qt's name)
        super().showEvent(event)
        if self._whole:
            self.data.look_once()          # not before: it wakes the worker, which is no part of opening a window

    # --- for the frame ---

    def actions(self) -> list[Action]:
        """One action a step, with shortcuts Alt+1 … Alt+5 where the panel stands."""
        return [Action(f"teach.{key}", f"{words.TITLE()}: {words.STEPS[key]()}", lambda k=key: (self.go.emit("teach"), self.show_step(k)),
                       help=words.STEP_HELP(number=n + 1, name=words.STEPS[key](), state=""), category=words.TITLE())
                for n, key in enumerate(STEPS)]

    def show_step(self, key: str) -> None:
        """Bring one of data, model, plan, train, review to the front."""
        if self._whole:
            self.steps[key].setChecked(True)
            self._pages.setCurrentWidget(getattr(self, key))
            self._mark()

    def show_job(self, id: int) -> None:
        """Look at this training."""
        self.draft.look_at(id)
        self.show_step("train")

    def start_sample(self) -> None:
        """Put the sample project into the draft: everything is chosen, one press of Start teaches it."""
        shop = next((s for s in self._samples if s.key == "shop"), None)
        if shop is None:
            return
        base = self.draft.draft.base or next((str(m.path) for m in self._catalogue.models if m.has_chat_template), "")
        chosen = plan.sample_draft(shop, base)
        chosen.name = _unused(chosen.name, self.draft.home.adapters)
        self.draft.replace(chosen)
        self.show_step("plan" if base else "model")

    def use_model(self, path: Path) -> None:
        """Teach this model (asked for in the library)."""
        self.draft.put(base=str(path))
        self.show_step("data" if not self.draft.draft.data else "plan")

    def use_file(self, path: Path) -> None:
        """Teach from this file (dropped on the window)."""
        self.data.use(path)
        self.show_step("data")

    def closing(self) -> None:
        """The window goes away: keep what was typed."""
        if self._whole:
            self.data.keep_paste()
        self.draft.save()

    # --- inside ---

    def _mark(self) -> None:
        """Marks and words of the steps, and of the line below the page."""
        missing = self.draft.missing()
        if self.draft.job_id is None:
            missing |= {"train": words.NEEDS_START(), "review": words.NEEDS_RESULT()}
        elif self.train.job is None or not self.train.job.result:
            missing["review"] = words.NEEDS_RESULT()
        for number, key in enumerate(STEPS):
            done, name = key not in missing, words.STEPS[key]()
            mark = "✓" if done else "○"
            self._said[key] = f"{mark}  {number + 1}"
            self.steps[key].setToolTip(f"{name}: {missing[key]}" if key in missing else name)
            a11y.name(self.steps[key], words.STEP_HELP(number=number + 1, name=name, state=missing.get(key, words.STEP_DONE())))
        self._name_steps()
        here = STEPS[max(0, self._group.checkedId())]
        self._hint.setText(missing.get(here, ""))
        after = self._group.checkedId() + 1
        self.next.setVisible(after < 3)
        if after < 3:
            self.next.setText(words.NEXT(step=words.STEPS[STEPS[after]]()))
            a11y.name(self.next, self.next.text())
            theme.look(self.next, "primary" if here not in missing else "")
        self._foot.setVisible(after < 3)

    def resizeEvent(self, event) -> None:  # noqa: N802 (Qt's name)
        super().resizeEvent(event)
        self._name_steps()

    def _name_steps(self) -> None:
        """All steps with their names; where these do not fit, only the one that is open."""
        for short in (False, True):
            for key, step in self.steps.items():
                step.setText(self._said.get(key, "") + ("" if short and not step.isChecked() else f"  {words.STEPS[key]()}"))
            if sum(step.sizeHint().width() for step in self.steps.values()) <= self.width():
                return

    def _bring_model(self, spec: FetchSpec, title: str) -> None:
        try:
            self._queue.queue.submit(spec, title)
        except StudioError as error:
            self.failed.emit(error)

    def _started(self, job: Job) -> None:
        self.draft.look_at(job.id)
        self.show_step("train")

    def _ended(self, job: Job) -> None:
        self.library_changed.emit()
        self._mark()
        self.review.refresh()
        if (job.result or {}).get("held_out"):
            self.review.start_comparison()
        if self.train.isVisible():
            self.show_step("review")

    def _more(self, job: Job) -> None:
        """The same plan with twice the passes, under a new name."""
        spec, draft = job.spec, self.draft.draft
        self.draft.put(data=spec.data, base=spec.base, prompts=list(spec.prompts), name=_unused(job.title, self.draft.home.adapters),
                       overrides={**draft.overrides, "passes": 2 * spec.passes})
        self.show_step("plan")


def _samples() -> tuple[list[plan.SampleData], StudioError | None]:
    try:
        return plan.samples(resource("samples")), None
    except (StudioError, FileNotFoundError) as error:
        return [], explain(error)


def _unused(name: str, folder: Path) -> str:
    """The name, or the name with the first free number."""
    from engine.store.home import safe_name

    number, found = 2, name
    while (folder / safe_name(found)).exists():
        found, number = f"{name} {number}", number + 1
    return found
