"""The only Qt file between window and work: fetches news thirty times a second and hands them on as signals.

A burst of progress becomes its last word, a burst of tokens one piece of text; steps and everything else all arrive.
One tick never takes longer than a few milliseconds, however much has piled up.
"""

from __future__ import annotations

import collections
import time
from dataclasses import replace
from collections.abc import Callable

from PySide6.QtCore import QObject, QTimer, Signal

from engine import events
from engine.specs import Spec
from studio.jobs.queue import JobChanged, JobEvent, JobQueue, JobRemoved, News
from studio.jobs.talk import Done, Talk, Word

INTERVAL = 33                              # milliseconds
BUDGET = 0.006                             # seconds a tick may take; the rest waits for the next one


def latest(news: list[News]) -> list[News]:
    """Without the news that a later one makes void: older states of a job, older progress of its current stage."""
    kept: list[News] = []
    later: set = set()
    for item in reversed(news):
        match item:
            case JobChanged(job):
                key = ("state", job.id)
            case JobEvent(id, events.Progress()):
                key = ("progress", id)
            case _:
                key = None
        if key is None or key not in later:
            kept.append(item)
            later.add(key)
    return kept[::-1]


def joined(words: list[tuple[int, Word]]) -> list[tuple[int, Word]]:
    """Neighbouring tokens of one column as one token, of neighbouring progress the last."""
    kept: list[tuple[int, Word]] = []
    for ticket, word in words:
        if kept and kept[-1][0] == ticket:
            last = kept[-1][1]
            if isinstance(word, events.Token) and isinstance(last, events.Token) and word.column == last.column:
                kept[-1] = ticket, replace(word, text=last.text + word.text)
                continue
            if isinstance(word, events.Progress) and isinstance(last, events.Progress):
                kept[-1] = ticket, word
                continue
        kept.append((ticket, word))
    return kept


class _Ticker(QObject):
    """A timer that fetches, thins out and delivers within its budget."""

    def __init__(self, parent: QObject | None):
        super().__init__(parent)
        self._waiting: collections.deque = collections.deque()
        self._timer = QTimer(self)
        self._timer.timeout.connect(self.tick)
        self._timer.start(INTERVAL)

    def tick(self) -> None:
        """Deliver what has come; called by the timer, and by tests and closing windows directly."""
        self._waiting.extend(self._fetch())
        until = time.perf_counter() + BUDGET
        while self._waiting and time.perf_counter() < until:
            self._deliver(self._waiting.popleft())

    def stop_ticking(self) -> None:
        self._timer.stop()

    def _fetch(self) -> list:
        raise NotImplementedError

    def _deliver(self, item) -> None:
        raise NotImplementedError


class QueueBridge(_Ticker):
    """News of the job queue as signals, in the window's thread. ``queue`` is for asking."""

    changed = Signal(object)               # Job
    event = Signal(int, object)            # job id, Event (nothing here needs QObject.event, which it hides)
    removed = Signal(int)                  # job id

    def __init__(self, queue: JobQueue, parent: QObject | None = None):
        super().__init__(parent)
        self.queue = queue

    def _fetch(self) -> list[News]:
        return latest(self.queue.drain())

    def _deliver(self, item: News) -> None:
        match item:
            case JobChanged(job):
                self.changed.emit(job)
            case JobEvent(id, event):
                self.event.emit(id, event)
            case JobRemoved(id):
                self.removed.emit(id)


class TalkBridge(_Ticker):
    """Questions with callbacks, all called in the window's thread: ``on_event(Event)*``, then ``on_done(answer | None)`` or
    ``on_error(StudioError)``. An error that nobody takes is emitted as `failed`."""

    failed = Signal(object)                # StudioError

    def __init__(self, talk: Talk, parent: QObject | None = None):
        super().__init__(parent)
        self.talk = talk
        self._callbacks: dict[int, tuple] = {}

    def ask(self, request: Spec, *, on_event: Callable | None = None, on_done: Callable | None = None,
            on_error: Callable | None = None) -> int:
        """Ask; returns the ticket."""
        ticket = self.talk.ask(request)
        self._callbacks[ticket] = (on_event, on_done, on_error)
        return ticket

    def stop(self, ticket: int) -> None:
        """End an answer early; its last word still comes."""
        self.talk.stop(ticket)

    def forget(self, ticket: int) -> None:
        """Stop an answer and call nobody about it any more (its asker is gone)."""
        if self._callbacks.pop(ticket, None) is not None:
            self.talk.stop(ticket)

    def _fetch(self) -> list[tuple[int, Word]]:
        return joined(self.talk.drain())

    def _deliver(self, item: tuple[int, Word]) -> None:
        ticket, word = item
        if ticket not in self._callbacks:
            return
        on_event, on_done, on_error = self._callbacks[ticket]
        if isinstance(word, events.Event):
            if on_event is not None:
                on_event(word)
            return
        del self._callbacks[ticket]
        if isinstance(word, Done):
            if on_done is not None:
                on_done(word.answer)
        elif on_error is not None:
            on_error(word.error)
        else:
            self.failed.emit(word.error)
