"""The table of jobs: only allowed changes, none lost, sound after any kill."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from engine import specs
from engine.errors import Busy, StudioError
from studio.jobs.job import TRANSITIONS, State
from studio.jobs.store import JobStore

SPEC = specs.FetchSpec(out="here")


@pytest.fixture
def store(tmp_path):
    store = JobStore(tmp_path / "studio.db")
    yield store
    store.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(targets=strategies.lists(strategies.sampled_from(State), max_size=12))
def test_only_allowed_changes_are_ever_written(store, targets):
    job = store.add(SPEC, "any", Path("runs/any"))
    for target in targets:
        if target in TRANSITIONS[job.state]:
            before, job = job, store.change(job.id, target)
            assert job.state is target and job.attempt == before.attempt + (target is State.RUNNING)
        else:
            with pytest.raises(Busy):
                store.change(job.id, target)
        assert store.job(job.id) == job


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=strategies.lists(strategies.tuples(strategies.integers(0, 4), strategies.integers(-2, 8)), max_size=6))
def test_moving_is_what_a_list_does(store, moves):
    for job in store.jobs():
        store.remove(job.id)
    ids = [store.add(SPEC, str(n), Path(str(n))).id for n in range(5)]
    for which, place in moves:
        moved = ids.pop(which)
        ids.insert(max(0, place), moved)
        store.move(moved, place)
        assert [job.id for job in store.jobs()] == ids
    assert [job.position for job in store.jobs()] == sorted({job.position for job in store.jobs()})


def test_every_state_can_be_reached_and_only_finished_is_the_end():
    reached = {State.WAITING}
    for _ in State:
        reached |= {target for state in reached for target in TRANSITIONS[state]}
    assert reached == set(State)
    assert [state for state in State if not TRANSITIONS[state]] == [State.FINISHED]


def test_a_job_comes_back_as_it_was(tmp_path, store):
    spec = specs.ExportSpec(base="b", out="o", stack=[specs.StackEntry("a", 0.5)], prompts=["Grüße?"])
    job = store.add(spec, "Täglich", tmp_path / "run")
    store.change(job.id, State.RUNNING)
    store.note_process(job.id, 4242, 17.5)
    job = store.change(job.id, State.FINISHED, result={"path": "o", "verified": True})
    again = JobStore(store.path)
    assert again.job(job.id) == job and again.job(job.id).spec == spec and again.process(job.id) == (4242, 17.5)
    again.close()


def test_a_running_job_cannot_be_removed(store):
    job = store.change(store.add(SPEC, "x", Path("x")).id, State.RUNNING)
    with pytest.raises(Busy):
        store.remove(job.id)
    assert store.job(job.id) == job


def test_a_database_of_a_newer_studio_is_refused_and_left_alone(tmp_path):
    JobStore(tmp_path / "studio.db").close()
    with sqlite3.connect(tmp_path / "studio.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StudioError, match="newer"):
        JobStore(tmp_path / "studio.db")


def test_a_file_that_is_no_database_is_told_in_a_sentence(tmp_path):
    (tmp_path / "studio.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StudioError, match="cannot be opened"):
        JobStore(tmp_path / "studio.db")


@pytest.mark.parametrize("newer", ["spec = '{\"kind\": \"holiday\"}'", "state = 'dreaming'", "result = 'x'"])
def test_a_job_of_a_newer_studio_is_kept_though_it_cannot_be_shown(store, newer):
    store.add(SPEC, "x", Path("x"))
    with sqlite3.connect(store.path) as db:
        db.execute(f"UPDATE jobs SET {newer}")
    db.close()
    assert store.jobs() == []
    with sqlite3.connect(store.path) as db:
        assert db.execute("SELECT COUNT(*) FROM jobs").fetchone() == (1,)
    db.close()


WRITER = """
import sys
from pathlib import Path
from engine import specs
from studio.jobs.job import State
from studio.jobs.store import JobStore
store = JobStore(sys.argv[1])
while True:
    job = store.add(specs.FetchSpec(out="x"), "x", Path("x"))
    store.change(job.id, State.RUNNING)
    store.change(job.id, State.FINISHED, result={"n": job.id})
    print(job.id, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_kill_nine_in_the_middle_of_writing_loses_nothing_that_was_confirmed(tmp_path):
    confirmed = 0
    for lines in (1, 40, 7):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "studio.db")], stdout=subprocess.PIPE, text=True,
                                  cwd=Path(__file__).parents[3])
        for _ in range(lines):
            confirmed = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        store = JobStore(tmp_path / "studio.db")
        finished = {job.id for job in store.jobs() if job.state is State.FINISHED and job.result == {"n": job.id}}
        assert set(range(1, confirmed + 1)) <= finished | {job.id for job in store.jobs() if job.state is not State.FINISHED}
        assert confirmed in finished
        assert store._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        store.close()


def test_a_job_that_is_removed_as_soon_as_it_has_ended_was_changed_all_the_same(store, monkeypatch):
    """The window's thread removes what the worker's thread has just ended."""
    job = store.add(SPEC, "any", Path("runs/any"))
    store.change(job.id, State.RUNNING)
    transaction = JobStore._transaction

    @contextlib.contextmanager
    def then_removed(self):
        with transaction(self) as db:
            yield db
        monkeypatch.undo()
        self.remove(job.id)

    monkeypatch.setattr(JobStore, "_transaction", then_removed)
    assert store.change(job.id, State.FINISHED, result={}).state is State.FINISHED
