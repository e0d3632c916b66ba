"""Jobs in a child process: a crash, an out-of-memory kill or a driver fault leaves the window alive, and memory is really freed.

Each job gets a fresh child (the same spec gives the same bytes, whatever ran before); the next one is warmed while nothing
is to be done, so that a job begins at once.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from pathlib import Path

from engine import events
from engine.errors import StudioError, explain
from engine.store.record import last_step
from engine.store.runs import EventLog, EventTail, RunFolder
from studio.jobs.child import WorkerChild
from studio.jobs.runner import Watch

log = logging.getLogger(__name__)
POLL = 0.04                                # seconds between two looks at the run folder


class ProcessRunner:
    """`Runner` over ``python -m engine.worker``.

    Args:
        log_file: where the children's stderr goes. argv: how to start one (tests).
        grace: seconds that a job which was asked to stop has for it; then the child is terminated.
        insist: seconds after which a terminated child is killed.
    """

    def __init__(self, log_file: Path, *, argv: list[str] | None = None, grace: float = 10.0, insist: float = 5.0):
        self._log_file, self._argv, self._grace, self._insist = log_file, argv, grace, insist
        self._next: tuple[WorkerChild, queue.SimpleQueue] | None = None
        self._lock = threading.Lock()

    def warm(self) -> None:
        """Start the next child now; it imports what every job needs. Raises `StudioError`."""
        with self._lock:
            if self._next is None or not self._next[0].alive:
                self._next = self._spawn()

    def close(self) -> None:
        """End the warm child."""
        with self._lock:
            if self._next is not None:
                self._next[0].close()
                self._next = None

    def run(self, run: RunFolder, watch: Watch) -> events.Event:
        """See `Runner.run`. The child is gone when this returns."""
        try:
            child, inbox = self._take()
        except StudioError as error:
            return self._note_final(run, watch, events.Failed(error.to_dict()))
        try:
            watch.process(*child.identity)
            child.send({"id": 1, "do": "run", "folder": str(run.path)})
            return self._supervise(child, inbox, run, watch)
        except Exception as error:
            child.kill()
            child.wait()
            return self._note_final(run, watch, events.Failed(explain(error).to_dict()))
        finally:
            child.close(self._insist)

    def _spawn(self) -> tuple[WorkerChild, queue.SimpleQueue]:
        inbox: queue.SimpleQueue = queue.SimpleQueue()
        return WorkerChild(self._log_file, inbox.put, lambda: inbox.put(None), self._argv), inbox

    def _take(self) -> tuple[WorkerChild, queue.SimpleQueue]:
        with self._lock:
            ready, self._next = self._next, None
        if ready is not None and not ready[0].alive:
            ready[0].close()
            ready = None
        return ready or self._spawn()

    def _supervise(self, child: WorkerChild, inbox: queue.SimpleQueue, run: RunFolder, watch: Watch) -> events.Event:
        tail, ladder = EventTail(run, after=max((e.seq for e in run.events()), default=0)), _Ladder(child, run, self._grace, self._insist)
        while True:
            try:
                message = inbox.get(timeout=POLL)
            except queue.Empty:
                message = {}
            for event in tail.poll():
                watch.said(event)
            if message is None or "done" in message or "failed" in message:
                break
            for note in ladder.climb(bool(watch.stop)):
                watch.said(note)
        if message is None:
            child.wait()
        for event in tail.poll():
            watch.said(event)
        if (final := run.outcome()) is not None:
            return final
        if message is None:
            return self._note_final(run, watch, self._ended_silently(child, run, watch.stop if ladder.rung else ""), *ladder.notes)
        # The job ended but could not even write that down (a full disk): believe the pipe.
        final = events.Failed(message["failed"]) if "failed" in message else events.from_dict(message["done"])
        watch.said(final)
        return final

    def _ended_silently(self, child: WorkerChild, run: RunFolder, forced: str) -> events.Event:
        """``forced``: the request to which it did not listen, so that we ended it."""
        step = last_step(run)
        if forced:
            return events.Stopped(forced, resumable=step is not None, step=step)
        error = child.died()
        error.do = f"It resumes at step {step}." if step else "Try again."
        return events.Failed(error.to_dict())

    def _note_final(self, run: RunFolder, watch: Watch, final: events.Event, *notes: events.Event) -> events.Event:
        """Write on behalf of a child that can no longer do it."""
        try:
            with EventLog(run) as written:
                for note in notes:
                    written.write(note)
                final = written.write(final)
        except OSError:
            log.exception("the end of %s could not be written", run.path)
        watch.said(final)
        return final


class _Ladder:
    """Request → terminate → kill. Each rung is told to the person and kept for the run's log."""

    def __init__(self, child: WorkerChild, run: RunFolder, grace: float, insist: float):
        self._child, self._run, self._waits = child, run, (grace, insist)
        self._since: float | None = None
        self.rung = 0
        self.notes: list[events.Note] = []

    def climb(self, stop: bool) -> list[events.Note]:
        """Take the next rung if it is time for it; returns what to tell."""
        if not stop or self.rung == 2:
            return []
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since < self._waits[self.rung]:
            return []
        self._since = now
        self.rung += 1
        if self.rung == 1:
            text = f"The job did not stop within {self._waits[0]:g} seconds; its process is being ended."
            self._child.terminate()
        else:
            text = f"The process did not end within {self._waits[1]:g} seconds; it is being killed."
            self._child.kill()
        note = events.Note(text, level="warning")
        self.notes.append(note)
        return [note]
