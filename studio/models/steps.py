"""Long work of the window's own, done in the turns of its event loop: a few milliseconds, then whatever a person does, then on."""

from __future__ import annotations

import time
from collections.abc import Iterator

from PySide6.QtCore import QObject, QTimer

SLICE = 0.005                              # seconds that one turn may take; a step that has begun is always done


class Steps(QObject):
    """Goes through an iterator whose steps are short. A new one takes the place of the last."""

    def __init__(self, parent: QObject | None = None):
        super().__init__(parent)
        self._work: Iterator[None] = iter(())
        self._timer = QTimer(self, interval=0)
        self._timer.timeout.connect(self._turn)

    @property
    def busy(self) -> bool:
        return self._timer.isActive()

    def begin(self, work: Iterator[None]) -> None:
        """Start in the next turn of the event loop."""
        self.stop()
        self._work = work
        self._timer.start()

    def stop(self) -> None:
        """Leave it as it is; a generator is closed, and so may tidy up."""
        self._timer.stop()
        getattr(self._work, "close", list)()

    def _turn(self) -> None:
        until = time.perf_counter() + SLICE
        for _ in self._work:
            if time.perf_counter() > until:
                return
        self._timer.stop()
