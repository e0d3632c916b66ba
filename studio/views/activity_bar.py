"""The bar at the bottom: what runs now and how long it will take, the last thing said, memory, disk, undo and redo."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
from PySide6.QtCore import QTimer, Qt, Signal
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QProgressBar, QPushButton, QToolButton, QWidget

from engine import events
from studio.core.text import amounts, number
from studio.core.text import frame as text
from studio.core.text.spoken import spoken
from studio.jobs.bridge import QueueBridge
from studio.jobs.job import Job, State
from studio.models.undo import UndoStack
from studio.views import a11y, theme

SHOWN = 12_000                             # milliseconds a sentence stays


class ActivityBar(QFrame):
    """Listens to the queue; nothing here waits for anything."""

    wish = Signal(str)                     # another workspace: "queue"

    def __init__(self, bridge: QueueBridge, undo: UndoStack, root: Path, parent: QWidget | None = None):
        super().__init__(parent)
        theme.look(self, "bar")
        self._bridge, self._undo, self._root = bridge, undo, root
        self._job: Job | None = None
        self._words = ""                   # what runs
        self._waiting: set[int] = set()
        self._what = theme.look(QPushButton(), "quiet")
        self._what.setToolTip(text.show_queue())
        self._what.setMinimumWidth(1)      # it says what has room: `_fit`
        self._what.clicked.connect(lambda: self.wish.emit("queue"))
        self.progress = a11y.name(QProgressBar(), text.progress())
        self.progress.setTextVisible(False)
        self.progress.setFixedWidth(150)
        self.left = theme.look(QLabel(), "muted small")
        self.pause = a11y.name(QToolButton(), text.pause_job())
        self.pause.setToolTip(text.pause_job_help())
        self.pause.clicked.connect(lambda: self._ask(bridge.queue.pause))
        self.said = a11y.ElidedLabel(mode=Qt.TextElideMode.ElideRight)
        self.said.setAlignment(Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft)
        self.memory, self.disk = (theme.look(QLabel(), "muted small") for _ in range(2))
        self.undo = self._step(text.undo(), undo.undo)
        self.redo = self._step(text.redo(), undo.redo)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(theme.M, theme.XS, theme.M, theme.XS)
        layout.setSpacing(theme.S)
        for widget in (self._what, self.progress, self.left, self.pause):
            layout.addWidget(widget)
        layout.addSpacing(theme.S)
        layout.addWidget(self.said, 1)
        for widget in (self.memory, self.disk, self.undo, self.redo):
            layout.addWidget(widget)
        self._silence = QTimer(self, singleShot=True, interval=SHOWN)
        self._silence.timeout.connect(lambda: self.said.setText(""))
        self._meter = QTimer(self, interval=2000)
        self._meter.timeout.connect(self.measure)
        self._meter.start()
        bridge.changed.connect(self._changed)
        bridge.event.connect(self._event)
        bridge.removed.connect(self._waiting.discard)
        undo.changed.connect(self._steps)
        theme.changed.connect(self._retint)
        self._retint()
        self._steps()
        self.measure()
        for job in bridge.queue.jobs():
            self._changed(job)
        self._show()

    def say(self, words: str) -> None:
        """Show a sentence for a while and have a screen reader say it."""
        self.said.setText(words)
        self._silence.start()
        a11y.announce(self, words)

    def measure(self) -> None:
        """Memory of the computer and room on the library's disk."""
        memory = psutil.virtual_memory()
        self.memory.setText(text.memory(used=number((memory.total - memory.available) / 1e9, 1), total=round(memory.total / 1e9)))
        self.memory.setToolTip(text.memory_help())
        try:
            self.disk.setText(text.disk(free=amounts.size(shutil.disk_usage(self._root).free)))
            self.disk.setToolTip(text.disk_help())
        except OSError:
            self.disk.setText(text.disk_gone())

    # --- what runs ---

    def _changed(self, job: Job) -> None:
        (self._waiting.add if job.state is State.WAITING else self._waiting.discard)(job.id)
        if job.state is State.RUNNING:
            if self._job is None or self._job.id != job.id:
                self._set_progress(0, 0, None)
            self._job = job
        elif self._job is not None and self._job.id == job.id:
            self._job = None
        self._show()

    def _event(self, id: int, event: events.Event) -> None:
        if self._job is None or id != self._job.id:
            return
        if isinstance(event, events.Progress):
            self._set_progress(event.done, event.total, event.seconds_left)
            self._show(spoken(event.stage))
        elif isinstance(event, events.Step):
            self._set_progress(event.step, event.steps, event.seconds_left)
            self._show(text.step_of(step=event.step, steps=event.steps))

    def _set_progress(self, done: float, total: float, seconds: float | None) -> None:
        self.progress.setRange(0, 1000 if total else 0)
        self.progress.setValue(round(1000 * done / total) if total else 0)
        self.left.setText(amounts.left(seconds))

    def _show(self, stage: str = "") -> None:
        running = self._job is not None
        for widget in (self.progress, self.left, self.pause):
            widget.setVisible(running)
        if running:
            words = text.running(title=self._job.title, stage=stage) if stage else self._job.title
        else:
            words = text.waiting(len(self._waiting)) if self._waiting else text.idle()
        self._words = words
        a11y.name(self._what, words, text.show_queue())
        self._what.setIcon(theme.icon("play" if running else "time" if self._waiting else "check", "accent" if running else "muted"))
        self._fit()

    def resizeEvent(self, event) -> None:  # noqa: N802 (Qt's name)
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        """What runs is cut where it must be, and memory and disk give way to it: the bar never widens the window."""
        metrics = self._what.fontMetrics()
        least, widgets = 24 * metrics.averageCharWidth(), (self.progress, self.left, self.pause, self.undo, self.redo, self.said)
        room = self.width() - 3 * theme.M - sum(theme.S + w.minimumSizeHint().width() for w in widgets if not w.isHidden())
        for label in (self.memory, self.disk):
            needs = theme.S + label.sizeHint().width()
            label.setVisible(room - needs >= least)
            room -= needs if not label.isHidden() else 0
        beside = self._what.iconSize().width() + theme.XL
        shown = metrics.elidedText(f" {self._words}", Qt.TextElideMode.ElideMiddle, max(least, min(room, self.width() // 3)) - beside)
        self._what.setText(shown.replace("&", "&&"))       # a name's own sign, no key

    def _ask(self, request: Callable[[int], object]) -> None:
        if self._job is not None:
            request(self._job.id)
            self.say(text.pausing())

    # --- undo ---

    def _step(self, words: str, act: Callable[[], object]) -> QToolButton:
        button = a11y.name(QToolButton(), words)
        button.clicked.connect(lambda: act())
        return button

    def _steps(self) -> None:
        for button, words, whole in ((self.undo, self._undo.undo_words(), text.undo_what), (self.redo, self._undo.redo_words(), text.redo_what)):
            button.setEnabled(bool(words))
            button.setToolTip(whole(words=words) if words else "")

    def _retint(self, *_) -> None:
        self.undo.setIcon(theme.icon("undo"))
        self.redo.setIcon(theme.icon("redo"))
        self.pause.setIcon(theme.icon("pause"))
        self._show()
