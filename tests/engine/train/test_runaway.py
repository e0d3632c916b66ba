"""When the error is no number: the last good state, who is to blame, and how it goes on."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from engine.errors import Diverged
from engine.events import Evaluated, Finished, Note, Saved, Step
from engine.specs import RebuildSpec
from engine.store.recipe import read_recipe
from engine.store.runs import RunFolder
from engine.train import checkpoint as checkpoints
from engine.train import loop, train
from engine.train.rebuild import rebuild
from engine.train.runaway import go_back, sound
from tests.support.tiny import save_base


def go(spec, path) -> tuple[list, Diverged | None]:
    run, told = RunFolder(path) if Path(path).exists() else RunFolder.create(path, spec), []
    try:
        for event in train(spec, run):
            told.append(event)
    except Diverged as error:
        return told, error
    return told, None


def of(kind, events):
    return [e for e in events if isinstance(e, kind)]


def test_a_state_is_good_if_its_next_step_went_as_usual():
    errors = [3.0, 2.9, 3.1, 2.5, 9.0, 4000.0]
    assert [sound(errors, k) for k in range(7)] == [True, True, True, True, False, False, False]
    assert not sound([float("inf")], 0) and not sound([], 0)


def test_a_state_that_broke_at_half_and_at_a_quarter_of_the_speed_was_not_good(tmp_path):
    """With other rows it is no number itself, however slowly it goes on: then the one before it."""
    for step in (3, 6):
        (tmp_path / f"step-{step:08d}").mkdir()
    errors = [3.0] * 8
    assert checkpoints.step_of(go_back(tmp_path, errors, [6, 3])) == 6
    assert checkpoints.step_of(go_back(tmp_path, errors, [6, 3, 6])) == 3 and len(checkpoints.found(tmp_path)) == 1
    assert go_back(tmp_path, errors, [3, 3]) is None


def test_a_speed_that_breaks_it_is_halved_until_it_holds_and_rebuilding_does_the_same(make_spec, tmp_path):
    """Real overflow: an adapter so loud that at this speed its hidden states leave float32 after a while."""
    spec = make_spec(learning_rate=1e-5, method_config={"r": 4, "lora_alpha": 3e9}, early_stop=False)
    told, error = go(spec, tmp_path / "run")
    step, good = error.facts["step"], error.facts["good"]
    assert step == of(Step, told)[-1].step + 1 and error.facts["lines"] == [] and "half the learning speed" in error.do
    assert not Path(spec.out).exists() and any(n.level == "warning" and n.step == step - 1 for n in of(Note, told))
    found = [checkpoints.step_of(path) for path in checkpoints.found(tmp_path / "run" / "checkpoints")]
    assert good == max(found, default=0) < step - 1, "the state from which the next step was no number is gone"
    halvings = 0
    while error is not None and halvings < 8:
        RunFolder(tmp_path / "run").slow_down()
        halvings += 1
        told, error = go(spec, tmp_path / "run")
        assert of(Step, told)[0].step == good + 1
        good = error.facts["good"] if error is not None else 0
        assert error is None or (of(Saved, told)[-1].step, bool(of(Saved, told)[-1].path)) == (good, good > 0), "what would be resumed from"
    assert halvings < 8 and isinstance(told[-1], Finished)
    assert [turn[1:] for turn in read_recipe(spec.out)["course"]] == [["slow", 0.5]] * halvings
    kept = safetensors.torch.load_file(Path(spec.out) / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    again = RebuildSpec(adapter=spec.out, out=str(tmp_path / "again"))
    assert list(rebuild(again, RunFolder.create(tmp_path / "rebuild", again)))[-1].result["identical"]


def test_it_goes_on_from_the_last_good_state_with_half_the_speed(make_spec, tmp_path, monkeypatch):
    """Above a certain speed step 8 breaks: from the good checkpoint on it is taken at half, killed or not, to the same bytes."""
    original = loop.Training._gradients

    def fragile(self, rows, learned):
        error = original(self, rows, learned)
        return float("nan") if self.step == 7 and self.course.speed(self.step) > 0.3 else error

    monkeypatch.setattr(loop.Training, "_gradients", fragile)
    specs = [make_spec(out=str(tmp_path / name)) for name in ("straight", "dead")]
    for spec in specs:
        run = RunFolder.create(tmp_path / f"run of {Path(spec.out).name}", spec)
        told, error = go(spec, run.path)
        assert error.facts["step"] == 8 and error.facts["good"] == 6 == of(Saved, told)[-1].step
        assert [checkpoints.step_of(path) for path in checkpoints.found(run.checkpoints)] == [6]
        run.slow_down()
        if spec is specs[1]:
            job = train(spec, run)
            next(event for event in job if isinstance(event, Step) and event.step == 9)
            job.close()                    # drops dead
        told, error = go(spec, run.path)
        assert error is None and isinstance(told[-1], Finished)
        assert [tuple(turn) for turn in read_recipe(spec.out)["course"]] == [(6, "slow", 0.5)]
    files = [(Path(spec.out) / "adapter_model.safetensors").read_bytes() for spec in specs]
    assert files[0] == files[1]
    again = RebuildSpec(adapter=specs[0].out, out=str(tmp_path / "again"))
    assert list(rebuild(again, RunFolder.create(tmp_path / "rebuild", again)))[-1].result["identical"]


@pytest.mark.parametrize("held_back", [False, True])
def test_an_example_that_breaks_the_model_itself_is_named(make_spec, tmp_path, held_back):
    """A real base in which one letter is no number; one example, learned or held back, has that letter."""
    base = save_base(tmp_path / "poisoned", tied=False)
    spec = make_spec(base=str(base), data=str(tmp_path / "letters.csv"))
    for line in range(2, 26):
        Path(spec.data).write_text("question,answer\n" + "".join(
            f"What is {i}?,It is {i}{' §' if i == line else ''}.\n" for i in range(2, 26)))
        material = loop.read_material(spec)
        if (line in {row.line for row in material.tested}) is held_back:
            break
    tensors = safetensors.torch.load_file(base / "model.safetensors")
    signs = set(material.tokenizer.encode("§")) - set(material.tokenizer.encode("What is 0123456789? It is."))
    tensors["model.embed_tokens.weight"][sorted(signs)] = float("nan")
    safetensors.torch.save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    told, error = go(spec, tmp_path / "run")
    assert error.facts["lines"] == [line] and f"line {line}" in error.why and "lower speed would not help" in error.do
    assert (error.facts["step"] == 0) is held_back and not Path(spec.out).exists()
    assert not [e for e in of(Evaluated, told) if e.error != e.error]


def test_a_last_step_that_broke_it_is_noticed_without_held_back_rows(make_spec, tmp_path, monkeypatch):
    original = loop.Optimizer.step

    def breaking(self, factor, after):
        norm = original(self, factor, after)
        if factor < 0.12:                  # the last of twelve
            with torch.no_grad():
                next(iter(self.parameters.values())).fill_(float("inf"))
        return norm

    spec = make_spec(holdout=0.0, rows=16)
    monkeypatch.setattr(loop.Optimizer, "step", breaking)
    told, error = go(spec, tmp_path / "run")
    assert error is not None and not Path(spec.out).exists()
    assert error.facts["good"] == of(Saved, told)[-1].step > 0
