"""A split base is the same base: the same numbers, in as many parts as there are processes, and never whole."""

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.bases.load import load_model
from engine.errors import InvalidSpec
from engine.events import Evaluated, Finished, Note, Reviewed, Sample, Step
from engine.specs import FindSpeedSpec, ReviewSpec
from engine.store.atomic import write_json
from engine.store.recipe import read_recipe
from engine.store.runs import RunFolder
from engine.train import estimate as estimating
from engine.train import fsdp, prepare, train
from engine.train.finder import find_speed
from engine.train.fsdp import Split
from engine.train.loss import Objective
from engine.train.precision import Precision
from engine.train.review import review
from engine.train.team import Team
from tests.engine.train.test_families import families, gradients, rows, student
from tests.engine.train.test_methods import CHOICES

ROOT = Path(__file__).parents[3]
FLOAT32 = Precision("float32", "highest", "")


def of(kind, events):
    return [e for e in events if isinstance(e, kind)]


def memory_of(tensors) -> int:
    """Bytes under these tensors, each once."""
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors) if s.nbytes()}.values())


@families
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_family_computes_the_same_to_the_bit(name, checkpointing):
    made, seen = rows(4), []
    for apart in (False, True):
        model = student(name)
        frozen = [p for p in model.parameters() if not p.requires_grad]
        size = memory_of(frozen)
        if apart:
            split = Split(model, frozen, Team(), "cpu")
            away = memory_of(frozen)       # never shown by pytest: it would read what is not there
            assert away < size / 8, "nearly all of it is away"
        objective = Objective(model, checkpointing)
        batch = objective.collate(made)
        seen.append((objective.side_by_side, len(objective._sparing), objective.backward(batch, 7), objective.error(batch), gradients(model)))
    (*plain, gradient), (*again, other) = seen
    assert plain == again and torch.equal(gradient, other) and gradient.any()
    here = memory_of(frozen)
    assert here < size / 2, "only a part is here at any time"
    assert size - away <= split.resting < size + fsdp.ALIGNED * len(frozen)


def learned(spec, material):
    """(errors before and after a correction, gradients) of a fresh student."""
    model = prepare.load_student(spec, FLOAT32)
    objective, batches = Objective(model), []
    for row in material.learn[:3]:
        batches.append(objective.collate([row]))
    model.train()
    errors = [objective.backward(batch, 9) for batch in batches]
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in found:
                p.sub_(found[name], alpha=0.1)
    model.zero_grad(set_to_none=True)
    model.eval()
    return errors + [objective.error(batch) for batch in batches], found


@pytest.mark.parametrize("choice", CHOICES)
def test_every_method_learns_the_same(make_spec, choice):
    spec = make_spec(rows=8, method=choice.partition(",")[0], method_config=CHOICES[choice], holdout=0.0)
    material = prepare.read_material(spec)
    errors, found = learned(spec, material)
    again, other = learned(replace(spec, split="on"), material)
    assert again == pytest.approx(errors, rel=1e-5) and other.keys() == found.keys() and found
    for name, gradient in found.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-5)


def tensors() -> list[torch.Tensor]:
    """All that live."""
    gc.collect()
    return [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]


@pytest.mark.parametrize("choice", ["LORA", "LOHA", "OFT", "HRA", "LORA, as DoRA", "HIRA", "LORA, as PiSSA"])
def test_nothing_of_the_bases_size_is_kept_beside_it(make_spec, choice):
    """Neither while it learns nor when it is tested: all that lives is what rests, one piece that is here, and what is small."""
    config = {"init_lora_weights": "pissa"} if "PiSSA" in choice else CHOICES[choice]
    spec = make_spec(rows=8, method=choice.partition(",")[0], method_config=config, holdout=0.0, split="on")
    row = prepare.read_material(spec).learn[0]
    before = {id(t) for t in tensors()}
    model = prepare.load_student(spec, FLOAT32)
    objective = Objective(model)
    batch, size = objective.collate([row]), next(m for m in model.modules() if isinstance(m, torch.nn.Linear)).weight.nbytes
    for work in (lambda: objective.backward(batch, 9), lambda: objective.error(batch)):
        work()
        model.zero_grad(set_to_none=True)
        kept = {t.untyped_storage().data_ptr() for t in tensors() if id(t) not in before and t.dtype != torch.uint8
                and t.untyped_storage().nbytes() >= size}
        kept -= {p.untyped_storage().data_ptr() for p in model.parameters()}
        assert not kept
        model.eval()


def test_review_search_and_price_work_with_a_split_model(make_spec, tmp_path):
    spec = make_spec(split="on", rows=20, passes=1, rows_per_step=2)
    events = list(train(spec, RunFolder.create(tmp_path / "run", spec)))
    assert [n for n in of(Note, events) if "block by block" in n.text]
    seen = []
    for split in ("on", "off"):
        write_json(Path(spec.out) / "recipe.json", {**read_recipe(spec.out), "spec": replace(spec, split=split).to_dict()})
        wish = ReviewSpec(adapter=spec.out, answers=2, longest=4)
        events = list(review(wish, RunFolder.create(tmp_path / split, wish)))
        assert isinstance(events[-1], Finished) and of(Reviewed, events)
        seen.append((of(Reviewed, events), {k: v for k, v in events[-1].result.items() if k != "seconds"}))
    assert seen[0] == seen[1]
    tried = [list(find_speed(wish, RunFolder.create(tmp_path / f"speed {split}", wish)))[-1].result["curve"]
             for split in ("on", "off") for wish in [FindSpeedSpec(replace(spec, split=split))]]
    assert tried[0] == tried[1]
    report = estimating.estimate(spec)
    assert report.seconds > 0 and report.memory_mb >= 0 and report.cards == 0


def test_only_plain_weights_are_split(make_spec, tmp_path):
    with pytest.raises(InvalidSpec, match="packed into few bits"):
        fsdp.is_wanted(make_spec(split="on", base_bits=8), FLOAT32)
    spec = make_spec(split="on")
    packed = tmp_path / "packed"
    load_model(spec.base).save_pretrained(packed)
    config = json.loads((packed / "config.json").read_text())
    write_json(packed / "config.json", {**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    with pytest.raises(InvalidSpec, match="packed into few bits"):
        fsdp.is_wanted(replace(spec, base=str(packed)), FLOAT32)
    assert fsdp.is_wanted(spec, FLOAT32) and not fsdp.is_wanted(make_spec(), FLOAT32) and not fsdp.is_wanted(make_spec(split="off"), FLOAT32)


@pytest.mark.parametrize("cards", [1, 2])
def test_a_price_on_cards_names_them(make_spec, monkeypatch, cards):
    """Computed here, with a card's words put in its mouth."""
    monkeypatch.setattr(estimating, "_free_mb", lambda: 8000.0)
    monkeypatch.setattr(estimating, "_used_mb", lambda: 50.0)
    monkeypatch.setattr(estimating, "wanted", lambda spec: cards)
    answers = iter(["cpu"] * 2)            # for choosing a number format and its mode; what is priced is on cards
    monkeypatch.setattr(estimating, "best_device", lambda: next(answers, "cuda"))
    report = estimating.estimate(make_spec(split="on"))
    share = fsdp.read_model(make_spec().base).parameters * 4 / 1e6 / 2 if cards == 2 else 0
    assert (report.cards, report.free_memory_mb) == (cards, 8000.0) and report.memory_mb == pytest.approx(share, abs=0.06)
    assert ("each of 2 graphics cards" in report.sentence) == (cards == 2)


def test_a_card_that_is_too_small_decides(make_spec, monkeypatch):
    """The smallest card counts, and the number format in which the base is kept."""
    spec = make_spec()
    size = fsdp.read_model(spec.base).parameters
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for memory, dtype, expected in [(6 * size, "float32", False), (4 * size, "float32", True), (4 * size, "bfloat16", False)]:
        cards = iter([type("Card", (), {"total_memory": 80 * size}), type("Card", (), {"total_memory": memory})])
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda card, cards=cards: next(cards))
        assert fsdp.is_wanted(spec, Precision(dtype, "highest", "")) is expected
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda card: type("Card", (), {"total_memory": size}))
    assert not fsdp.is_wanted(make_spec(base_bits=4), FLOAT32) and not fsdp.is_wanted(make_spec(split="off"), FLOAT32)


@pytest.mark.parametrize("device, team, split, expected", [
    ("cpu", 2, None, 2 * 130), ("cpu", 2, 80.0, 100 + 2 * 30), ("cuda", 2, None, 130), ("cuda", 2, 80.0, 130 + 40), ("cuda", 1, 80.0, 130)])
def test_a_split_costs_each_card_its_share(monkeypatch, device, team, split, expected):
    """Probed alone it took 100 at rest and 30 more at work."""
    monkeypatch.setattr(estimating, "best_device", lambda: device)
    assert estimating._needed(100.0, 30.0, team, split) == expected


# --- several processes ---

MEMBER = """
import json, sys
import torch
from engine.errors import StudioError
from engine.train.fsdp import Split
from engine.train.team import Team
from tests.engine.train.test_families import student

team, model = Team.assemble(), student("Llama")
ids, whole = torch.arange(3, 23)[None], model
expected = whole(ids).logits.detach()
model = student("Llama")
frozen = [p for p in model.parameters() if not p.requires_grad]
total = sum(p.untyped_storage().nbytes() for p in {id(p): p for p in frozen}.values())
split = Split(model, frozen, team, "cpu")
at_rest = split.resting + sum(p.untyped_storage().nbytes() for p in frozen)

def as_many_as(times):
    def work():
        for _ in range(times):
            logits = model(ids).logits
            assert torch.equal(logits, expected)
            logits.sum().backward()
        return times
    return work

found = {"total": total, "at rest": at_rest, "said": []}
found["times"] = team.together(as_many_as(1 + 2 * team.rank))
found["none"] = team.together(as_many_as(0))
found["lead"] = team.lead(as_many_as(2))

def memory_runs_out():
    if team.rank:
        model.base_model.model.model.layers[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError("none left")))
    as_many_as(3)()

try:
    team.together(memory_runs_out)
except StudioError as error:
    found["said"].append(error.code)
if team.rank:
    model.base_model.model.model.layers[1]._forward_pre_hooks.popitem()
found["after"] = team.together(as_many_as(1))
json.dump(found, open(f"{sys.argv[1]}/{team.rank}.json", "w"))
team.part()
"""


def test_processes_need_not_go_the_same_way(tmp_path):
    """Each has half. They compute different numbers of times, one by itself, one until its memory runs out; nobody waits for ever."""
    (tmp_path / "member.py").write_text(MEMBER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "member.py"), str(tmp_path)]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, cwd=ROOT, timeout=300,
                           capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["times"] == [1, 3] and found["none"] == [0, 0] and found["lead"] == 2 and found["after"] == [1, 1]
        assert found["said"] == ["out-of-memory"]
        assert 0.5 * found["total"] <= found["at rest"] < 0.55 * found["total"]


def test_two_with_a_half_teach_what_two_with_a_whole_teach_even_after_a_death(make_spec, tmp_path):
    """Ragged steps, one of fewer rows than the rest, dropout, tests and answers on the way: the same errors, words and file, to the byte."""
    settings = dict(rows=19, method_config={"r": 4, "lora_dropout": 0.2}, processes=2, max_steps=8, prompts=["What is 1 and 2?"],
                    early_stop=False, checkpoint_seconds=0.0)
    whole, half = make_spec(out=str(tmp_path / "whole"), **settings), make_spec(out=str(tmp_path / "half"), split="on", **settings)
    expected = list(train(whole, RunFolder.create(tmp_path / "a", whole)))
    run, events = RunFolder.create(tmp_path / "b", half), []
    job = train(half, run)
    for event in job:
        events.append(event)
        if isinstance(event, Step) and event.step == 3:
            job.close()                    # the pipes end, as when the launcher is killed
    events += train(half, run)
    assert [n for n in of(Note, events) if "one part in 2" in n.text] and [n for n in of(Note, events) if "Going on from step" in n.text]
    for kind in (Step, Evaluated):
        assert {e.step: e.error for e in of(kind, events)} == {e.step: e.error for e in of(kind, expected)}
    said, wanted = ({e.step: e.answer for e in of(Sample, told)} for told in (events, expected))
    both = said.keys() & wanted.keys()     # how often they are asked in between is a matter of time
    assert {0, 8} <= both and {step: said[step] for step in both} == {step: wanted[step] for step in both}
    assert (Path(half.out) / "adapter_model.safetensors").read_bytes() == (Path(whole.out) / "adapter_model.safetensors").read_bytes()
