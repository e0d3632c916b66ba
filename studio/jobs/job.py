"""A job as the queue keeps it, and the only ways in which its state may change."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from engine.errors import Diverged
from engine.specs import Spec


class State(Enum):
    """Where a job stands; the values are what the database and the tests say."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"                      # the person asked for it; goes on where it stopped
    INTERRUPTED = "interrupted"            # the program, the process or the power went away; goes on from its last checkpoint
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.RUNNING, State.PAUSED, State.CANCELLED}),
    State.RUNNING: frozenset({State.PAUSED, State.INTERRUPTED, State.FINISHED, State.FAILED, State.CANCELLED}),
    State.PAUSED: frozenset({State.WAITING, State.CANCELLED}),
    State.INTERRUPTED: frozenset({State.WAITING, State.CANCELLED}),
    State.FAILED: frozenset({State.WAITING}),
    State.CANCELLED: frozenset({State.WAITING}),
    State.FINISHED: frozenset(),
}


@dataclass(frozen=True)
class Job:
    """One row of the queue. Times are seconds since the epoch.

    ``position`` is its place among all jobs (0 first) · ``attempt`` how often it was started ·
    ``error`` a `StudioError.to_dict` (also says why an interrupted job stopped) · ``result`` that of `Finished` ·
    ``step`` where it would go on, None if it would begin anew.
    """

    id: int
    title: str
    spec: Spec
    state: State
    folder: Path
    position: int
    created: float
    started: float | None = None
    ended: float | None = None
    attempt: int = 0
    error: dict | None = None
    result: dict | None = None
    step: int | None = None

    def may(self, target: State) -> bool:
        """Whether this job may change to ``target`` now."""
        return target in TRANSITIONS[self.state]

    @property
    def can_resume(self) -> bool:
        """Stopped for whatever reason, and able to go on (or, without a checkpoint, to begin anew)."""
        return self.state is not State.WAITING and self.may(State.WAITING)

    @property
    def can_finish(self) -> bool:
        """Stopped for whatever reason, with something saved that can be kept as it is."""
        return self.can_resume and bool(self.step)

    @property
    def would_repeat(self) -> bool:
        """Whether going on as it is would end as before: the error is no number from the same step on, to the bit."""
        return self.state is State.FAILED and (self.error or {}).get("code") == Diverged.code

    @property
    def active(self) -> bool:
        return self.state in (State.WAITING, State.RUNNING)
