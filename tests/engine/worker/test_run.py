"""Whatever a job does, its folder tells it, and the last word is always final."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from engine import events, specs
from engine.errors import BadData, Busy, Cancelled, InvalidSpec
from engine.store.lock import FileLock
from engine.store.record import last_step, record
from engine.store.runs import RunFolder
from engine.worker import run as worker_run

SPEC = specs.TrainSpec("base", "data", "out")


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "run", SPEC)


happenings = strategies.lists(strategies.sampled_from([
    events.Progress("x"), events.Saved(3, "c"), events.Note("n"), events.Finished({"a": 1}), events.Stopped("pause", True, 3),
    BadData("No.", do="Yes."), OSError(28, "full"), ValueError("x"), MemoryError(), Cancelled()]), max_size=6)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happenings)
def test_one_final_event_and_it_is_the_last(run, steps):
    def job(spec, folder):
        for step in steps:
            if isinstance(step, BaseException):
                raise step
            yield step

    before = len(list(run.events()))
    told = list(record(job, SPEC, run))
    assert [e.final for e in told] == [False] * (len(told) - 1) + [True]
    assert list(run.events())[before:] == told and run.outcome() == told[-1]
    assert [e.seq for e in run.events()] == list(range(1, before + len(told) + 1))
    first_end = next((s for s in steps if isinstance(s, BaseException) or s.final), None)
    if isinstance(first_end, Cancelled):
        assert isinstance(told[-1], events.Stopped) and told[-1].step == last_step(run)
    elif isinstance(first_end, BaseException) or first_end is None:
        assert isinstance(told[-1], events.Failed) and told[-1].error["what"]


def test_two_processes_never_work_in_one_folder(run):
    with FileLock(run.path / "lock", "taken"), pytest.raises(Busy):
        list(record(lambda spec, folder: iter([events.Finished({})]), SPEC, run, wait=0.1))
    assert list(run.events()) == []
    assert len(list(record(lambda spec, folder: iter([events.Finished({})]), SPEC, run))) == 1


def test_a_log_that_cannot_be_written_is_told_to_whoever_listens(run, monkeypatch):
    def full(self, event):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.store.runs.EventLog.write", full)
    told = list(record(lambda spec, folder: iter([events.Finished({})]), SPEC, run))
    assert [e.error["code"] for e in told] == ["disk-full"]


def test_a_spec_is_checked_before_any_work(run):
    told = list(worker_run.run_job(specs.TrainSpec("base", "data", "out", passes=-1.0), run))
    assert told[-1].error["code"] == "invalid-spec"
    with pytest.raises(InvalidSpec):
        worker_run.run_job(specs.DescribeData("x"), run)


@pytest.mark.parametrize("kind", sorted(worker_run.JOBS))
def test_every_job_of_the_specs_is_dispatched_and_can_be_imported(kind):
    assert set(worker_run.JOBS) == set(specs.JOB_KINDS)
    assert callable(worker_run.resolve(worker_run.JOBS[kind]))
