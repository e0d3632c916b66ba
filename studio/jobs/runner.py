"""What carries a job out. The queue does not know whether that is this process, a child or another machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol
from collections.abc import Callable

from engine import events
from engine.store.record import Job as Work
from engine.store.record import record
from engine.store.runs import RunFolder
from studio.jobs.child import process_start


@dataclass
class Watch:
    """The queue's ears and its one word of command while a job runs.

    ``said(event)`` takes each event · ``process(pid, start)`` notes who does the work · ``stop`` the request to stop, "cancel" or
    "pause", once there is one (it also lies in the job's folder, if the disk took it); if the job does not listen, end it.
    """

    said: Callable[[events.Event], None]
    process: Callable[[int, float], None]
    stop: str = ""


class Runner(Protocol):
    """Carries out one job after another."""

    def run(self, run: RunFolder, watch: Watch) -> events.Event:
        """Carry out what the folder's spec says; return the final event. Never raises for a failure of the job."""
        ...

    def warm(self) -> None:
        """Get ready while nothing is to be done; may do nothing."""
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


class InlineRunner:
    """Runs the job in the calling thread: for tests and tiny work. ``work`` is a job function (spec, run) → events."""

    def __init__(self, work: Work):
        self._work = work

    def run(self, run: RunFolder, watch: Watch) -> events.Event:
        watch.process(os.getpid(), process_start(os.getpid()) or 0.0)
        final: events.Event = events.Failed({})
        for final in record(self._work, run.spec(), run):
            watch.said(final)
        return final

    def warm(self) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to close."""
