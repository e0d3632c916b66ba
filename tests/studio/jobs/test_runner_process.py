"""Jobs in a real child process: it may crash, hang or be killed; nothing that a checkpoint held is lost, cancel always works."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import psutil
import pytest

from engine import events
from studio.jobs.job import State
from tests.studio.jobs.conftest import heard

posix = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")


def settled(queue, id):
    return lambda: None if queue.job(id).active else queue.job(id)


def child_of(queue, job, until):
    return psutil.Process(until(lambda: queue._store.process(job.id))[0])


def test_a_job_runs_in_a_child_that_is_gone_afterwards(queues, plan, until):
    queue = queues()
    job = queue.submit(plan("steps=5"), "x")
    child = child_of(queue, job, until)
    assert child.pid != os.getpid()
    done = until(settled(queue, job.id))
    assert done.state is State.FINISHED and done.step == 3
    assert [e.step for e in heard(queue, events.Step)] == [1, 2, 3, 4, 5]
    until(lambda: not child.is_running())


def test_an_error_crosses_the_border_whole(queues, plan, until):
    queue = queues()
    job = until(settled(queue, queue.submit(plan("raise"), "x").id))
    assert job.state is State.FAILED and job.error["code"] == "bad-data" and job.error["do"] == "Choose another one."


def test_pause_and_resume_give_the_bytes_of_an_undisturbed_run(queues, plan, until):
    queue = queues()
    straight = queue.submit(plan("steps=30", out="straight"), "straight")
    until(settled(queue, straight.id))
    queue.drain()
    broken = queue.submit(plan("steps=30 pace=0.02", out="broken"), "broken")
    until(lambda: heard(queue, events.Step))
    queue.pause(broken.id)
    assert until(settled(queue, broken.id)).state is State.PAUSED
    queue.resume(broken.id)
    assert until(settled(queue, broken.id)).state is State.FINISHED
    assert (Path(straight.spec.out) / "adapter.txt").read_bytes() == (Path(broken.spec.out) / "adapter.txt").read_bytes()


@posix
def test_killed_at_random_moments_it_resumes_to_the_same_bytes(queues, plan, until):
    queue, dice = queues(), random.Random(5)
    straight = queue.submit(plan("steps=40", out="straight"), "straight")
    until(settled(queue, straight.id))
    queue.drain()
    job = queue.submit(plan("steps=40 pace=0.005", out="broken"), "broken")
    for _ in range(4):
        child = child_of(queue, job, until)
        wanted = queue.events(job.id)[-1].seq + dice.randint(4, 12) if queue.events(job.id) else dice.randint(4, 12)
        until(lambda wanted=wanted: not queue.job(job.id).active or [e for e in heard(queue) if e.seq >= wanted])
        child.kill()
        stopped = until(settled(queue, job.id))
        if stopped.state is State.FINISHED:
            break
        assert stopped.state is State.INTERRUPTED and f"resumes at step {stopped.step}" in stopped.error["do"]
        assert "ended" in stopped.error["what"] and stopped.error["facts"]["exit_code"] == -signal.SIGKILL
        queue.resume(job.id)
        until(lambda: queue.job(job.id).state is not State.WAITING)
    assert until(settled(queue, job.id)).state is State.FINISHED
    assert (Path(straight.spec.out) / "adapter.txt").read_bytes() == (Path(job.spec.out) / "adapter.txt").read_bytes()
    steps = [e.step for e in queue.events(job.id) if isinstance(e, events.Step)]
    assert set(steps) == set(range(1, 41)) and len({e.seq for e in queue.events(job.id)}) == len(queue.events(job.id))


def test_a_crash_before_the_first_checkpoint_is_a_failure_that_can_be_tried_again(queues, plan, until, home):
    queue = queues()
    job = until(settled(queue, queue.submit(plan("crash steps=2"), "x").id))
    assert job.state is State.FINISHED                          # it ended before the crash
    job = until(settled(queue, queue.submit(plan("crash steps=9"), "y").id))
    assert job.state is State.INTERRUPTED and job.step == 3 and job.error["facts"]["exit_code"] == 3


@pytest.mark.parametrize("deaf", [False, True])
def test_cancel_works_on_a_job_that_hears_nothing(queues, plan, until, deaf, monkeypatch):
    queue = queues(grace=0.2, insist=0.3)
    job = queue.submit(plan("hang"), "x")
    until(lambda: heard(queue, events.Note))
    if deaf:                                                    # not even the terminate signal reaches it
        monkeypatch.setattr("studio.jobs.child.WorkerChild.terminate", lambda self: None)
    queue.cancel(job.id)
    assert until(settled(queue, job.id)).state is State.CANCELLED
    rungs = [e.text for e in queue.events(job.id) if isinstance(e, events.Note) and e.level == "warning"]
    assert len(rungs) == 1 + deaf and "did not stop" in rungs[0]
    assert [e.text for e in heard(queue, events.Note)][:len(rungs)] == rungs


def test_a_cancelled_job_that_could_not_be_told_and_was_ended_is_cancelled(queues, plan, until, monkeypatch):
    def full(run, request):
        raise OSError(28, "No space left on device")

    queue = queues(grace=0.2, insist=0.3)
    job = queue.submit(plan("hang"), "x")
    until(lambda: heard(queue, events.Note))
    monkeypatch.setattr("engine.store.runs.RunFolder.ask", full)
    queue.cancel(job.id)
    assert until(settled(queue, job.id)).state is State.CANCELLED


def test_closing_while_a_job_hangs_ends_it_too(queues, plan, until, home):
    queue = queues(grace=0.2, insist=0.3)
    job = queue.submit(plan("hang"), "x")
    child = child_of(queue, job, until)
    until(lambda: heard(queue, events.Note))
    queue.close()
    assert not child.is_running()
    assert queues().job(job.id).state is State.INTERRUPTED


def test_a_program_that_cannot_be_started_fails_the_job_with_a_sentence(queues, plan, until, home):
    from studio.jobs.runner_process import ProcessRunner

    queue = queues(ProcessRunner(home.root / "worker.log", argv=[str(home.root / "no-such-program")]))
    job = until(settled(queue, queue.submit(plan(), "x").id))
    assert job.state is State.FAILED and "could not be started" in job.error["what"]


def test_a_warm_child_that_died_while_waiting_is_replaced(queues, plan, until, home):
    queue = queues()
    queue._runner.warm()
    warm = queue._runner._next[0]
    warm.kill()
    warm.wait()
    assert until(settled(queue, queue.submit(plan(), "x").id)).state is State.FINISHED
