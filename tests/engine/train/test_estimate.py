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
