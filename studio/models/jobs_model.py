"""The queue as a table: one row a job, kept up to date by the bridge."""

from __future__ import annotations

import time
from datetime import datetime

from PySide6.QtCore import QAbstractTableModel, QLocale, QModelIndex, Qt

from engine import events
from studio.core.text import amounts
from studio.core.text import work as words
from studio.core.text.spoken import spoken
from studio.jobs.bridge import QueueBridge
from studio.jobs.job import Job, State

TITLE, KIND, STATE, PROGRESS, WHEN = range(5)
JobRole = Qt.ItemDataRole.UserRole
FractionRole = Qt.ItemDataRole.UserRole + 1        # 0…1, or None while unknown


class JobsModel(QAbstractTableModel):
    """Columns: job, kind, state (mark and word), progress in words, when. `JobRole` gives the `Job`."""

    def __init__(self, bridge: QueueBridge, parent=None):
        super().__init__(parent)
        self._jobs: list[Job] = sorted(bridge.queue.jobs(), key=lambda job: job.position)
        self._progress: dict[int, events.Event] = {}
        bridge.changed.connect(self._changed)
        bridge.event.connect(self._event)
        bridge.removed.connect(self._removed)

    def job(self, row: int) -> Job | None:
        return self._jobs[row] if 0 <= row < len(self._jobs) else None

    def row_of(self, id: int) -> int:
        """Row of a job, or -1."""
        return next((row for row, job in enumerate(self._jobs) if job.id == id), -1)

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def fraction(self, job: Job) -> float | None:
        """How far a running job is, 0 to 1; None while unknown."""
        match self._progress.get(job.id):
            case events.Step(step=step, steps=steps) if steps:
                return step / steps
            case events.Progress(done=done, total=total) if total:
                return min(1.0, done / total)
        return None

    def progress_words(self, job: Job) -> str:
        """Where it stands, in words."""
        if job.state is not State.RUNNING:
            if job.state in (State.PAUSED, State.INTERRUPTED):
                return words.QUEUE_RESUMES(step=job.step) if job.step else words.QUEUE_BEGINS()
            return spoken((job.error or {}).get("what", "")) if job.state is State.FAILED else ""
        said = self._progress.get(job.id)
        stage = spoken(said.stage) if isinstance(said, events.Progress) else ""
        fraction, ahead = self.fraction(job), amounts.left(getattr(said, "seconds_left", None))
        return " · ".join(part for part in (amounts.percent(fraction) if fraction is not None else "", ahead or stage) if part)

    # --- Qt ---

    def rowCount(self, parent: QModelIndex = QModelIndex()) -> int:            # noqa: N802 (Qt's names)
        return 0 if parent.isValid() else len(self._jobs)

    def columnCount(self, parent: QModelIndex = QModelIndex()) -> int:         # noqa: N802
        return 0 if parent.isValid() else 5

    def headerData(self, section: int, orientation, role: int = Qt.ItemDataRole.DisplayRole):    # noqa: N802
        if role == Qt.ItemDataRole.DisplayRole and orientation == Qt.Orientation.Horizontal:
            return words.QUEUE_COLUMNS[section]()
        return None

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole):
        if not index.isValid() or not 0 <= index.row() < len(self._jobs):
            return None
        job, column = self._jobs[index.row()], index.column()
        if role == JobRole:
            return job
        if role == FractionRole:
            return self.fraction(job)
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.ToolTipRole):
            return self._text(job, column)
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return words.STATES[job.state.value]() if column == STATE else self._text(job, column)
        return None

    def _text(self, job: Job, column: int) -> str:
        if column == TITLE:
            return job.title
        if column == KIND:
            return words.KINDS[job.spec.kind]() if job.spec.kind in words.KINDS else job.spec.kind
        if column == STATE:
            return f"{words.STATE_MARKS[job.state.value]}  {words.STATES[job.state.value]()}"
        if column == PROGRESS:
            return self.progress_words(job)
        return moment(job)

    # --- news ---

    def _changed(self, job: Job) -> None:
        row = self.row_of(job.id)
        if job.state is not State.RUNNING:
            self._progress.pop(job.id, None)
        if row >= 0 and self._jobs[row].position == job.position:
            self._jobs[row] = job
            self.dataChanged.emit(self.index(row, 0), self.index(row, 4))
            return
        if row >= 0:
            self._removed(job.id)
        place = sum(other.position < job.position for other in self._jobs)
        self.beginInsertRows(QModelIndex(), place, place)
        self._jobs.insert(place, job)
        self.endInsertRows()

    def _event(self, id: int, event: events.Event) -> None:
        if isinstance(event, (events.Progress, events.Step)) and (row := self.row_of(id)) >= 0:
            self._progress[id] = event
            self.dataChanged.emit(self.index(row, PROGRESS), self.index(row, PROGRESS))

    def _removed(self, id: int) -> None:
        if (row := self.row_of(id)) >= 0:
            self.beginRemoveRows(QModelIndex(), row, row)
            del self._jobs[row]
            self._progress.pop(id, None)
            self.endRemoveRows()


def moment(job: Job) -> str:
    """When it ended, began or was asked for: "today 14:05"."""
    then, locale = datetime.fromtimestamp(job.ended or job.started or job.created), QLocale()
    clock = locale.toString(then.time(), QLocale.FormatType.ShortFormat)
    if then.date() == datetime.fromtimestamp(time.time()).date():
        return words.QUEUE_TODAY(time=clock)
    return f"{locale.toString(then.date(), QLocale.FormatType.ShortFormat)} {clock}"


def when(job: Job) -> str:
    """ "today 14:05 · took 3 min"."""
    if job.state is State.FINISHED and job.started and job.ended:
        return f"{moment(job)} · {words.QUEUE_TOOK(amount=amounts.duration(job.ended - job.started))}"
    return moment(job)
