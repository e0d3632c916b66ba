"""Adapters in a model that stays the user's own, and state dicts with what belongs to the base."""

from __future__ import annotations

import torch
from torch import nn

from engine.compat import install_as_peft

peft = install_as_peft()


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))


def test_injecting_reading_and_setting():
    model = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False), small())
    state, x = peft.get_peft_model_state_dict(model), torch.randn(3, 6)
    assert set(state) == {"0.lora_A.weight", "0.lora_B.weight"}
    other = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["0"]), small())
    assert not peft.set_peft_model_state_dict(other, state).unexpected_keys
    torch.testing.assert_close(other(x), model(x))


def test_what_layers_share_is_injected_too():
    model, x = small(), torch.randn(3, 6)
    base = model(x)
    config = peft.VeraConfig(r=3, target_modules=["0", "1"], init_weights=False)
    wrapped = peft.get_peft_model(small(), peft.VeraConfig(r=3, target_modules=["0", "1"], init_weights=False))
    peft.inject_adapter_in_model(config, model)
    peft.set_peft_model_state_dict(model, {k.removeprefix("base_model.model."): v for k, v in peft.get_peft_model_state_dict(wrapped).items()})
    torch.testing.assert_close(model(x), wrapped(x))
    assert not torch.allclose(model(x), base)


def test_the_base_s_own_weights_go_out_and_in_by_their_old_names():
    plain = small()
    model = peft.get_peft_model(small(), peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=["1"], bias="all"))
    found = peft.get_base_model_state_dict(model)
    assert found.keys() == plain.state_dict().keys() and all(torch.equal(t, plain.state_dict()[k]) for k, t in found.items())
    peft.set_base_model_state_dict(model, {k: t + 1 for k, t in found.items()})
    assert torch.equal(model.base_model.model[0].base_layer.weight, plain[0].weight + 1)
    report = peft.set_peft_model_state_dict(model, {**peft.get_peft_model_state_dict(model), "base_model.model.0.base_layer.weight": plain[0].weight})
    assert not report.unexpected_keys and torch.equal(model.base_model.model[0].base_layer.weight, plain[0].weight)
