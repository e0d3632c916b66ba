"""Additive deltas against `peft` beyond the table: where its gradient is wrong, and AdaLoRA's schedule step by step, with its files."""

from __future__ import annotations

from types import SimpleNamespace

import peft
import pytest
import torch

import engine
from engine.methods.adalora import RankSchedule, orthogonality
from tests.parity import test_methods as table


@pytest.mark.parametrize("layer", ["conv1d", "conv2d"])
def test_loha_in_parts_is_peft_s_but_for_its_gradient(layer, tmp_path):
    table.test_same_names_and_same_start("loha-conv", layer)
    table.test_same_merged_weights("loha-conv", layer)
    table.test_files_load_both_ways("loha-conv", layer, tmp_path)
    ours, theirs, x = table.pair("loha-conv", layer)
    table.stir(ours, theirs)
    for model in (ours, theirs):
        model.eval()(x).pow(2).sum().backward()
    b = table.adapter_parameters(theirs)
    wrong = {name.split(".")[-2] for name, p in table.adapter_parameters(ours).items()
             if not torch.allclose(p.grad, b[name].grad, atol=1e-4, rtol=1e-3)}
    assert wrong == {"hada_w1_a", "hada_w2_a"}                # ours are right by `gradcheck`, see tests/engine/methods/test_loha.py


class Trained:
    """The same AdaLoRA adapter in both packages, trained side by side on the same data."""

    def __init__(self):
        self.ours, self.theirs, self.x = table.pair("adalora", "linear")
        self.schedule = RankSchedule(self.ours.peft_config["default"],
                                     {path: layer.tensors("default") for path, layer in self.ours.adapted.items()})

    def step(self, number: int, rate: float = 0.1) -> None:
        for model in (self.ours, self.theirs):
            model.zero_grad()
            (model(self.x) - 1).pow(2).mean().backward()
            with torch.no_grad():
                for p in table.adapter_parameters(model).values():
                    p.sub_(rate * p.grad)
        self.schedule.update_and_allocate(number)
        self.theirs.base_model.update_and_allocate(number)

    def patterns(self) -> tuple[dict, dict]:
        theirs = self.theirs.peft_config["default"].rank_pattern or {}
        return self.ours.peft_config["default"].rank_pattern or {}, {name.removesuffix(".default"): left for name, left in theirs.items()}


def test_adalora_s_schedule_takes_the_same_ranks_at_every_step():
    run = Trained()
    table.stir(run.ours, run.theirs)
    fallen = []
    for number in range(11):
        run.step(number)
        ours, theirs = run.patterns()
        assert ours == theirs
        fallen.append(sum(not left for pattern in ours.values() for left in pattern))
        b = table.adapter_parameters(run.theirs)
        for name, p in table.adapter_parameters(run.ours).items():
            torch.testing.assert_close(p, b[name], atol=1e-5, rtol=1e-4)
    assert fallen[0] == 0 and fallen[-1] == 2


def test_adalora_s_extra_loss_is_the_same(monkeypatch):
    run = Trained()
    table.stir(run.ours, run.theirs)
    monkeypatch.setattr(run.theirs.base_model.model, "forward", lambda x: SimpleNamespace(loss=torch.zeros(())))
    theirs = run.theirs.base_model(run.x).loss / run.theirs.peft_config["default"].orth_reg_weight
    torch.testing.assert_close(orthogonality(layer.tensors("default") for layer in run.ours.adapted.values()), theirs, atol=1e-5, rtol=1e-4)


def test_adalora_s_thinned_files_load_both_ways(tmp_path):
    run = Trained()
    table.stir(run.ours, run.theirs)
    for number in range(10):
        run.step(number)
    expected = run.theirs.eval()(run.x)
    run.ours.save_pretrained(tmp_path / "ours")
    run.theirs.save_pretrained(tmp_path / "theirs")
    in_theirs = peft.PeftModel.from_pretrained(run.theirs.unload(), tmp_path / "ours")
    in_ours = engine.PeftModel.from_pretrained(run.ours.unload(), tmp_path / "theirs")
    assert in_ours.load_report.complete, in_ours.load_report.sentence()
    torch.testing.assert_close(in_theirs.eval()(run.x), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(in_ours.eval()(run.x), expected, atol=1e-5, rtol=1e-4)
