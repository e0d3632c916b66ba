"""The queue on disk: one SQLite table in WAL mode. Every change of state is checked and written in one transaction.

Killing the process at any moment leaves a sound database that says what was true last.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from pathlib import Path
from collections.abc import Iterator

from engine import specs
from engine.errors import Busy, DiskFull, StudioError
from studio.jobs.job import Job, State

MIGRATIONS = (
    """CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT NOT NULL, spec TEXT NOT NULL, state TEXT NOT NULL, folder TEXT NOT NULL,
        position INTEGER NOT NULL, created REAL NOT NULL, started REAL, ended REAL, attempt INTEGER NOT NULL DEFAULT 0,
        error TEXT, result TEXT, step INTEGER, pid INTEGER, pid_start REAL)""",
)                                          # user_version n means: the first n were applied


class JobStore:
    """All jobs of one home. May be used from several threads; each method is one transaction."""

    def __init__(self, database: Path | str):
        self.path = Path(database)
        self._lock = threading.RLock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=5.0)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._migrate()
        except (OSError, sqlite3.Error) as error:
            raise StudioError("The list of jobs cannot be opened.", f"{self.path}: {error}",
                              "Close other copies of the studio; if it stays so, move this file away and start again: "
                              "models, adapters and runs are not in it.", details=str(error)) from error

    def _migrate(self) -> None:
        with self._transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise sqlite3.DatabaseError("it was written by a newer version of the studio")
            for number in range(version, len(MIGRATIONS)):
                self._db.execute(MIGRATIONS[number])
                self._db.execute(f"PRAGMA user_version = {number + 1}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                raise _told(error) from error
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):   # SQLite may have rolled back by itself (full disk)
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise _told(error) from error
                raise

    # --- reading ---

    def jobs(self) -> list[Job]:
        """All jobs in the order of the queue. A job of a newer studio, which this one cannot read, is left out but kept."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM jobs ORDER BY position, id").fetchall()
        found = []
        for row in rows:
            with contextlib.suppress(ValueError):  # also `InvalidSpec` is one
                found.append(_job(row))
        return found

    def job(self, id: int) -> Job:
        """One job. Raises `StudioError` when it is not there (any more)."""
        with self._lock:
            row = self._db.execute("SELECT * FROM jobs WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise StudioError("This job is no longer in the list.", do="Look at the queue again.")
        return _job(row)

    def next_waiting(self) -> Job | None:
        """The first waiting job that this studio can read."""
        return next((job for job in self.jobs() if job.state is State.WAITING), None)

    def process(self, id: int) -> tuple[int, float] | None:
        """(pid, its start time) of the process that carries the job out, as last noted."""
        with self._lock:
            row = self._db.execute("SELECT pid, pid_start FROM jobs WHERE id = ?", (id,)).fetchone()
        return None if row is None or row["pid"] is None else (row["pid"], row["pid_start"])

    # --- writing ---

    def add(self, spec: specs.Spec, title: str, folder: Path) -> Job:
        """A new waiting job at the end of the queue."""
        with self._transaction() as db:
            (last,) = db.execute("SELECT COALESCE(MAX(position), -1) FROM jobs").fetchone()
            id = db.execute("INSERT INTO jobs (title, spec, state, folder, position, created) VALUES (?, ?, ?, ?, ?, ?)",
                            (title, json.dumps(spec.to_dict()), State.WAITING.value, str(folder), last + 1, time.time())).lastrowid
        return self.job(id)

    def change(self, id: int, target: State, *, error: dict | None = None, result: dict | None = None, step: int | None = None) -> Job:
        """Bring a job into another state. Raises `Busy` when that is not allowed from where it stands."""
        with self._transaction() as db:
            job = self.job(id)
            if not job.may(target):
                raise Busy(f"“{job.title}” is {job.state.value} and cannot become {target.value}.", do="Look at the queue again.")
            now = time.time()
            values = {"state": target.value, "error": _json(error), "result": _json(result), "step": job.step if step is None else step}
            if target is State.RUNNING:
                values |= {"started": now, "ended": None, "attempt": job.attempt + 1, "pid": None, "pid_start": None}
            elif job.state is State.RUNNING or target is State.CANCELLED:
                values |= {"ended": now}
            db.execute(f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in values)} WHERE id = ?", (*values.values(), id))
            return self.job(id)            # a moment later it may have been removed

    def note_process(self, id: int, pid: int, start: float) -> None:
        """Which process carries this job out; the next studio asks whether it still lives."""
        with self._transaction() as db:
            db.execute("UPDATE jobs SET pid = ?, pid_start = ? WHERE id = ?", (pid, start, id))

    def note_step(self, id: int, step: int) -> None:
        """A checkpoint at this step is on disk."""
        with self._transaction() as db:
            db.execute("UPDATE jobs SET step = ? WHERE id = ?", (step, id))

    def move(self, id: int, position: int) -> list[Job]:
        """Put a job at this place among all jobs (0 first). Returns the jobs whose place changed."""
        with self._transaction() as db:
            before = self.jobs()
            moved = self.job(id)
            rest = [job for job in before if job.id != id]
            rest.insert(max(0, min(position, len(rest))), moved)
            changed = [job.id for place, job in enumerate(rest) if job.position != place]
            for place, job in enumerate(rest):
                db.execute("UPDATE jobs SET position = ? WHERE id = ?", (place, job.id))
        return [self.job(other) for other in changed]

    def remove(self, id: int) -> None:
        """Forget a job. Raises `Busy` while it runs."""
        with self._transaction() as db:
            if self.job(id).state is State.RUNNING:
                raise Busy("A job that is running cannot be removed.", do="Cancel it first.")
            db.execute("DELETE FROM jobs WHERE id = ?", (id,))

    def close(self) -> None:
        with self._lock:
            self._db.close()


def _told(error: sqlite3.OperationalError) -> StudioError:
    if "full" in str(error):
        return DiskFull("The disk is full.", "The list of jobs could not be written.", "Free some space and try again.", details=str(error))
    return StudioError("The list of jobs cannot be written.", str(error), "Check the disk and try again.", details=str(error))


def _json(value: dict | None) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _job(row: sqlite3.Row) -> Job:
    revived = {name: None if row[name] is None else json.loads(row[name]) for name in ("error", "result")}
    return Job(row["id"], row["title"], specs.from_dict(json.loads(row["spec"])), State(row["state"]), Path(row["folder"]), row["position"],
               row["created"], row["started"], row["ended"], row["attempt"], revived["error"], revived["result"], row["step"])
