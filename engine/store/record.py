"""Carry a job out and write down what happens: the one place where exceptions become events."""

from __future__ import annotations

import time
from dataclasses import replace
from collections.abc import Callable, Iterator

from engine import events
from engine.errors import Cancelled, StudioError, explain
from engine.specs import Spec
from engine.store.lock import FileLock
from engine.store.runs import EventLog, RunFolder

Job = Callable[[Spec, RunFolder], Iterator[events.Event]]
LOCK_WAIT = 15.0                           # seconds; a process that was just told to end may still hold the folder


def record(job: Job, spec: Spec, run: RunFolder, wait: float = LOCK_WAIT) -> Iterator[events.Event]:
    """Yield the job's events, numbered and stamped, after writing each into the run folder. The last one is always final.

    Whatever the job raises becomes `Failed` (or `Stopped` for `Cancelled`). Only one process works in a run folder at a
    time; raises `Busy` when another still does after ``wait`` seconds.
    """
    with FileLock(run.path / "lock", "This job is already being carried out by another process.",
                  "Wait until it has ended, or cancel it there.", wait):
        try:
            with EventLog(run) as log:
                yield from _written(job, spec, run, log)
        except OSError as error:           # the log itself cannot be written: say it, if only to whoever listens
            yield replace(events.Failed(explain(error).to_dict()), time=time.time())


def _written(job: Job, spec: Spec, run: RunFolder, log: EventLog) -> Iterator[events.Event]:
    try:
        for event in job(spec, run):
            event = log.write(event)
            yield event
            if event.final:
                return
        raise StudioError("The job ended without a result.", do="Start it again; if it returns, report it.")
    except Cancelled:
        step = last_step(run)
        yield log.write(events.Stopped("cancel", resumable=step is not None, step=step))
    except Exception as error:
        yield log.write(events.Failed(explain(error).to_dict()))


def last_step(run: RunFolder) -> int | None:
    """The step of the newest checkpoint that the log tells of, None if there is none (any more)."""
    step = None
    for event in run.events():
        if isinstance(event, events.Saved):
            step = event.step if event.path else None
    return step
