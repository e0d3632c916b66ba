"""The queue between window and engine: takes specs, carries them out one at a time, tells what happens.

The window's thread only reads and writes small rows; a worker thread supervises whatever `Runner` does the work.
News lie in a deque until `drain` fetches them, so that nothing here ever waits for the window, nor the window for it.
"""

from __future__ import annotations

import collections
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from engine import events
from engine.errors import Busy, DiskFull, StudioError, WorkerDied, explain
from engine.specs import Spec
from engine.store.atomic import write_json
from engine.store.home import Home, free_name
from engine.store.lock import FileLock
from engine.store.record import last_step
from engine.store.runs import RunFolder
from studio.jobs.child import lives
from studio.jobs.job import Job, State
from studio.jobs.runner import Runner, Watch
from studio.jobs.store import JobStore

log = logging.getLogger(__name__)
WARM_AFTER = 3.0                           # seconds of idleness after which the runner may get ready
RETRY_AFTER = 5.0                          # seconds until the queue tries again after its own failure
PASSING = (WorkerDied.code, DiskFull.code) # what ended a job that can go on from its last checkpoint as soon as somebody wants
ORPHAN_GRACE = 15.0                        # seconds given to the child of a dead studio to save and end


@dataclass(frozen=True)
class JobChanged:
    job: Job


@dataclass(frozen=True)
class JobEvent:
    job_id: int
    event: events.Event


@dataclass(frozen=True)
class JobRemoved:
    job_id: int


News = JobChanged | JobEvent | JobRemoved


class JobQueue:
    """All jobs of one home. Only one queue may be started for a home at a time, whatever the process.

    Args:
        home: its ``runs`` folder gets one folder a job. store: the table. runner: who does the work.
    """

    def __init__(self, home: Home, store: JobStore, runner: Runner):
        self.home, self._store, self._runner = home, store, runner
        self._lock = FileLock(home.root / "studio.lock", "The studio is already open with this folder.",
                              "Use the window that is open, or close it first.")
        self._news: collections.deque[News] = collections.deque()
        self._wake = threading.Condition()     # guards the three below
        self._closing = False
        self._running: int | None = None
        self._watch: Watch | None = None
        self._orphans: list[Job] = []
        self._thread: threading.Thread | None = None

    # --- life ---

    def start(self) -> None:
        """Take the home, tell what became of jobs that ran when the last studio ended, begin to work. Raises `Busy`."""
        self._lock.acquire()
        try:
            for job in self._store.jobs():
                if job.state is State.RUNNING:
                    process = self._store.process(job.id)
                    if process is not None and lives(*process):
                        self._orphans.append(job)      # its child is still saving: the worker thread waits for it
                    else:
                        self._settle_lost(job)
        except BaseException:
            self._lock.release()
            raise
        self._thread = threading.Thread(target=self._work, name="job-queue", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask the running job to save and stop (it is `INTERRUPTED`, to be continued), end the runner, give the home back."""
        with self._wake:
            self._closing = True
            if self._running is not None:
                self._stop_running("pause")
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._runner.close()
        self._store.close()
        self._lock.release()

    # --- what the window asks (each returns at once) ---

    def submit(self, spec: Spec, title: str) -> Job:
        """Put a job at the end of the queue. Raises `InvalidSpec`, `DiskFull` or another `StudioError`."""
        spec.check()
        folder = free_name(self.home.runs, f"{spec.kind} {title}")
        try:
            folder.mkdir(parents=True)     # the worker thread fills it: a write that waits for the disk is not for the window's thread
            job = self._store.add(spec, title, folder)
        except (OSError, StudioError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise explain(error) from error
        self._tell(JobChanged(job))
        self._wake_up()
        return job

    def cancel(self, id: int) -> None:
        """Stop for good (but it may be resumed). A running job that does not listen is ended by force."""
        with self._wake:
            if self._running == id:
                self._stop_running("cancel")
            else:
                self._change(id, State.CANCELLED)

    def pause(self, id: int) -> None:
        """Save a checkpoint and stop; `resume` goes on from there."""
        with self._wake:
            if self._running == id:
                self._wish(self._store.job(id), lambda run: run.ask("pause"))
            else:
                self._change(id, State.PAUSED)

    def resume(self, id: int) -> None:
        """Back into the line, at its old place. Raises `Busy` when it is not stopped."""
        with self._wake:
            self._change(id, State.WAITING)

    def sample(self, id: int) -> None:
        """Ask a running training to answer its pinned questions now. Nothing happens if it is not running."""
        with self._wake:
            if self._running == id:
                self._wish(self._store.job(id), lambda run: run.ask("sample"))

    def finish(self, id: int) -> None:
        """Ask a training to end now and keep its adapter; one that is stopped ends from what it saved. Nothing happens if it saved nothing."""
        with self._wake:
            job = self._store.job(id)
            if self._running == id or job.can_finish:
                self._wish(job, lambda run: run.ask("finish"))
            if job.can_finish:
                self._change(id, State.WAITING)

    def extend(self, id: int, passes: float) -> None:
        """Give a training so many passes more, now or when it goes on. Raises `Busy` when it is over."""
        with self._wake:
            job = self._store.job(id)
            if job.state is State.FINISHED:
                raise Busy(f"“{job.title}” is finished already.", do="Train more on the Review page.")
            self._wish(job, lambda run: run.extend(passes))

    def slow_down(self, id: int) -> None:
        """Go on with half the learning speed, from the last good checkpoint. Raises `Busy` when it is not stopped."""
        with self._wake:
            job = self._store.job(id)
            if job.can_resume:
                self._wish(job, RunFolder.slow_down)
            self._change(id, State.WAITING)

    def move(self, id: int, position: int) -> None:
        """Put a job at this place among all jobs, 0 first."""
        for job in self._store.move(id, position):
            self._tell(JobChanged(job))

    def remove(self, id: int) -> None:
        """Forget a job and delete its run folder (results lie elsewhere and stay). Raises `Busy` while it runs."""
        with self._wake:
            folder = self._store.job(id).folder
            self._store.remove(id)
        if folder.parent == self.home.runs:
            shutil.rmtree(folder, ignore_errors=True)
        self._tell(JobRemoved(id))

    def jobs(self) -> list[Job]:
        """All jobs in the order of the queue."""
        return self._store.jobs()

    def job(self, id: int) -> Job:
        """One job; raises `StudioError` when it is gone."""
        return self._store.job(id)

    def events(self, id: int, after: int = 0) -> list[events.Event]:
        """What happened in a job so far, from its folder."""
        return list(RunFolder(self._store.job(id).folder).events(after))

    def drain(self) -> list[News]:
        """All news since the last call, oldest first. May be called from any thread."""
        found = []
        while True:
            try:
                found.append(self._news.popleft())
            except IndexError:
                return found

    @staticmethod
    def _wish(job: Job, wish: Callable[[RunFolder], None]) -> None:
        try:
            wish(RunFolder(job.folder))
        except OSError as error:
            raise explain(error) from error

    # --- the worker thread ---

    def _tell(self, news: News) -> None:
        self._news.append(news)

    def _stop_running(self, request: str) -> None:
        """Ask for it; a job that does not listen, or cannot be told because the disk is full, is ended by force."""
        self._watch.stop = self._watch.stop or request
        try:
            RunFolder(self._store.job(self._running).folder).ask(request)
        except OSError:
            log.exception("job %s cannot be asked to %s", self._running, request)

    def _change(self, id: int, target: State, **facts) -> Job:
        job = self._store.change(id, target, **facts)
        self._tell(JobChanged(job))
        self._wake_up()
        return job

    def _wake_up(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _work(self) -> None:
        """The worker thread. Whatever goes wrong, it goes on: at worst after a while."""
        warm = False
        while not self._closing:
            try:
                while self._orphans:
                    self._end_orphan(self._orphans.pop())
                with self._wake:
                    self._wake.wait_for(self._has_work, None if warm else WARM_AFTER)
                    job = None if self._closing else self._store.next_waiting()
                if job is not None:
                    warm = False
                    self._attend(job)
                elif not warm and not self._closing:
                    warm = True
                    self._runner.warm()
            except Exception:              # the list of jobs cannot be read or written, no process can be started
                log.exception("in the queue's thread")
                with self._wake:
                    self._wake.wait_for(lambda: self._closing, RETRY_AFTER)

    def _attend(self, job: Job) -> None:
        try:
            self._carry_out(job)
        except Exception as problem:       # a full disk, a folder taken away: this job ends, the queue goes on
            log.exception("job %s", job.id)
            self._change(job.id, State.FAILED, error=explain(problem).to_dict())
        finally:
            with self._wake:
                self._running = self._watch = None

    def _has_work(self) -> bool:
        return self._closing or self._store.next_waiting() is not None

    def _carry_out(self, job: Job) -> None:
        run = RunFolder(job.folder)
        with self._wake:                   # requests come before this (the job is no longer waiting) or after it (they are heard)
            if self._closing or self._store.job(job.id).state is not State.WAITING:
                return
            self._change(job.id, State.RUNNING)
            run.clear("cancel", "pause", "sample")
            (run.path / "outcome.json").unlink(missing_ok=True)
            self._running = job.id
            self._watch = watch = Watch(lambda event: self._heard(job.id, event),
                                        lambda pid, start: self._store.note_process(job.id, pid, start))
        if not (run.path / "spec.json").exists():
            write_json(run.path / "spec.json", job.spec.to_dict())
        final = self._runner.run(run, watch)
        while True:
            try:
                return self._settle(job, final, closing=self._closing)
            except StudioError:            # the disk is too full for the list of jobs: what was done is noted as soon as it can be
                log.exception("the end of job %s", job.id)
                with self._wake:
                    if self._closing:      # the next studio finds it in the job's folder
                        raise
                    self._wake.wait_for(lambda: self._closing, RETRY_AFTER)

    def _heard(self, id: int, event: events.Event) -> None:
        if isinstance(event, events.Saved):
            try:
                self._store.note_step(id, event.step)
            except StudioError:            # its own log knows it too: no reason to end a training
                log.exception("step %s of job %s", event.step, id)
        self._tell(JobEvent(id, event))

    def _settle(self, job: Job, final: events.Event, closing: bool = False) -> None:
        """The state that follows from a job's last event."""
        match final:
            case events.Finished():
                self._change(job.id, State.FINISHED, result=final.result)
            case events.Stopped(reason="pause") if closing:
                self._change(job.id, State.INTERRUPTED, step=final.step, error=_interrupted("The studio was closed.", final.step))
            case events.Stopped(reason="pause"):
                self._change(job.id, State.PAUSED, step=final.step)
            case events.Stopped():
                self._change(job.id, State.CANCELLED, step=final.step)
            case events.Failed() if final.error.get("code") in PASSING and (step := last_step(RunFolder(job.folder))) is not None:
                self._change(job.id, State.INTERRUPTED, step=step, error=final.error)
            case _:
                self._change(job.id, State.FAILED, error=getattr(final, "error", {}))

    def _settle_lost(self, job: Job) -> None:
        """A job that ran when the last studio ended, and whose process is gone."""
        run = RunFolder(job.folder)
        final = run.outcome()
        if final is None:
            step = last_step(run)
            self._change(job.id, State.INTERRUPTED, step=step, error=_interrupted("The studio or the computer stopped.", step))
        else:
            self._settle(job, final, closing=True)

    def _end_orphan(self, job: Job) -> None:
        """The child of a dead studio saves and ends by itself; if it does not, end it. Then tell what became of its job."""
        process = self._store.process(job.id)
        until = time.monotonic() + ORPHAN_GRACE
        while process is not None and lives(*process):
            if time.monotonic() > until or self._closing:
                try:
                    psutil.Process(process[0]).kill()
                except psutil.Error:
                    log.debug("the orphan %s had just ended", process[0])
            time.sleep(0.05)
        self._settle_lost(job)


def _interrupted(what: str, step: int | None) -> dict:
    goes_on = f"It resumes at step {step}." if step else "It begins anew when you continue it."
    return WorkerDied(what, "The job was not done yet.", goes_on).to_dict()


def open_queue(home: Home, runner: Runner) -> JobQueue:
    """A queue over the home's own database, not started yet."""
    return JobQueue(home.prepare(), JobStore(home.database), runner)

