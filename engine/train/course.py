"""The course of a run: what its plan says, and what was decided on the way.

Time may be added, the speed be halved, the portions be made smaller, the end come early. Each such *turn* is written into the run folder
before anything is computed with it, at the step where it was heard. So the order, speed and end of a run are a function of its plan and
its turns alone: a run that was killed takes them again where they fell, and *rebuild* takes them from the recipe.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from engine.errors import DamagedCheckpoint
from engine.store.atomic import write_json
from engine.store.runs import RunFolder
from engine.train.batching import Schedule
from engine.train.optim import speed_at

FILE = "course.json"


class Turn(NamedTuple):
    """Decided at ``step`` (finished steps): ``extend`` by so many passes, ``slow`` down to this factor, computed tokens of a ``portion`` when
    learning or of a ``test portion``, ``end`` here (``value`` 1)."""

    step: int
    what: str
    value: float


class Course:
    """What a run does at a step, by the plan's ``schedule`` and the turns up to there. Raises `DamagedCheckpoint` if they cannot be read."""

    def __init__(self, folder: Path, schedule: Schedule, warmup: float):
        self._path, self._schedule, self._warmup = folder / FILE, schedule, warmup
        self.turns: list[Turn] = []
        try:
            if self._path.exists():
                self.turns = [Turn(int(step), str(what), value) for step, what, value in json.loads(self._path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError) as problem:
            raise DamagedCheckpoint("This training's folder is damaged.", "What was decided on the way cannot be read.",
                                    "Start the training anew.", details=str(problem), path=str(self._path)) from problem

    # --- turns ---

    def take(self, step: int, what: str, value: float) -> list[Turn]:
        """Write a turn down, then follow it. Returns all of them. Raises `OSError`."""
        turns = sorted([*self.turns, Turn(step, what, value)], key=lambda turn: turn.step)
        write_json(self._path, turns)
        self.turns = turns
        return turns

    def hear(self, step: int, run: RunFolder) -> list[Turn]:
        """Take what was wished for since the last time. Returns all turns."""
        more = run.extended - sum(turn.value for turn in self.turns if turn.what == "extend")
        if more > 1e-6:
            self.take(step, "extend", round(more, 6))
        slower = run.slowed + sum(round(math.log2(turn.value)) for turn in self.turns if turn.what == "slow")
        if slower > 0:
            self.take(step, "slow", 0.5 ** slower)
        if step > 0 and run.asked("finish") and not self.ended(step):
            self.take(step, "end", 1)
        return self.turns

    def at(self, step: int) -> list[Turn]:
        """The turns that fall on this step."""
        return [turn for turn in self.turns if turn.step == step]

    def until(self, step: int, what: str = "") -> list[Turn]:
        """The turns (of one kind) up to this step, oldest first."""
        return [turn for turn in self.turns if turn.step <= step and what in ("", turn.what)]

    # --- what follows from them ---

    def steps(self, step: int) -> int:
        """How long the run is, as far as is known at ``step``."""
        return len(self._schedule) + sum(self._schedule.steps_in(turn.value) for turn in self.until(step, "extend"))

    def ended(self, step: int) -> bool:
        """Whether it was to end by now."""
        return bool(self.until(step, "end"))

    def portion(self, step: int, what: str, usual: int) -> int:
        """Computed tokens of a micro-batch (``what``: portion or test portion)."""
        return min([usual, *(int(turn.value) for turn in self.until(step, what))])

    def extended_at(self, step: int) -> int:
        """The step at which time was last added, 0 if it never was."""
        return max((turn.step for turn in self.until(step, "extend")), default=0)

    def speed(self, step: int) -> float:
        """Factor on the learning speed at ``step`` (from 0): `speed_at` of the plan.

        Where time was added, the speed goes over to that of a run which had been planned so long from the start, rising as gently as such a
        run begins: warmed up and brought down again, as Ibrahim et al. (2024, arXiv 2403.08763) found best for going on with a training.
        """
        length = len(self._schedule)
        factor = speed_at(step, length, self._warmup)
        for turn in self.until(step, "extend"):
            length += self._schedule.steps_in(turn.value)
            share = min(1.0, (step - turn.step + 1) / max(1, round(length * self._warmup)))
            factor += share * (speed_at(step, length, self._warmup) - factor)
        return factor * math.prod(turn.value for turn in self.until(step, "slow"))
