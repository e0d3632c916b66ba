"""When the error is no number any more: where the training was still sound, and whether an example or the speed is to blame."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

from engine.data.render import Rendered
from engine.errors import Diverged
from engine.train import checkpoint as checkpoints
from engine.train.loss import Objective

TRIES = 2                                  # slower ones from one state; where the last breaks, too, it is the state that is on its way
LOUD = 2.0                                 # times the usual error of the steps before: a step beyond it was on its way to no number


def sound(errors: list[float], step: int) -> bool:
    """Whether the state after ``step`` steps was good, as far as ``errors`` of all steps tell: its next step went as steps did before."""
    return step < len(errors) and math.isfinite(errors[step]) and errors[step] <= LOUD * statistics.median_low(errors[:step + 1])


def go_back(folder: Path, errors: list[float], slowed: Sequence[int]) -> Path | None:
    """Throw away the checkpoints that had it in them already. Returns the newest good one, None if there is none.

    ``slowed``: the steps from which it was tried again at half the speed, once for each time.
    """
    for path in checkpoints.found(folder):
        step = checkpoints.step_of(path)
        if sound(errors, step) and slowed.count(step) < TRIES:
            return path
        shutil.rmtree(path)
    return None


def numberless(model, objective: Objective, rows: list[Rendered]) -> list[int]:
    """Places of the rows for which the untaught model itself computes no number."""
    model.eval()
    with model.disable_adapter():
        return [place for place, row in enumerate(rows) if not math.isfinite(objective.error(objective.collate([row])))]


def told(step: int, rate: float, good: int, lines: list[int]) -> Diverged:
    """What is said: ``good`` is the step of the newest good checkpoint (0: none), ``lines`` of the examples that are to blame, if any.

    Facts for a button that mends it: step, learning_rate, good, lines.
    """
    facts = {"step": step, "learning_rate": rate, "good": good, "lines": lines}
    what = f"The training ran away at step {step}: the error was no number any more."
    if lines:
        named = f"the example in line {lines[0]}" if len(lines) == 1 else f"the examples in lines {', '.join(map(str, lines))}"
        return Diverged(what, f"The model itself, untaught, computes no number for {named}.",
                        "Leave this out under Data and start again; a lower speed would not help.", **facts)
    kept = f"The state of step {good} is good and kept" if good else "No good state had been saved yet"
    return Diverged(what, f"The learning speed of {rate:.2g} was too high here. {kept}.",
                    f"Go on {f'from step {good}' if good else 'from the beginning'} with half the learning speed.", **facts)
