"""Before and after: what the job finds is what can be computed by hand, and the recipe keeps it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine import PeftModel
from engine.bases.load import load_model
from engine.errors import BadAdapter
from engine.events import Finished, Note, Reviewed, Stopped
from engine.specs import RebuildSpec, ReviewSpec, TrainSpec
from engine.store.atomic import write_json
from engine.store.recipe import read_recipe
from engine.store.runs import RunFolder
from engine.train import train
from engine.train.prepare import read_material
from engine.train.rebuild import rebuild
from engine.train.review import Scored, interval, outcome, review, spread


@pytest.fixture(scope="module")
def once(base, tmp_path_factory) -> TrainSpec:
    """One training for all tests of this file; only to be copied."""
    folder = tmp_path_factory.mktemp("taught")
    (folder / "data.csv").write_text("question,answer\n" + "".join(f"What is {i} and {i + 1}?,It is {2 * i + 1}\n" for i in range(40)))
    spec = TrainSpec(base=str(base), data=str(folder / "data.csv"), out=str(folder / "out"), passes=4, rows_per_step=4, precision="float32",
                     learning_rate=2e-3, method_config={"r": 4, "lora_dropout": 0.1})
    list(train(spec, RunFolder.create(folder / "run", spec)))
    return spec


@pytest.fixture
def taught(once, tmp_path) -> TrainSpec:
    spec = replace(once, data=str(tmp_path / "data.csv"), out=str(tmp_path / "out"))
    shutil.copy(once.data, spec.data)
    shutil.copytree(once.out, spec.out)
    write_json(Path(spec.out) / "recipe.json", {**read_recipe(once.out), "spec": spec.to_dict()})
    return spec


def carry_out(spec, path):
    job = {"review": review, "rebuild": rebuild}[spec.kind]
    return list(job(spec, RunFolder.create(path, spec)))


def error_by_hand(model, row) -> float:
    ids, labels = torch.tensor([row.ids]), torch.tensor(row.labels[1:])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
    return float(torch.nn.functional.cross_entropy(logits, labels)) if (labels != -100).any() else 0.0


def test_every_row_is_judged_by_its_own_error(taught, tmp_path):
    events = carry_out(ReviewSpec(adapter=taught.out, answers=4, longest=5), tmp_path / "review")
    rows, result = [e for e in events if isinstance(e, Reviewed)], events[-1].result
    material = read_material(taught)
    by_line = dict(zip((row.line for row in material.tested), material.test))
    model = PeftModel.from_pretrained(load_model(taught.base, dtype="float32"), taught.out)
    for event in rows:
        rendered = by_line[event.row]
        assert event.error_after == pytest.approx(error_by_hand(model, rendered), abs=1e-4)
        with model.disable_adapter():
            assert event.error_before == pytest.approx(error_by_hand(model, rendered), abs=1e-4)
        assert event.outcome == outcome(event.error_before, event.error_after)
    changes = [e.error_before - e.error_after for e in rows]
    assert changes == sorted(changes), "the worst rows come first"
    assert result["wins"] + result["same"] + result["losses"] == result["rows"] == len(rows) == 8
    assert sum(bool(e.before and e.after) for e in rows) <= 4
    assert result["after"] == pytest.approx(read_recipe(taught.out)["result"]["error_after"], abs=1e-5)
    low, high = result["interval"]
    assert low <= result["gain"] <= high and result["gain"] > 0.1
    assert set(result["strengths"]) == {"0.5", "0.75", "1"} and result["strengths"]["1"] == result["after"]
    assert result["general"]["rows"] == 24


def test_the_recipe_keeps_the_comparison_and_everything_else(taught, tmp_path):
    before = read_recipe(taught.out)
    result = carry_out(ReviewSpec(adapter=taught.out, answers=0), tmp_path / "review")[-1].result
    after = read_recipe(taught.out)
    assert after.pop("review") == {k: v for k, v in result.items() if k != "adapter"} and after == before


@pytest.mark.parametrize("request_", ["cancel", "pause"])
def test_a_comparison_can_be_broken_off_and_leaves_the_recipe_as_it_was(taught, tmp_path, request_):
    before = read_recipe(taught.out)
    spec = ReviewSpec(adapter=taught.out)
    run = RunFolder.create(tmp_path / "review", spec)
    run.ask(request_)
    assert list(review(spec, run))[-1] == Stopped(request_) and read_recipe(taught.out) == before


def test_examples_that_have_changed_are_told(taught, tmp_path):
    with open(taught.data, "a") as file:
        file.write("And what is new?,This is\n")
    assert any(isinstance(e, Note) and "changed" in e.text for e in carry_out(ReviewSpec(adapter=taught.out, answers=0), tmp_path / "review"))


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("{}"), lambda path: path.write_text("{")])
def test_an_adapter_without_a_recipe_says_so(taught, tmp_path, damage):
    damage(Path(taught.out) / "recipe.json")
    with pytest.raises(BadAdapter):
        carry_out(ReviewSpec(adapter=taught.out), tmp_path / "review")


def test_rebuilding_gives_the_identical_file(taught, tmp_path):
    result = carry_out(RebuildSpec(adapter=taught.out, out=str(tmp_path / "again")), tmp_path / "rebuild")[-1].result
    first, second = (Path(p) / "adapter_model.safetensors" for p in (taught.out, tmp_path / "again"))
    assert result["identical"] and first.read_bytes() == second.read_bytes()


def test_a_rebuild_from_other_examples_is_not_called_the_same(taught, tmp_path):
    data = Path(taught.data)
    data.write_text(data.read_text().replace("What is 3", "How much is 3"))
    events = carry_out(RebuildSpec(adapter=taught.out, out=str(tmp_path / "again")), tmp_path / "rebuild")
    assert isinstance(events[-1], Finished) and not events[-1].result["identical"]


def test_other_versions_are_named_before_the_rebuild_begins(taught, tmp_path):
    path = Path(taught.out) / "recipe.json"
    recipe = json.loads(path.read_text())
    recipe["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(recipe))
    events = carry_out(RebuildSpec(adapter=taught.out, out=str(tmp_path / "again")), tmp_path / "rebuild")
    assert any(isinstance(e, Note) and "torch 1.0 then" in e.text for e in events)


def test_the_interval_holds_the_gain_and_narrows_with_more_rows():
    generator = torch.Generator().manual_seed(1)
    widths = []
    for count in (10, 1000):
        before = (torch.rand(count, generator=generator) + 2).tolist()
        after = [b * 0.7 + float(torch.randn((), generator=generator)) * 0.2 for b in before]
        gain, low, high = interval(Scored(before, [1] * count), Scored(after, [1] * count))
        assert low < gain < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 4


def test_spread_takes_evenly():
    assert spread(list(range(10)), 2) == [2, 7] and spread([], 3) == [] and spread([5], 3) == [5]
