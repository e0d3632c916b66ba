"""How fast may it learn? A trial on the real examples that gets faster with every step, until the error explodes. A job.

The learning-rate range test of Smith (2015, arXiv 1506.01186). The value that is proposed is a tenth of the speed at which the error was
lowest, as in the fastai library's ``lr_find`` (Howard and Gugger 2020, arXiv 2002.04688). What is compared is the error's *share* of what
the untaught model makes of the very same examples: some are harder than others, and that would hide everything else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from engine.data.render import Rendered
from engine.errors import explain
from engine.events import Event, Finished, Note, Progress, Stopped, Tried
from engine.specs import FindSpeedSpec
from engine.store.runs import RunFolder
from engine.train.batching import MOST, Schedule, portion
from engine.train.loss import Objective
from engine.train.optim import Optimizer
from engine.train.precision import exact_computing
from engine.train.prepare import Material, best_device, load_student, read_material, schedule_of, settled_precision

FIRST, LAST, STEPS = 1e-6, 1.0, 73         # speeds: twelve to a power of ten
EXPLODED = 1.5                             # times the untaught model's error: no faster speed is worth a try
AROUND = 2                                 # neighbours on either side over which shares are evened out
WORTH = 0.99                               # share above which nothing has been learned


def find_speed(spec: FindSpeedSpec, run: RunFolder) -> Iterator[Event]:
    """Try speeds from the plan's own start, with its own rows in its own order; nothing of it is kept.

    ``Finished.result``: learning_rate (proposed, None if no speed made the error smaller), lowest and steepest (speeds where the error was
    lowest and fell fastest), curve ([[speed, share], …]), seconds. Raises as `engine.train.loop.train` before anything is computed, and
    `OutOfMemory`.
    """
    plan, begun = spec.check().plan, time.monotonic()
    yield Progress("Reading the examples")
    material = read_material(plan)
    yield Progress("Loading the model")
    precision = settled_precision(plan, run)
    yield Note(precision.sentence)
    with exact_computing(precision, best_device()):
        schedule = schedule_of(plan, material)
        try:
            trial = _Trial(load_student(plan, precision, len(schedule)), material, schedule, plan)
            curve: list[list[float]] = []
            while len(curve) < STEPS:
                if request := next((r for r in ("cancel", "pause") if run.asked(r)), None):
                    yield Stopped(request)
                    return
                rate, share = trial.step(len(curve))
                if not math.isfinite(share):
                    break                  # this fast, it is no number any more
                curve.append([rate, share])
                yield Tried(len(curve), STEPS, rate, share)
                yield Progress("Trying speeds", len(curve), STEPS, "steps", (time.monotonic() - begun) / len(curve) * (STEPS - len(curve)))
                if evened([share for _, share in curve])[-1] > EXPLODED:
                    break
        except (MemoryError, RuntimeError) as problem:
            raise explain(problem) from problem
    yield Finished({**proposal(curve), "curve": curve, "seconds": round(time.monotonic() - begun, 1)})


class _Trial:
    """The student, and steps with it."""

    def __init__(self, model, material: Material, schedule: Schedule, plan):
        self.model, self.material, self.schedule = model, material, schedule
        self.objective = Objective(model, plan.checkpointing == "on")
        self.optimizer = Optimizer({n: p for n, p in model.named_parameters() if p.requires_grad}, 1.0, plan.weight_decay, plan.optimizer)
        self.budget = portion(schedule.lengths)

    def step(self, number: int) -> tuple[float, float]:
        """One correction: (its speed, the error's share after it, on the rows of the next step). NaN if there was no number."""
        rate = FIRST * (LAST / FIRST) ** (number / (STEPS - 1))
        rows = self._rows(number)
        learned = sum(row.learned for row in rows)
        self.model.train()
        error = sum(self.objective.backward(batch, learned) for batch in self.objective.batches(rows, self.budget))
        if (more := self.model.extra_loss()) is not None:
            more.backward()
        if not math.isfinite(error) or not math.isfinite(self.optimizer.step(rate, lambda: self.model.on_step(number + 1))):
            return rate, math.nan
        return rate, self._share(self._rows(number + 1))

    def _rows(self, number: int) -> list[Rendered]:
        """The rows of the run's step, as many as make a short trial."""
        rows = [self.material.learn[i] for i in self.schedule.rows_of(number)]
        total = 0
        for count, row in enumerate(rows):
            if (total := total + len(row.ids)) > MOST and count:
                return rows[:count]
        return rows

    def _share(self, rows: list[Rendered]) -> float:
        self.model.eval()
        after = sum(self.objective.error(batch) for batch in self.objective.batches(rows, self.budget))
        with self.model.disable_adapter():
            before = sum(self.objective.error(batch) for batch in self.objective.batches(rows, self.budget))
        return after / before if before else math.nan


def evened(shares: list[float]) -> list[float]:
    """Shares (positive) without their noise: geometric means over `AROUND` neighbours on either side, as far as there are any."""
    logs = [math.log(max(share, 1e-9)) for share in shares]
    windows = [logs[max(0, k - AROUND):k + AROUND + 1] for k in range(len(logs))]
    return [math.exp(sum(window) / len(window)) for window in windows]


def proposal(curve: list[list[float]]) -> dict:
    """learning_rate, lowest and steepest of a curve [[speed, share], …] whose speeds grow; None where nothing was learned."""
    even = evened([share for _, share in curve])
    lowest = min(range(len(even)), key=even.__getitem__, default=0)
    if not even or even[lowest] > WORTH:
        return {"learning_rate": None, "lowest": None, "steepest": None}
    steepest = min(range(1, lowest + 1), key=lambda k: even[k] - even[k - 1], default=lowest)
    return {"learning_rate": float(f"{curve[lowest][0] / 10:.2g}"), "lowest": curve[lowest][0], "steepest": curve[steepest][0]}
