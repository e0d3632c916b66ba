"""The job as it is seen from outside: its events, its requests, its refusals, its result."""

import errno
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine import PeftModel
from engine.bases.load import load_model
from engine.errors import BadData, Diverged, DiskFull, InvalidSpec, OutOfMemory
from engine.events import Evaluated, Finished, Note, Sample, Saved, Step, Stopped
from engine.store.library import read_adapter, read_model
from engine.store.runs import RunFolder
from engine.train import checkpoint as checkpoints
from engine.train import loop, train


def start(spec, path):
    return RunFolder.create(path, spec)


def of(kind, events):
    return [e for e in events if isinstance(e, kind)]


def weights(spec) -> bytes:
    return (Path(spec.out) / "adapter_model.safetensors").read_bytes()


def test_it_learns_and_says_all_about_it(make_spec, tmp_path):
    spec = make_spec(rows=40, passes=5, prompts=["What is 3 and 4?"])
    events = list(train(spec, start(spec, tmp_path / "run")))
    result = events[-1].result
    steps, evaluated = of(Step, events), of(Evaluated, events)
    assert [e.step for e in steps] == list(range(1, steps[-1].steps + 1))
    assert evaluated[0].step == 0 and evaluated[-1].step == steps[-1].step and 9 <= len(evaluated) <= 11
    assert result["error_after"] < result["error_before"] - 1 and result["error_before"] == evaluated[0].error
    assert result["error_after"] == min(e.error for e in evaluated)
    assert {e.step for e in of(Sample, events)} >= {0, steps[-1].step} and of(Saved, events)
    assert all(e.tokens_per_second > 0 and e.memory_mb > 10 and e.seconds_left >= 0 for e in steps)
    assert result["rows"] + result["held_out"] == 40 and result["held_out"] == 8
    info = read_adapter(spec.out)
    assert info.fingerprint == result["fingerprint"] and info.base_fingerprint == read_model(spec.base).fingerprint and info.base == spec.base
    assert info.recipe["scores"]["after"] == result["error_after"] and info.recipe["template"] and info.recipe["spec"] == spec.to_dict()
    assert not [p for p in Path(spec.out).parent.iterdir() if p.name.startswith(".")]


def test_the_kept_state_is_the_best_one(make_spec, tmp_path):
    """Learned by heart until the unseen error rises: the file is the state of the best evaluation, not the last."""
    spec = make_spec(rows=16, passes=160, learning_rate=2e-2, holdout=0.5, method_config={"r": 4})
    events = list(train(spec, start(spec, tmp_path / "run")))
    result, evaluated = events[-1].result, of(Evaluated, events)
    best = min((e for e in evaluated if e.step), key=lambda e: e.error)
    assert result["best_step"] == best.step < result["steps"] and result["error_after"] == best.error and best.best
    assert result["steps"] < of(Step, events)[0].steps         # and it stopped early
    model = PeftModel.from_pretrained(load_model(spec.base), spec.out)
    material = loop.read_material(spec)
    objective = loop.Objective(model)
    error = sum(objective.error(objective.collate([row])) for row in material.test) / sum(row.learned for row in material.test)
    assert error == pytest.approx(best.error, rel=1e-4)


def test_without_unseen_rows_the_last_state_is_kept(make_spec, tmp_path):
    spec = make_spec(holdout=0.0)
    events = list(train(spec, start(spec, tmp_path / "run")))
    result = events[-1].result
    assert result["error_after"] is None and result["held_out"] == 0 and result["best_step"] == result["steps"] and not of(Evaluated, events)


@pytest.mark.parametrize("request_name", ["pause", "cancel"])
def test_asked_to_stop_it_saves_and_goes_on_to_the_same_bytes(make_spec, tmp_path, request_name):
    straight = make_spec(out=str(tmp_path / "straight"))
    expected = {e.step: e.error for e in train(straight, start(straight, tmp_path / "a")) if isinstance(e, Step)}
    spec, seen = make_spec(), {}
    run = start(spec, tmp_path / "b")
    for stop_at in (2, 3, 7, None):
        run.clear()
        for event in train(spec, run):
            if isinstance(event, Step):
                seen[event.step] = event.error
                if event.step == stop_at:
                    run.ask(request_name)
        if stop_at:
            assert isinstance(event, Stopped) and (event.reason, event.resumable, event.step) == (request_name, True, stop_at)
    assert isinstance(event, Finished) and seen == expected and weights(spec) == weights(straight)


def test_pause_is_heard_within_an_evaluation_and_within_a_step(make_spec, tmp_path, monkeypatch):
    straight = make_spec(out=str(tmp_path / "straight"))
    list(train(straight, start(straight, tmp_path / "a")))
    monkeypatch.setattr(loop, "portion", lambda lengths: 16)                    # one row at a time, so that there is something in between
    spec = make_spec()
    run = start(spec, tmp_path / "b")
    calls = {"backward": 0, "error": 0}
    for name, when in (("backward", 6), ("error", 11)):
        original = getattr(loop.Objective, name)

        def listening(self, *args, original=original, name=name, when=when):
            calls[name] += 1
            if calls[name] == when:
                run.ask("pause")
            return original(self, *args)

        monkeypatch.setattr(loop.Objective, name, listening)
    outcomes = []
    while not outcomes or isinstance(outcomes[-1], Stopped):
        run.clear()
        outcomes.append(list(train(spec, run))[-1])
    assert len(outcomes) == 3 and outcomes[0].step == 1
    undisturbed = make_spec(out=str(tmp_path / "undisturbed"))
    list(train(undisturbed, start(undisturbed, tmp_path / "c")))
    assert weights(spec) == weights(undisturbed)


def test_a_sample_on_request_changes_nothing(make_spec, tmp_path):
    straight, spec = make_spec(out=str(tmp_path / "straight")), make_spec(prompts=["What is 1 and 2?"], checkpoint_seconds=0)
    list(train(straight, start(straight, tmp_path / "a")))
    run, asked_at = start(spec, tmp_path / "b"), []
    for event in train(spec, run):
        if isinstance(event, Step) and event.step == 5:
            run.ask("sample")
        asked_at += [event.step] if isinstance(event, Sample) else []
    assert 5 in asked_at and not run.asked("sample") and weights(spec) == weights(straight)


def test_a_question_that_cannot_be_answered_does_not_lose_what_was_learned(make_spec, tmp_path):
    spec = make_spec(passes=1, holdout=0.0, prompts=["why " * 3000, "What is 1 and 2?"])
    events = list(train(spec, start(spec, tmp_path / "run")))
    assert isinstance(events[-1], Finished) and [e.prompt for e in of(Sample, events)] == ["What is 1 and 2?"]
    assert any("longer than the model can read" in e.text for e in of(Note, events))


def test_memory_running_out_makes_portions_smaller_not_the_result_different(make_spec, tmp_path, monkeypatch):
    straight, spec = make_spec(out=str(tmp_path / "straight")), make_spec()
    expected = [e.error for e in train(straight, start(straight, tmp_path / "a")) if isinstance(e, Step)]
    original = loop.Objective.backward

    def tight(self, batch, learned):
        if batch.ids.numel() > 100:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return original(self, batch, learned)

    monkeypatch.setattr(loop.Objective, "backward", tight)
    events = list(train(spec, start(spec, tmp_path / "b")))
    notes = [n for n in of(Note, events) if "Memory ran out" in n.text]
    assert notes and all(n.step is not None for n in notes) and isinstance(events[-1], Finished)
    assert [e.error for e in of(Step, events)] == pytest.approx(expected, rel=2e-2)   # dropout falls otherwise in other portions

    def impossible(self, batch, learned):
        raise MemoryError

    monkeypatch.setattr(loop.Objective, "backward", impossible)
    spec = make_spec(out=str(tmp_path / "never"))
    told = []
    with pytest.raises(OutOfMemory, match="one example"):
        for event in train(spec, start(spec, tmp_path / "c")):
            told.append(event)
    assert any("computed twice" in n.text for n in of(Note, told)), "before it gives up, it remembers less"


def test_a_runaway_error_stops_it_and_the_last_checkpoint_is_good(make_spec, tmp_path, monkeypatch):
    original = loop.Objective.backward
    spec = make_spec()
    run = start(spec, tmp_path / "run")
    events = []

    def poisoned(self, batch, learned):
        return float("nan") if of(Step, events) and of(Step, events)[-1].step == 7 else original(self, batch, learned)

    monkeypatch.setattr(loop.Objective, "backward", poisoned)
    with pytest.raises(Diverged, match="step 8"):
        for event in train(spec, run):
            events.append(event)
    saved, _ = checkpoints.newest(run.checkpoints, loop.read_material(spec).identity)
    assert saved.step == 6 and all(torch.isfinite(t).all() for t in saved.adapter.values()) and not Path(spec.out).exists()


def test_a_full_disk_stops_it_with_a_sentence_and_it_goes_on_later(make_spec, tmp_path, monkeypatch):
    straight, spec = make_spec(out=str(tmp_path / "straight")), make_spec()
    list(train(straight, start(straight, tmp_path / "a")))
    run, write, count = start(spec, tmp_path / "b"), checkpoints._write, iter(range(999))

    def full(path, content):
        if next(count) == 17:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_write", full)
        with pytest.raises(DiskFull):
            list(train(spec, run))
    assert len(checkpoints.found(run.checkpoints)) == 2
    assert isinstance(list(train(spec, run))[-1], Finished) and weights(spec) == weights(straight)


def test_a_damaged_checkpoint_is_passed_over_with_a_note(make_spec, tmp_path):
    straight, spec = make_spec(out=str(tmp_path / "straight")), make_spec()
    list(train(straight, start(straight, tmp_path / "a")))
    run = start(spec, tmp_path / "b")
    for event in train(spec, run):
        if isinstance(event, Step) and event.step == 9:
            run.ask("pause")
    run.clear()
    newest = checkpoints.found(run.checkpoints)[0] / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"!")
    events = list(train(spec, run))
    assert any("damaged" in n.text and n.level == "warning" for n in of(Note, events))
    assert of(Step, events)[0].step <= 9 and weights(spec) == weights(straight)


def test_what_stands_in_the_place_of_the_result_is_never_overwritten(make_spec, tmp_path):
    spec = make_spec(passes=1)
    run = start(spec, tmp_path / "run")
    result = list(train(spec, run))[-1].result
    assert [e.result for e in train(spec, run)] == [result]    # this run's own result: killed before its last word
    with pytest.raises(InvalidSpec, match="already") as caught:
        list(train(spec, start(spec, tmp_path / "other")))
    assert "out" in caught.value.facts["fields"]
    shutil.rmtree(spec.out)
    Path(spec.out).mkdir()
    with pytest.raises(InvalidSpec, match="already"):
        list(train(spec, run))


def test_what_came_there_meanwhile_is_not_overwritten_either(make_spec, tmp_path):
    spec = make_spec(passes=1)
    run, other = start(spec, tmp_path / "run"), Path(spec.out) / "adapter_config.json"
    with pytest.raises(InvalidSpec, match="already"):
        for event in train(spec, run):
            if isinstance(event, Step) and event.step == 1:
                other.parent.mkdir()
                other.write_text("somebody else's")
    assert other.read_text() == "somebody else's"
    shutil.rmtree(spec.out)
    assert isinstance(list(train(spec, run))[-1], Finished)


def test_a_step_that_is_quicker_than_the_clock_is_a_step(make_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 0.0, perf_counter=time.perf_counter))      # Windows' ticks every 16 ms
    spec = make_spec(passes=1)
    assert isinstance(list(train(spec, start(spec, tmp_path / "run")))[-1], Finished)


def test_changed_examples_are_not_mixed_into_a_begun_run(make_spec, tmp_path):
    spec = make_spec()
    run = start(spec, tmp_path / "run")
    for event in train(spec, run):
        if isinstance(event, Step) and event.step == 3:
            run.ask("pause")
    run.clear()
    with open(spec.data, "a") as file:
        file.write("Something,new\n")
    with pytest.raises(BadData, match="examples"):
        list(train(spec, run))


@pytest.mark.parametrize("content, says", [("", "empty"), ("colour,size\nred,3\n", "columns")])
def test_bad_examples_are_refused_before_anything_is_loaded(make_spec, tmp_path, content, says, monkeypatch):
    (tmp_path / "data.csv").write_text(content)
    monkeypatch.setattr(loop, "load_student", lambda *args: pytest.fail("a model was loaded"))
    with pytest.raises(BadData, match=says) as caught:
        list(train(make_spec(), start(make_spec(), tmp_path / "run")))
    assert caught.value.do


def test_bad_settings_are_a_sentence(make_spec, tmp_path):
    spec = make_spec(method_config={"r": 4, "nonsense": 1})
    with pytest.raises(InvalidSpec, match="nonsense"):
        list(train(spec, start(spec, tmp_path / "run")))
    assert json.loads((tmp_path / "run" / "spec.json").read_text())["method_config"]["nonsense"] == 1


@pytest.mark.parametrize("tested, most", [([10], 10), ([10] * 40, 3), ([10] * 4000, 2)])
def test_testing_never_costs_more_than_its_share(tested, most):
    schedule = loop.Schedule([10] * 40, 4, 5, 0)
    points = loop.evaluation_points(schedule, tested)
    assert {0, len(schedule)} <= points and len(points) - 1 <= most and loop.evaluation_points(schedule, []) == set()
    assert len(points) == 3 or (len(points) - 1) * sum(tested) / 3 <= 1.3 * loop.EVALUATION_SHARE * 5 * 400
