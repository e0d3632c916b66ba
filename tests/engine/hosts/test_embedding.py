"""Adapters on tables of word vectors learn what the table itself would."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from engine import HiraConfig, LoraConfig, TrainableTokensConfig, get_peft_model
from engine.errors import UnsupportedLayer
from tests.support.one import one

IDS = torch.tensor([[1, 1, 2], [0, 3, 1]])


@pytest.mark.parametrize("settings", [{}, {"padding_idx": 1}, {"scale_grad_by_freq": True}, {"padding_idx": 0, "scale_grad_by_freq": True}])
@pytest.mark.parametrize("kind", ["lora", "hira"])
def test_gradients_are_those_of_the_table(kind, settings):
    table = nn.Embedding(6, 4, **settings)
    config = LoraConfig(r=2, lora_alpha=6, init_lora_weights=False) if kind == "lora" else HiraConfig(r=2, init_weights=False)
    peft, adapted = one(copy.deepcopy(table), config)
    W, names = table.double().weight, [f"{kind}_embedding_{letter}" for letter in "AB"]
    A, B = (adapted.tensors("a0")[name] for name in names)
    with torch.no_grad():
        own = W + 3 * (B @ A).T if kind == "lora" else W + W * (B @ A).T
    seen = nn.Embedding(6, 4, **settings, _weight=own.clone())
    outputs = peft(IDS)
    torch.testing.assert_close(outputs, seen(IDS))
    outputs.square().sum().backward(), seen(IDS).square().sum().backward()
    to_product = 3 * seen.weight.grad.T if kind == "lora" else (W * seen.weight.grad).T
    torch.testing.assert_close(A.grad, B.detach().T @ to_product)
    if kind == "hira" or not settings:     # LoRA's B learns from what it is given, as in PEFT
        torch.testing.assert_close(B.grad, to_product @ A.detach().T)


@pytest.mark.parametrize("config", [LoraConfig(target_modules=["0"]), HiraConfig(target_modules=["0"]),
                                    TrainableTokensConfig(target_modules=["0"], token_indices=[1])], ids=lambda c: c.peft_type)
def test_a_table_that_cuts_its_own_vectors_is_refused(config):
    model = nn.Sequential(nn.Embedding(6, 4, max_norm=1.0), nn.Linear(4, 2))
    with pytest.raises(UnsupportedLayer, match="max_norm"):
        get_peft_model(model, config)
    assert type(model[0]) is nn.Embedding and all(p.requires_grad for p in model.parameters())
