"""The search for a learning speed: what it finds is worth using, it finds it again, and it leaves nothing behind."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidSpec, OutOfMemory
from engine.events import Finished, Stopped, Tried
from engine.specs import FindSpeedSpec
from engine.store.runs import RunFolder
from engine.train import finder, train
from engine.train.finder import FIRST, LAST, STEPS, evened, find_speed, proposal


def search(plan, path, stop_at: int = 0):
    spec = FindSpeedSpec(plan)
    run, told = RunFolder.create(path, spec), []
    for event in find_speed(spec, run):
        told.append(event)
        if isinstance(event, Tried) and event.step == stop_at:
            run.ask("cancel")
    return told


def digest(folder) -> str:
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in sorted(Path(folder).iterdir()))).hexdigest()


def test_it_finds_a_speed_that_learns_well_and_finds_it_again(make_spec, tmp_path):
    plan = make_spec()
    before = digest(plan.base)
    told = search(plan, tmp_path / "a")
    result, tried = told[-1].result, [e for e in told if isinstance(e, Tried)]
    assert [[e.learning_rate, e.share] for e in tried] == result["curve"] and [e.step for e in tried] == list(range(1, len(tried) + 1))
    assert tried[0].share == pytest.approx(1, abs=0.01), "it begins at the run's own start"
    assert min(share for _, share in result["curve"]) < 0.9 and result["lowest"] / 10 == pytest.approx(result["learning_rate"], rel=0.05)
    assert 1e-4 <= result["learning_rate"] <= 5e-2 and result["steepest"] <= result["lowest"]
    assert search(plan, tmp_path / "b")[-1].result["curve"] == result["curve"]
    assert digest(plan.base) == before and not Path(plan.out).exists()
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"spec.json", "precision.json"}

    errors = {}
    for rate in (result["learning_rate"], 1e-5, 1.0):
        spec = replace(plan, learning_rate=rate, out=str(tmp_path / f"out {rate}"))
        errors[rate] = list(train(spec, RunFolder.create(tmp_path / f"run {rate}", spec)))[-1].result["error_after"]
    assert min(errors, key=errors.get) == result["learning_rate"], "better than far too slow and far too fast"


def test_cancelled_it_leaves_nothing(make_spec, tmp_path):
    told = search(make_spec(), tmp_path / "run", stop_at=3)
    assert isinstance(told[-1], Stopped) and not told[-1].resumable and told[-1].reason == "cancel"
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"spec.json", "precision.json", "cancel"}
    assert not Path(make_spec().out).exists()


def test_it_ends_where_the_error_explodes_or_is_no_number(make_spec, tmp_path, monkeypatch):
    shares = iter([1.0] * 20 + [0.5] * 10 + [8.0] * 40)
    monkeypatch.setattr(finder._Trial, "step", lambda self, k: (FIRST * 10 ** (k / 12), next(shares)))
    curve = search(make_spec(), tmp_path / "a")[-1].result["curve"]
    assert 31 <= len(curve) <= 33
    shares = iter([1.0] * 20 + [0.5] * 10 + [math.nan] * 40)
    result = search(make_spec(), tmp_path / "b")[-1].result
    assert len(result["curve"]) == 30 and FIRST * 10 ** (20 / 12) <= result["lowest"] <= FIRST * 10 ** (29 / 12)
    shares = iter([1.0] * STEPS)
    assert search(make_spec(), tmp_path / "c")[-1].result["learning_rate"] is None, "where nothing was learned, nothing is proposed"


def test_what_cannot_be_tried_is_said(make_spec, tmp_path, monkeypatch):
    with pytest.raises(InvalidSpec):
        search(make_spec(rows_per_step=0), tmp_path / "a")

    def full(self, number):
        raise MemoryError

    monkeypatch.setattr(finder._Trial, "step", full)
    with pytest.raises(OutOfMemory):
        search(make_spec(), tmp_path / "b")


@given(at=st.integers(6, STEPS - 6), depth=st.floats(0.05, 0.9), noise=st.lists(st.floats(-0.02, 0.02), min_size=STEPS, max_size=STEPS))
def test_the_proposal_is_a_tenth_of_the_lowest_whatever_the_noise(at, depth, noise):
    rates = [FIRST * (LAST / FIRST) ** (k / (STEPS - 1)) for k in range(STEPS)]
    curve = [[rate, (1 - depth * math.exp(-((k - at) / 8) ** 2)) * (1 + wobble)] for k, (rate, wobble) in enumerate(zip(rates, noise))]
    found = proposal(curve)
    if depth > 0.2:
        assert rates[max(0, at - 6)] <= found["lowest"] <= rates[min(STEPS - 1, at + 6)] and found["steepest"] <= found["lowest"]
    assert found["learning_rate"] is None or found["learning_rate"] == pytest.approx(found["lowest"] / 10, rel=0.05)


def test_an_empty_or_short_curve_is_no_obstacle():
    assert proposal([])["learning_rate"] is None and evened([]) == []
    assert proposal([[1e-3, 0.5]]) == {"learning_rate": 1e-4, "lowest": 1e-3, "steepest": 1e-3}


def test_it_is_a_job_of_the_corridor():
    from engine.worker.run import JOBS, resolve

    assert resolve(JOBS[FindSpeedSpec.kind]) is find_speed and Finished.final
