"""The queue with jobs in this very process: order, requests, recovery, one studio a home."""

from __future__ import annotations

import itertools
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine import events
from engine.errors import Busy, DiskFull, Diverged, InvalidSpec, StudioError
from engine.store.runs import EventLog, RunFolder
from studio.jobs.job import State
from studio.jobs.queue import JobChanged, JobRemoved, open_queue
from studio.jobs.runner import InlineRunner
from studio.jobs.store import JobStore
from tests.studio.jobs.conftest import heard


class Gate:
    """A job that stands still until it is let on, and obeys requests."""

    def __init__(self):
        self.go, self.reached, self.order = threading.Event(), threading.Event(), []

    def __call__(self, spec, run):
        self.order.append(Path(spec.out).name)
        yield events.Saved(7, "somewhere")
        self.reached.set()
        while not self.go.wait(0.005):
            for reason in ("pause", "cancel"):
                if run.asked(reason):
                    yield events.Stopped(reason, resumable=True, step=7)
                    return
        yield events.Finished({"adapter": spec.out})


@pytest.fixture
def gate():
    return Gate()


def settled(queue, id):
    return lambda: None if queue.job(id).active else queue.job(id)


def test_jobs_run_one_at_a_time_in_their_order(queues, plan, gate, until):
    queue = queues(InlineRunner(gate))
    first, second, third = (queue.submit(plan(out=name), name) for name in "abc")
    gate.reached.wait(5)
    assert [queue.job(j.id).state for j in (first, second, third)] == [State.RUNNING, State.WAITING, State.WAITING]
    queue.move(third.id, 0)
    gate.go.set()
    until(lambda: all(job.state is State.FINISHED for job in queue.jobs()))
    assert gate.order == ["a", "c", "b"]


@pytest.mark.parametrize("request_, state", [("pause", State.PAUSED), ("cancel", State.CANCELLED)])
def test_a_running_job_stops_as_asked_and_goes_on_when_resumed(queues, plan, gate, until, request_, state):
    queue = queues(InlineRunner(gate))
    job = queue.submit(plan(), "x")
    gate.reached.wait(5)
    getattr(queue, request_)(job.id)
    stopped = until(settled(queue, job.id))
    assert stopped.state is state and stopped.can_resume and stopped.step == 7
    gate.go.set()
    queue.resume(job.id)
    done = until(lambda: queue.job(job.id) if queue.job(job.id).state is State.FINISHED else None)
    assert done.attempt == 2 and done.result == {"adapter": job.spec.out}


@pytest.mark.parametrize("saved, goes_on", [(7, True), (0, False)])
def test_what_was_saved_before_it_was_stopped_can_be_kept(queues, plan, until, saved, goes_on):
    def learning(spec, run):
        if run.asked("finish"):
            yield events.Finished({"adapter": spec.out})
        else:
            yield events.Stopped("pause", resumable=True, step=saved)
    queue = queues(InlineRunner(learning))
    job = queue.submit(plan(), "x")
    stopped = until(settled(queue, job.id))
    assert stopped.state is State.PAUSED and stopped.can_finish is goes_on
    queue.finish(job.id)
    assert until(settled(queue, job.id)).state is (State.FINISHED if goes_on else State.PAUSED)
    assert RunFolder(job.folder).asked("finish") is goes_on and queue.job(job.id).attempt == 1 + goes_on


def test_time_is_added_while_it_runs_and_while_it_is_paused_but_not_afterwards(queues, plan, gate, until):
    queue = queues(InlineRunner(gate))
    job = queue.submit(plan(), "x")
    gate.reached.wait(5)
    queue.extend(job.id, 1.5)
    queue.pause(job.id)
    assert until(settled(queue, job.id)).state is State.PAUSED
    queue.extend(job.id, 1)
    gate.go.set()
    queue.resume(job.id)
    assert until(settled(queue, job.id)).state is State.FINISHED and RunFolder(job.folder).extended == 2.5
    with pytest.raises(Busy, match="finished"):
        queue.extend(job.id, 1)
    assert RunFolder(job.folder).extended == 2.5


def test_a_training_that_ran_away_goes_on_at_half_the_speed(queues, plan, until):
    def fragile(spec, run):
        yield events.Saved(3, "c")
        if run.slowed < 2:
            raise Diverged("It ran away.", do="Go on with half the speed.", good=3)
        yield events.Finished({"adapter": spec.out})

    queue = queues(InlineRunner(fragile))
    job = queue.submit(plan(), "x")
    for _ in range(2):
        stopped = until(settled(queue, job.id))
        assert stopped.state is State.FAILED and stopped.error["facts"]["good"] == 3
        queue.slow_down(job.id)
    assert until(settled(queue, job.id)).state is State.FINISHED
    with pytest.raises(Busy):
        queue.slow_down(job.id)
    assert RunFolder(job.folder).slowed == 2


def test_a_full_disk_interrupts_what_has_been_saved_and_fails_what_has_not(queues, plan, until):
    full = [True, True]

    def work(spec, run):
        if spec.data == "saved":
            yield events.Saved(4, "c")
        if full:
            full.pop()
            raise DiskFull("The disk is full.", do="Free some space.")
        yield events.Finished({"adapter": spec.out})

    queue = queues(InlineRunner(work))
    saved, not_saved = queue.submit(plan("saved", "a"), "a"), queue.submit(plan("nothing", "b"), "b")
    first, second = until(settled(queue, saved.id)), until(settled(queue, not_saved.id))
    assert (first.state, first.step) == (State.INTERRUPTED, 4) and first.error["do"] == "Free some space." and second.state is State.FAILED
    queue.resume(saved.id)
    assert until(settled(queue, saved.id)).state is State.FINISHED


def test_a_checkpoint_that_cannot_be_noted_does_not_end_its_training(queues, plan, gate, until, monkeypatch):
    def full(id, step):
        raise DiskFull("The disk is full.")

    queue = queues(InlineRunner(gate))
    monkeypatch.setattr(queue._store, "note_step", full)
    gate.go.set()
    job = queue.submit(plan(), "x")
    assert until(settled(queue, job.id)).state is State.FINISHED


@pytest.mark.parametrize("request_, state", [("pause", State.PAUSED), ("cancel", State.CANCELLED)])
def test_a_waiting_job_stops_at_once_and_never_runs(queues, plan, gate, until, request_, state):
    queue = queues(InlineRunner(gate))
    busy, waiting = queue.submit(plan(out="a"), "a"), queue.submit(plan(out="b"), "b")
    gate.reached.wait(5)
    getattr(queue, request_)(waiting.id)
    assert queue.job(waiting.id).state is state
    gate.go.set()
    until(settled(queue, busy.id))
    assert gate.order == ["a"]


def test_a_failure_is_told_and_the_next_job_runs(queues, plan, until):
    def work(spec, run):
        yield events.Progress("starting")
        if Path(spec.out).name == "bad":
            raise OSError(28, "No space left on device")
        yield events.Finished({})

    queue = queues(InlineRunner(work))
    bad, good = queue.submit(plan(out="bad"), "bad"), queue.submit(plan(out="good"), "good")
    until(settled(queue, good.id))
    assert queue.job(bad.id).state is State.FAILED and queue.job(bad.id).error["code"] == "disk-full"
    assert queue.job(good.id).state is State.FINISHED
    assert isinstance(queue.events(bad.id)[-1], events.Failed)


def test_a_folder_that_cannot_be_used_fails_its_job_only(queues, plan, gate, until):
    queue = queues(InlineRunner(gate))
    busy, lost = queue.submit(plan(out="a"), "a"), queue.submit(plan(out="b"), "b")
    gate.reached.wait(5)
    lost.folder.rmdir()
    lost.folder.write_text("something else")
    gate.go.set()
    assert until(settled(queue, lost.id)).state is State.FAILED
    assert queue.job(busy.id).state is State.FINISHED


def test_the_queue_outlives_its_own_failures(queues, plan, gate, until, monkeypatch):
    monkeypatch.setattr("studio.jobs.queue.RETRY_AFTER", 0.01)
    monkeypatch.setattr("studio.jobs.queue.WARM_AFTER", 0.0)
    queue, failures = queues(InlineRunner(gate)), iter([StudioError("The disk said no."), sqlite3.OperationalError("disk I/O error")])
    next_waiting = queue._store.next_waiting

    def sometimes():
        for error in failures:
            raise error
        return next_waiting()

    monkeypatch.setattr(queue._store, "next_waiting", sometimes)
    monkeypatch.setattr(queue._runner, "warm", lambda: (_ for _ in ()).throw(StudioError("No process.")))
    gate.go.set()
    assert until(settled(queue, queue.submit(plan(), "x").id)).state is State.FINISHED


def test_a_job_whose_end_cannot_be_noted_at_first_has_not_failed(queues, plan, gate, until, monkeypatch):
    monkeypatch.setattr("studio.jobs.queue.RETRY_AFTER", 0.01)
    queue, full = queues(InlineRunner(gate)), [True, True]
    change = queue._store.change

    def sometimes(id, target, **facts):
        if target is State.FINISHED and full:
            full.pop()
            raise DiskFull("The disk is full.")
        return change(id, target, **facts)

    monkeypatch.setattr(queue._store, "change", sometimes)
    gate.go.set()
    job = queue.submit(plan(), "x")
    assert until(settled(queue, job.id)).state is State.FINISHED and not full


def test_the_end_of_a_job_that_cannot_be_noted_keeps_no_studio_open(queues, plan, gate, until, monkeypatch):
    queue, tried = queues(InlineRunner(gate)), threading.Event()
    change = queue._store.change

    def full(id, target, **facts):
        if target is State.RUNNING:
            return change(id, target, **facts)
        tried.set()
        raise DiskFull("The disk is full.")

    monkeypatch.setattr(queue._store, "change", full)
    monkeypatch.setattr(queue._store, "note_process", lambda *process: None)   # it is this very process, which shall not be taken for an orphan
    gate.go.set()
    job = queue.submit(plan(), "x")
    assert tried.wait(5)
    queue.close()
    assert queues(InlineRunner(gate)).job(job.id).state is State.FINISHED


def test_news_tell_every_event_once_and_in_order(queues, plan, until):
    def work(spec, run):
        yield from (events.Step(n, 50, 1.0, 1e-3, 1, 1.0, 1.0) for n in range(1, 51))
        yield events.Finished({})

    queue = queues(InlineRunner(work))
    job = queue.submit(plan(), "x")
    until(settled(queue, job.id))
    assert [e.step for e in heard(queue, events.Step)] == list(range(1, 51))
    assert queue.drain() == []
    stored = queue.events(job.id)
    assert [e.seq for e in stored] == list(range(1, 52)) and queue.events(job.id, after=50) == stored[50:]


def test_removing_forgets_the_job_and_its_folder_but_not_its_result(queues, plan, gate, until):
    queue = queues(InlineRunner(gate))
    gate.go.set()
    job = queue.submit(plan(), "x")
    Path(job.spec.out).mkdir()
    until(settled(queue, job.id))
    queue.drain()
    queue.remove(job.id)
    assert queue.jobs() == [] and not job.folder.exists() and Path(job.spec.out).exists()
    assert queue.drain() == [JobRemoved(job.id)]
    with pytest.raises(StudioError):
        queue.job(job.id)


def test_an_impossible_spec_is_refused_and_leaves_nothing(queues, plan, gate, home):
    queue = queues(InlineRunner(gate))
    with pytest.raises(InvalidSpec):
        queue.submit(plan(passes=-1.0), "x")
    assert queue.jobs() == [] and list(home.runs.iterdir()) == []


def test_one_home_holds_one_studio(queues, home, gate):
    first = queues(InlineRunner(gate))
    second = open_queue(home, InlineRunner(gate))
    with pytest.raises(Busy, match="already open"):
        second.start()
    second.close()
    first.close()
    queues(InlineRunner(gate))


def test_the_lock_of_a_dead_studio_is_taken_over(queues, home, gate):
    code = ("import os, sys; from pathlib import Path; from engine.store.home import Home; from studio.jobs.queue import open_queue\n"
            "from studio.jobs.runner import InlineRunner\n"
            "open_queue(Home(Path(sys.argv[1])), InlineRunner(None)).start(); os._exit(9)")
    assert subprocess.run([sys.executable, "-c", code, str(home.root)], cwd=Path(__file__).parents[3]).returncode == 9
    assert (home.root / "studio.lock").exists()
    queues(InlineRunner(gate))


def test_closing_interrupts_and_says_where_it_goes_on(queues, plan, gate):
    queue = queues(InlineRunner(gate))
    job = queue.submit(plan(), "x")
    gate.reached.wait(5)
    queue.close()
    again = queues(InlineRunner(gate))
    assert again.job(job.id).state is State.INTERRUPTED and "step 7" in again.job(job.id).error["do"]


@pytest.mark.parametrize("last, state", [
    (None, State.INTERRUPTED), (events.Finished({"adapter": "x"}), State.FINISHED),
    (events.Failed({"code": "bad-data", "what": "No."}), State.FAILED),
    (events.Stopped("pause", True, 3), State.INTERRUPTED), (events.Stopped("cancel", True, 3), State.CANCELLED)])
def test_what_a_dead_studio_left_running_is_told_from_its_folder(queues, home, plan, gate, last, state):
    store = JobStore(home.database)
    run = RunFolder.create(home.runs / "old", plan())
    with EventLog(run) as log:
        log.write(events.Saved(3, "x"))
        if last is not None:
            log.write(last)
    job = store.change(store.add(plan(), "old", run.path).id, State.RUNNING)
    store.note_process(job.id, 2**22 - 3, 1.0)
    store.close()
    queue = queues(InlineRunner(gate))
    assert queue.job(job.id).state is state
    assert [n.job.state for n in queue.drain() if isinstance(n, JobChanged)] == [state]
    if state is State.INTERRUPTED:
        assert queue.job(job.id).step == 3 and "resumes at step 3" in queue.job(job.id).error["do"]


def test_requests_of_the_last_attempt_do_not_stop_the_next(queues, plan, gate, until):
    queue = queues(InlineRunner(gate))
    job = queue.submit(plan(), "x")
    gate.reached.wait(5)
    queue.cancel(job.id)
    queue.pause(job.id)
    until(settled(queue, job.id))
    assert RunFolder(job.folder).asked("cancel")
    gate.go.set()
    queue.resume(job.id)
    assert until(settled(queue, job.id)).state is State.FINISHED


def test_two_jobs_of_one_title_get_folders_of_their_own(queues, plan, gate):
    queue = queues(InlineRunner(gate))
    folders = [queue.submit(plan(), title).folder for title in ("Shop", "Shop", "../../Shop", "CON", "")]
    assert len(set(folders)) == 5 and all(f.parent == queue.home.runs and f.is_dir() for f in folders)
    for one, other in itertools.combinations(folders, 2):
        assert one not in other.parents
    gate.go.set()


@pytest.mark.parametrize("way", ["cancel", "close"])
def test_a_disk_that_takes_no_request_keeps_no_job_from_stopping(queues, plan, gate, until, monkeypatch, way):
    def full(run, request):
        gate.go.set()
        raise OSError(28, "No space left on device")

    queue = queues(InlineRunner(gate))
    job = queue.submit(plan(), "x")
    gate.reached.wait(5)
    watch = queue._watch
    monkeypatch.setattr(RunFolder, "ask", full)
    queue.cancel(job.id) if way == "cancel" else queue.close()
    assert watch.stop == ("cancel" if way == "cancel" else "pause")
    if way == "close":
        queues(InlineRunner(gate))         # the home was given back


@pytest.mark.parametrize("request_", ["pause", "sample", "finish"])
def test_a_request_that_cannot_be_written_is_told_in_a_sentence(queues, plan, gate, monkeypatch, request_):
    def full(run, request):
        raise OSError(28, "No space left on device")

    queue = queues(InlineRunner(gate))
    job = queue.submit(plan(), "x")
    gate.reached.wait(5)
    monkeypatch.setattr(RunFolder, "ask", full)
    try:
        with pytest.raises(DiskFull):
            getattr(queue, request_)(job.id)
    finally:
        gate.go.set()
