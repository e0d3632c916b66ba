"""Time that was added, speed that was halved, an end that came early: the run and its rebuild follow them to the last bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DamagedCheckpoint
from engine.events import Evaluated, Finished, Note, Step
from engine.specs import RebuildSpec
from engine.store.recipe import read_recipe
from engine.store.record import record
from engine.store.runs import RunFolder
from engine.train import train
from engine.train.batching import Schedule
from engine.train.course import FILE, Course, Turn
from engine.train.loop import evaluation_points
from engine.train.optim import speed_at
from engine.train.rebuild import rebuild

ROOT = Path(__file__).parents[3]
CHILD = """
import os, signal, sys
from engine.events import Step
from engine.store.record import record
from engine.store.runs import RunFolder
from engine.train import train
run = RunFolder(sys.argv[1])
for event in record(train, run.spec(), run):
    if isinstance(event, Step) and event.step == 5:
        run.extend(1.5)
    if isinstance(event, Step) and event.step == 14:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def course(tmp_path, *turns, steps=40, warmup=0.05) -> Course:
    made = Course(tmp_path, Schedule([5] * 40, 4, steps / 10, 0), warmup)
    made.turns = sorted(Turn(*turn) for turn in turns)
    return made


def weights(out) -> bytes:
    return (Path(out) / "adapter_model.safetensors").read_bytes()


def go(spec, path, ask_at: int, ask, stop_at: int = 0) -> list:
    """Carry a run out, ask something of it after a step, and let it drop dead (nothing is saved) after another."""
    run = RunFolder(path) if Path(path).exists() else RunFolder.create(path, spec)
    told, job = [], train(spec, run)
    for event in job:
        told.append(event)
        if isinstance(event, Step) and event.step == ask_at:
            ask(run)
        if isinstance(event, Step) and event.step == stop_at:
            job.close()
    return told


# --- the curve ---

@given(at=st.integers(0, 40), passes=st.floats(0.1, 9), warmup=st.floats(0, 0.5))
def test_the_speed_goes_over_to_that_of_the_longer_run_without_a_jump(tmp_path_factory, at, passes, warmup):
    folder = tmp_path_factory.getbasetemp()
    longer = course(folder, (at, "extend", passes), warmup=warmup)
    steps = longer.steps(at)
    assert steps == 40 + Schedule([5] * 40, 4, 1, 0).steps_in(passes) and longer.steps(at - 1) == 40
    rise = max(1, round(steps * warmup))
    for step in range(steps):
        if step < at:
            assert longer.speed(step) == speed_at(step, 40, warmup), "what has been done is not touched"
        elif step >= at + rise:
            assert longer.speed(step) == pytest.approx(speed_at(step, steps, warmup))
        else:
            low, high = sorted((speed_at(step, 40, warmup), speed_at(step, steps, warmup)))
            assert low - 1e-12 <= longer.speed(step) <= high + 1e-12


def test_half_the_speed_is_half_from_there_on_and_twice_is_a_quarter(tmp_path):
    slower = course(tmp_path, (10, "slow", 0.5), (20, "slow", 0.5))
    assert [slower.speed(k) / speed_at(k, 40, 0.05) for k in (9, 10, 19, 20, 39)] == pytest.approx([1, 0.5, 0.5, 0.25, 0.25])


@given(rows=st.integers(1, 300), tested=st.integers(1, 60), passes=st.floats(0.1, 20), more=st.integers(1, 500))
def test_added_time_is_tested_at_the_same_distances(rows, tested, passes, more):
    schedule = Schedule([10] * rows, 8, passes, 0)
    steps = len(schedule) + more
    usual, longer = evaluation_points(schedule, [10] * tested), evaluation_points(schedule, [10] * tested, steps)
    assert usual <= longer and max(longer) == steps and evaluation_points(schedule, [], steps) == set()
    assert len(longer) - 1 <= (len(usual) - 1) * steps / len(schedule) + 1


# --- what is wished for ---

def test_a_wish_is_heard_once_however_often_it_is_looked_for(tmp_path):
    run = RunFolder(tmp_path)
    run.extend(0.5)
    run.extend(1)
    run.slow_down()
    made = Course(tmp_path, Schedule([5] * 40, 4, 4, 0), 0.05)
    made.hear(7, run)
    made.hear(8, run)
    assert made.turns == [(7, "extend", 1.5), (7, "slow", 0.5)] == Course(tmp_path, Schedule([5] * 40, 4, 4, 0), 0.05).turns
    run.extend(1)
    run.slow_down()
    made.hear(3, run)                      # gone back to an older checkpoint meanwhile: what comes later still comes
    assert made.at(3) == [(3, "extend", 1.0), (3, "slow", 0.5)] and made.steps(7) == 40 + 15 + 10 and made.steps(6) == 50


def test_turns_that_cannot_be_read_are_said(tmp_path):
    (tmp_path / FILE).write_text('[[1, "extend"]]')
    with pytest.raises(DamagedCheckpoint, match="decided"):
        Course(tmp_path, Schedule([5] * 40, 4, 4, 0), 0.05)


# --- whole runs ---

@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_time_is_added_then_kill_9_and_the_file_is_the_same(make_spec, tmp_path):
    straight = make_spec(out=str(tmp_path / "straight"))
    told = go(straight, tmp_path / "a", 5, lambda run: run.extend(1.5))
    errors = {e.step: e.error for e in told if isinstance(e, Step)}
    assert max(errors) == 18 and [e.steps for e in told if isinstance(e, Step)][4:6] == [12, 18] and told[-1].result["steps"] == 18
    assert any("1.5 passes more, 18 steps" in e.text and e.step == 5 for e in told if isinstance(e, Note))
    assert {e.step for e in told if isinstance(e, Evaluated)} > {12, 18}

    spec = make_spec()
    run = RunFolder.create(tmp_path / "b", spec)
    child = subprocess.run([sys.executable, "-c", CHILD, str(run.path)], cwd=ROOT, stderr=subprocess.DEVNULL,
                           env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": str(ROOT)})
    assert child.returncode == -signal.SIGKILL and run.outcome() is None
    assert isinstance(list(record(train, spec, run))[-1], Finished)
    assert all(e.error == errors[e.step] for e in run.events() if isinstance(e, Step)) and weights(spec.out) == weights(straight.out)


@pytest.mark.parametrize("dead_at", [5, 6, 11])
def test_dropping_dead_before_anything_was_saved_changes_nothing(make_spec, tmp_path, monkeypatch, dead_at):
    monkeypatch.setattr("engine.train.loop.Training._save_is_due", lambda self: self.step == 3 and self._saved_step != 3)
    straight, spec = make_spec(out=str(tmp_path / "straight")), make_spec()
    go(straight, tmp_path / "a", 5, lambda run: (run.extend(1), run.slow_down()))
    go(spec, tmp_path / "b", 5, lambda run: (run.extend(1), run.slow_down()), stop_at=dead_at)
    told = go(spec, tmp_path / "b", 0, None)
    assert told[-1].result["steps"] == 16
    if dead_at > 5:                        # the turn was written down where it fell; else it had not been heard yet, and is heard now
        assert weights(spec.out) == weights(straight.out)


@pytest.mark.parametrize("ask, steps", [(lambda run: run.extend(2), 20), (lambda run: run.slow_down(), 12), (lambda run: run.ask("finish"), 5)],
                         ids=["extend", "slower", "finish"])
def test_rebuilding_follows_every_turn(make_spec, tmp_path, ask, steps):
    spec, plain = make_spec(), make_spec(out=str(tmp_path / "plain"))
    told = go(spec, tmp_path / "run", 5, ask)
    assert told[-1].result["steps"] == steps and read_recipe(spec.out)["course"]
    again = RebuildSpec(adapter=spec.out, out=str(tmp_path / "again"))
    result = list(rebuild(again, RunFolder.create(tmp_path / "rebuild", again)))[-1].result
    assert result["identical"] and weights(spec.out) == weights(again.out)
    list(train(plain, RunFolder.create(tmp_path / "c", plain)))
    assert weights(plain.out) != weights(spec.out), "it would not show if nothing had been followed"


def test_added_time_begins_patience_anew(make_spec, tmp_path):
    spec = make_spec(rows=16, passes=120, learning_rate=2e-2, holdout=0.5, method_config={"r": 4})
    usual = go(spec, tmp_path / "a", 0, None)[-1].result["steps"]
    more = make_spec(rows=16, passes=120, learning_rate=2e-2, holdout=0.5, method_config={"r": 4}, out=str(tmp_path / "more"))
    assert go(more, tmp_path / "b", usual - 1, lambda run: run.extend(10))[-1].result["steps"] > usual


def test_the_rank_schedule_of_adalora_stays_as_planned(make_spec, tmp_path):
    spec = make_spec(method="ADALORA", method_config={"target_r": 2, "init_r": 4})
    told = go(spec, tmp_path / "run", 9, lambda run: run.extend(1))
    assert told[-1].result["steps"] == 16 and isinstance(told[-1], Finished)
