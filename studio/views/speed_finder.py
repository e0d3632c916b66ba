"""Under *Advanced* of the plan: find the learning speed by a short trial, see its curve, and take it over, which can be taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QProgressBar, QVBoxLayout, QWidget

from engine import events
from engine.errors import StudioError
from engine.specs import FindSpeedSpec, TrainSpec
from studio.core.text import amounts, number
from studio.core.text import teach as words
from studio.jobs.job import Job, State
from studio.models.teach_draft import TeachDraft
from studio.views import a11y, theme
from studio.views.parts import Column, Row, button, clear, error_card, text
from studio.views.plot import quiet_plot

FIELD = "learning_rate"
HEIGHT = 170                               # pixels of the curve
DECADES = range(-6, 1)                     # powers of ten on its axis: the speeds that are tried


class SpeedFinder(QWidget):
    """A button, then progress, then a curve and what it says. ``plan`` gives the plan as it stands. Signals: `said(str)`, `failed(StudioError)`."""

    said = Signal(str)
    failed = Signal(object)

    def __init__(self, draft: TeachDraft, queue_bridge, plan: Callable[[], TrainSpec]):
        super().__init__()
        self._draft, self._queue, self._plan = draft, queue_bridge, plan
        self.job: Job | None = None
        self._found: float | None = None
        self._before: float | None = None      # what stood in the field before, None if nothing did
        self.find = button(words.FIND(), self.start, help=words.FIND_HELP(), icon="time")
        self.stop = button(words.FIND_STOP(), self._stop, "quiet")
        self.swap = button("", self._swap, "link")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        a11y.name(self.bar, words.FIND())
        self.sentence = text("", "muted", selectable=True)
        self.curve = SpeedCurve()
        self._trouble = QVBoxLayout()
        line = Row(self.find, self.stop, self.bar, self.swap, None)
        line.setStretch(2, 100)            # all the room while it is there
        Column(line, self.sentence, self.curve, self._trouble, parent=self)
        queue_bridge.changed.connect(self._changed)
        queue_bridge.event.connect(self._heard)
        queue_bridge.removed.connect(lambda id: self._follow(None) if self.job is not None and id == self.job.id else None)
        draft.changed.connect(lambda part: part == "overrides" and self._show_swap())
        self._follow(None)

    def wanted(self) -> TrainSpec:
        """The plan whose speed would be looked for: its name, questions and own speed do not matter."""
        return replace(self._plan(), prompts=[], learning_rate=0.0)

    def allow(self, possible: bool) -> None:
        """Whether there is a plan whose speed can be looked for."""
        self._possible = possible
        self.find.setEnabled(possible and not (self.job is not None and self.job.active))

    _possible = False

    def start(self) -> None:
        """Put the search into the queue."""
        clear(self._trouble)
        try:
            self._follow(self._queue.queue.submit(FindSpeedSpec(self.wanted()), words.FIND_TITLE()))
        except StudioError as error:
            self._trouble.addWidget(error_card(error))

    def _stop(self) -> None:
        try:
            self._queue.queue.cancel(self.job.id)
        except StudioError as error:
            self.failed.emit(error)

    # --- the job ---

    def _follow(self, job: Job | None) -> None:
        self.job, self._found = job, None
        self.curve.clear()
        self._show()

    def _changed(self, job: Job) -> None:
        if self.job is None or job.id != self.job.id:
            return
        before, self.job = self.job.state, job
        if job.state is State.FINISHED and before is not State.FINISHED:
            self._end(job.result or {})
        self._show()

    def _heard(self, id: int, event: events.Event) -> None:
        if self.job is None or id != self.job.id or not isinstance(event, events.Tried):
            return
        self.bar.setRange(0, event.steps)
        self.bar.setValue(event.step)
        self.curve.add(event.learning_rate, event.share)

    def _end(self, result: dict) -> None:
        self._found = result.get("learning_rate")
        self.curve.settle(result.get("curve", []), result.get("lowest"), self._found)
        if self._found is None:
            return
        if self.job.spec.plan == self.wanted():
            self._put(self._found)
            self.said.emit(words.FIND_DONE(speed=number(self._found)))
            a11y.announce(self, words.FIND_DONE(speed=number(self._found)))

    # --- taking it over, and back ---

    def _put(self, speed: float | None) -> None:
        self._before = self._draft.draft.overrides.get(FIELD) if speed is not None else self._before
        others = {name: value for name, value in self._draft.draft.overrides.items() if name != FIELD}
        self._draft.put(overrides=others if speed is None else {**others, FIELD: speed})

    def _swap(self) -> None:
        if self._in_use():
            before, self._before = self._before, None
            self._put(None)
            if before is not None:
                self._draft.put(overrides={**self._draft.draft.overrides, FIELD: before})
        else:
            self._put(self._found)

    def _in_use(self) -> bool:
        return self._draft.draft.overrides.get(FIELD) == self._found

    def _show_swap(self) -> None:
        self.swap.setVisible(self._found is not None)
        self.swap.setText(words.FIND_BACK() if self._in_use() else words.FIND_USE())
        a11y.name(self.swap, self.swap.text())

    # --- what is seen ---

    def _show(self) -> None:
        job = self.job
        active = job is not None and job.active
        self.allow(self._possible)
        self.stop.setVisible(active)
        self.bar.setVisible(active)
        if job is not None and job.state is State.WAITING:
            self.bar.setRange(0, 1)
        said = ""
        if job is not None:
            match job.state:
                case State.WAITING:
                    said = words.TRAIN_WAITING()
                case State.RUNNING:
                    said = words.FIND_RUNNING()
                case State.FINISHED if self._found is not None:
                    said = words.FIND_FOUND(speed=number(self._found), lowest=number(float(f"{job.result['lowest']:.2g}")))
                case State.FINISHED:
                    said = words.FIND_NOTHING()
                case State.CANCELLED | State.PAUSED | State.INTERRUPTED:
                    said = words.FIND_STOPPED()
                case State.FAILED if job.error:
                    clear(self._trouble)
                    self._trouble.addWidget(error_card(StudioError.from_dict(job.error)))
        self.sentence.setText(said)
        self.sentence.setVisible(bool(said))
        self.curve.setVisible(self.curve.points > 0 or job is not None and job.state is State.RUNNING)
        self._show_swap()


class SpeedCurve(QWidget):
    """The error's share over the learning speed, on a logarithmic axis; the proposed speed is a line, the lowest error a ring."""

    def __init__(self):
        super().__init__()
        self._rates: list[float] = []
        self._shares: list[float] = []
        self._plot, self._lowest, self._proposed = None, None, None
        Column(parent=self)
        self.setFixedHeight(HEIGHT)
        theme.changed.connect(self._draw)

    @property
    def points(self) -> int:
        return len(self._rates)

    def clear(self) -> None:
        self._rates, self._shares, self._lowest, self._proposed = [], [], None, None
        self._draw()

    def add(self, rate: float, share: float) -> None:
        """One more speed, faster than those before."""
        self._rates.append(rate)
        self._shares.append(share)
        self._draw()

    def settle(self, points: list[list[float]], lowest: float | None, proposed: float | None) -> None:
        """Show the whole curve [[speed, share], …]; mark the speed of the lowest error, and the one that is proposed."""
        self._rates, self._shares = [rate for rate, _ in points], [share for _, share in points]
        self._lowest, self._proposed = lowest, proposed
        self._draw()

    def showEvent(self, event) -> None:    # noqa: N802 (Qt's name)
        super().showEvent(event)
        self._draw()

    def _draw(self, *_: object) -> None:
        if not self.isVisible():
            return
        if self._plot is None:
            self._make()
        pg, t, x = self._pg, theme.tokens(), np.log10(self._rates) if self._rates else np.array([])
        self._plot.setBackground(t.card)
        self._line.setData(x, self._shares)
        self._line.setPen(pg.mkPen(t.curve_learned, width=2))
        ring = [] if self._lowest is None else [(np.log10(self._lowest), self._shares[self._rates.index(self._lowest)])]
        self._ring.setData([at for at, _ in ring], [share for _, share in ring])
        self._ring.setPen(pg.mkPen(t.curve_learned, width=2))
        self._ring.setBrush(pg.mkBrush(t.card))
        self._chosen.setVisible(self._proposed is not None)
        self._chosen.setPen(pg.mkPen(t.text, width=1, style=Qt.PenStyle.DashLine))
        if self._proposed is not None:
            self._chosen.setPos(float(np.log10(self._proposed)))
        for side in ("left", "bottom"):
            axis = self._plot.getAxis(side)
            axis.setPen(pg.mkPen(t.border))
            axis.setTextPen(t.muted)
        self._plot.setLabel("bottom", words.FIND_AXIS(), color=t.muted)
        if len(x):
            low, high = min(self._shares), min(max(self._shares), 1.6)     # what explodes leaves the picture
            self._plot.setRange(xRange=(DECADES[0], DECADES[-1]), yRange=(low - 0.05, max(high, 1.05)), padding=0.02)
        a11y.name(self._plot, words.FIND_CURVE(), words.FIND_POINTS(n=self.points, low=amounts.percent(min(self._shares))) if len(x) else "")

    def _make(self) -> None:
        pg, self._plot = quiet_plot()
        self._pg = pg
        self._line = self._plot.plot([], [], antialias=True)
        self._ring, self._chosen = pg.ScatterPlotItem(size=12), pg.InfiniteLine(angle=90)
        for item in (self._chosen, self._ring):
            self._plot.addItem(item, ignoreBounds=True)
        self._plot.getAxis("bottom").setTicks([[(power, number(10.0 ** power, -power)) for power in DECADES]])
        for side in ("left", "bottom"):
            self._plot.getAxis(side).setStyle(tickLength=0, maxTickLevel=0)
        self._plot.showGrid(y=True, alpha=0.25)
        self.layout().addWidget(self._plot)
