"""A plan's price is measured on the plan's own examples, and refuses what training would refuse."""

import pytest

from engine.errors import BadData, OutOfMemory
from engine.specs import PlanReport
from engine.train import estimate as estimating
from engine.train.batching import Schedule
from engine.train.estimate import estimate
from engine.train.prepare import read_material


def test_it_counts_what_will_be_done(make_spec):
    spec = make_spec(rows=40, passes=2.5)
    report = estimate(spec)
    lengths = [len(row.ids) for row in read_material(spec).learn]
    schedule = Schedule(lengths, spec.rows_per_step, spec.passes, spec.seed)
    assert (report.rows, report.steps) == (32, len(schedule)) == (32, 20)
    assert report.tokens == sum(lengths[i] for k in range(len(schedule)) for i in schedule[k])
    assert report.seconds > 0 and report.seconds_error > 0 and report.memory_mb >= 0 and report.free_memory_mb > 100 and report.disk_mb > 0
    assert report.trainable == 6144 and "2.5 passes over 32 examples" in report.sentence
    assert PlanReport.from_dict(report.to_dict()) == report


def test_more_passes_cost_more_steps_and_nothing_is_written(make_spec, tmp_path):
    one, four = estimate(make_spec(passes=1)), estimate(make_spec(passes=4))
    assert four.steps == 4 * one.steps and four.tokens == 4 * one.tokens
    assert not (tmp_path / "out").exists()


def test_bad_examples_and_too_little_memory_are_sentences(make_spec, tmp_path, monkeypatch):
    spec = make_spec()

    def tight(*args):
        raise MemoryError

    monkeypatch.setattr(estimating.Objective, "backward", tight)
    with pytest.raises(OutOfMemory):
        estimate(spec)
    (tmp_path / "data.csv").write_text("")
    with pytest.raises(BadData):
        estimate(spec)


def test_a_slow_disk_costs_time_and_a_full_one_no_price(make_spec, tmp_path, monkeypatch):
    written, save = [], estimating.checkpoints.save

    def counting(folder, state):
        written.append(folder)
        return save(folder, state)

    monkeypatch.setattr(estimating.checkpoints, "save", counting)
    monkeypatch.setattr(estimating, "SAMPLE", 6144)            # a quarter of what this run's checkpoints hold
    clock = iter([0.0, 10.0])
    real = estimating.time.monotonic
    monkeypatch.setattr(estimating, "_saving", lambda *args, _saving=estimating._saving: _timed(monkeypatch, clock, real, _saving, *args))
    spec = make_spec(rows=40, passes=2.5)
    slow = estimate(spec)
    assert len(written) == 1 and not written[0].exists()
    assert slow.seconds > 10 * 4 * estimating.SAVES            # ten seconds for each quarter of ten checkpoints

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(estimating.checkpoints, "save", full)
    clock = iter([0.0])
    assert 0 < estimate(spec).seconds < slow.seconds


def _timed(monkeypatch, clock, real, work, *args):
    """Run ``work`` by this clock."""
    monkeypatch.setattr(estimating.time, "monotonic", lambda: next(clock))
    try:
        return work(*args)
    finally:
        monkeypatch.setattr(estimating.time, "monotonic", real)
