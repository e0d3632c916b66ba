"""A plan's price is measured on the plan's own examples, and refuses what training would refuse."""

import pytest

from engine.errors import BadData, OutOfMemory
from engine.specs import PlanReport
from engine.train import estimate as estimating
from engine.train.batching import Schedule
from engine.train.estimate import estimate
from engine.train.loss import Objective
from engine.train.precision import choose
from engine.train.prepare import load_student, read_material, schedule_of


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


def test_answers_to_pinned_questions_are_priced_as_long_as_they_take(make_spec, monkeypatch):
    """A round before and one after, which is as short as the answers that are learned; here a token takes a hundred seconds."""
    spec, clock = make_spec(prompts=["Why?", "When?"]), [0.0]
    with monkeypatch.context() as patched:
        patched.setattr(estimating, "answer", lambda *_, max_new_tokens: clock.append(clock[-1] + 100 * max_new_tokens))
        patched.setattr(estimating.time, "monotonic", lambda: clock[-1])
        once = estimating._listening(spec, None, None)
        assert once == pytest.approx(2 * 100 * estimating.SAMPLE_TOKENS) and estimating._listening(make_spec(), None, None) == 0
        assert clock == [0, 100, 200, 200 + 100 * estimating.LISTENED]
    monkeypatch.setattr(estimating, "_listening", lambda *_: once)
    learn = read_material(spec).learn
    usual = sum(row.learned for row in learn) / len(learn)
    assert usual < estimating.SAMPLE_TOKENS and estimate(spec).seconds == pytest.approx(2 * 100 * (estimating.SAMPLE_TOKENS + usual), rel=0.01)


@pytest.mark.parametrize("side_by_side", [True, False])
def test_what_is_priced_is_what_is_computed(make_spec, side_by_side):
    spec = make_spec(rows=40, rows_per_step=16)
    material, model = read_material(spec), load_student(spec, choose("float32"))
    schedule, objective = schedule_of(spec, material), Objective(model)
    objective.side_by_side &= side_by_side
    work = estimating._Work(material.learn, objective, 64, team=1)
    widest = 0
    for places in (schedule[k] for k in range(len(schedule))):
        sizes = [batch.ids.numel() for batch in objective.batches([material.learn[i] for i in places], 64)]
        assert work.loads(work.shares(places)) == [(sum(sizes), len(sizes))] and len(sizes) > 1
        widest = max(widest, *sizes)
    first, second, *others = estimating._telling(work, [work.shares(schedule[k]) for k in range(len(schedule))])
    assert work.size(second) == widest and min(map(work.size, others)) < work.size(first) <= max(map(work.size, others))
    alone, team = (each.loads(each.shares(schedule[0])) for each in (work, estimating._Work(material.learn, objective, 64, team=2)))
    assert len(team) == 2 and alone[0][0] / 2 <= max(tokens for tokens, _ in team) < alone[0][0]


def test_one_slow_moment_bends_no_price():
    line = [(n, 0.002 * n + 0.1) for n in (480, 700, 120, 300)]
    assert estimating._fitted([*line, (500, 9.0)])[:2] == pytest.approx((0.002, 0.1))
    assert estimating._fitted(line) == pytest.approx((0.002, 0.1, 0.0), abs=1e-9)
    assert estimating._fitted([(100, 2.0), (200, 1.0)])[0] >= 0 and estimating._fitted([(100, 1.0), (200, 4.0)])[1] >= 0
    assert estimating._fitted([(64, 0.5), (64, 0.5)])[:2] in ((0.5 / 64, 0.0), (0.0, 0.5))


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
    clock = iter([0.0, 0.0, 0.0, 10.0])                        # an empty one takes no time
    real = estimating.time.monotonic
    monkeypatch.setattr(estimating, "_saving", lambda *args, _saving=estimating._saving: _timed(monkeypatch, clock, real, _saving, *args))
    spec = make_spec(rows=40, passes=2.5)
    slow = estimate(spec)
    assert len(written) == 2 and not any(folder.exists() for folder in written)
    assert slow.steps == 20 and slow.seconds > 10 * 4 * 9      # ten seconds for each quarter of the nine checkpoints before the end

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
