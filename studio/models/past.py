"""What has happened in a job, read from its folder in small bites, so that a long history never holds the window up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from PySide6.QtCore import QObject, QTimer

from engine import events
from engine.store.runs import RunFolder

BITE = 0.006                               # seconds of reading between two looks at the window


class Past(QObject):
    """Reads one history at a time; a new one takes the place of the old. A short one is there at once."""

    def __init__(self, parent: QObject):
        super().__init__(parent)
        self._events: Iterator[events.Event] = iter(())
        self._take: Callable[[events.Event], object] = _nobody
        self._end: Callable[[], object] = _nobody_at_all
        self.reading = False
        self._timer = QTimer(self, interval=0)
        self._timer.timeout.connect(self._bite)

    def read(self, folder: Path | None, take: Callable[[events.Event], object], end: Callable[[], object]) -> None:
        """Call ``take`` with each event of the run in ``folder`` (None: nothing), then ``end``; both in the window's thread."""
        self._events = RunFolder(folder).events() if folder is not None else iter(())
        self._take, self._end, self.reading = take, end, True
        self._bite()

    def _bite(self) -> None:
        until = time.perf_counter() + BITE
        for event in self._events:
            self._take(event)
            if time.perf_counter() > until:
                self._timer.start()
                return
        self._timer.stop()
        self.reading = False
        self._end()


def _nobody(_: events.Event) -> None:
    """Nobody listens yet."""


def _nobody_at_all() -> None:
    """Nobody waits yet."""
