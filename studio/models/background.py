"""Run a small piece of work outside the window's thread and hear of it inside: reading folders, copying an adapter.

Real work (training, exporting, chatting) never comes here: it belongs to the worker process.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from collections.abc import Callable

from PySide6.QtCore import QObject, Qt, Signal

from engine.errors import StudioError, explain


class Background(QObject):
    """One thread, one piece of work after the other; ``done(result)`` or ``failed(StudioError)`` run in the window's thread."""

    _arrived = Signal(object, object)

    def __init__(self, parent: QObject | None = None):
        super().__init__(parent)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="background")
        self._arrived.connect(self._deliver, Qt.ConnectionType.QueuedConnection)
        self._closed = False

    def run(self, work: Callable[[], Any], done: Callable[[Any], object], failed: Callable[[StudioError], object]) -> None:
        def carry_out() -> None:
            try:
                callback, value = done, work()
            except Exception as error:     # told to the person, whatever it is
                callback, value = failed, explain(error)
            if not self._closed:
                self._arrived.emit(callback, value)
        self._pool.submit(carry_out)

    def _deliver(self, callback: Callable[[Any], object], value: Any) -> None:
        if not self._closed:
            callback(value)

    def close(self) -> None:
        """Wait for the work in hand; nobody is called any more."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
