"""Targets by the condition number of their weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import KappaTuneSelector, LoraConfig, find_kappa_target_modules, get_peft_model
from engine.model.kappa import condition_number


def of_kappa(rows: int, columns: int, kappa: float) -> torch.Tensor:
    U, _, Vh = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    return U * torch.linspace(kappa, 1.0, min(rows, columns)) @ Vh


@pytest.fixture
def model() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(6, 8), "b": nn.Linear(8, 6), "gpt2": Conv1D(5, 7), "norm": nn.LayerNorm(8)})
    for (name, kappa) in (("a", 9.0), ("b", 3.0), ("gpt2", 5.0)):
        model[name].weight = nn.Parameter(of_kappa(*model[name].weight.shape, kappa))
    model["experts"] = nn.Module()
    for name, kappas in (("gate_up_proj", (2.0, 4.0)), ("down_proj", (7.0, 7.0))):
        model["experts"].register_parameter(name, nn.Parameter(torch.stack([of_kappa(4, 3, kappa) for kappa in kappas])))
    return model


def test_the_smallest_come_first(model):
    selector = KappaTuneSelector(model)
    assert selector.modules == pytest.approx({"a": 9.0, "b": 3.0, "gpt2": 5.0}, rel=1e-4)
    assert selector.parameters == pytest.approx({"experts.gate_up_proj": 3.0, "experts.down_proj": 7.0}, rel=1e-4)
    assert selector.get_best_targets() == ["b", "gpt2", "a"]
    assert selector.get_best_targets(num_modules=2) == selector.get_best_targets(top_p=0.7) == selector.get_best_targets(threshold=6) == ["b", "gpt2"]
    assert find_kappa_target_modules(model, top_p=0.5) == {"target_modules": ["b"], "target_parameters": ["experts.gate_up_proj"]}
    assert condition_number(torch.eye(4)) == pytest.approx(1.0)


def test_what_is_too_large_is_left_out_and_none_is_said(model):
    del model["experts"]
    assert find_kappa_target_modules(model, 1.0, max_dim_size_to_analyze=7) == {"target_modules": ["gpt2"], "target_parameters": None}


def test_the_pristine_weights_of_an_adapted_model_count(model):
    plain = KappaTuneSelector(model).modules
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["a"], init_lora_weights=False))
    peft.merge_adapter()
    assert KappaTuneSelector(peft.get_base_model()).modules == plain
