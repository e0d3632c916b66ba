"""A module that is learned whole, at part of its strength: what was composed holds only as long as what it was composed of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import LoraConfig, PeftModel, get_peft_model
from engine.hosts.replaced import Replaced

X = torch.randn(3, 8)


def at_half() -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), LoraConfig(r=2, target_modules=["0"], modules_to_save=["1"])).eval()
    model.requires_grad_(False)
    head(model).modules_to_save["default"].weight.normal_()
    model.stack.set_strength("default", 0.5)
    return model


def head(model) -> Replaced:
    return model.get_base_model()[1]


def expected(model) -> torch.Tensor:
    mine, base = head(model).modules_to_save["default"], head(model).bare
    return nn.functional.linear(model.get_base_model()[0](X), (mine.weight + base.weight) / 2, (mine.bias + base.bias) / 2)


@pytest.mark.parametrize("change", [lambda head: head.bare.weight.add_(1), lambda head: head.modules_to_save["default"].weight.mul_(2),
                                    lambda head: setattr(head.modules_to_save["default"].weight, "data", torch.randn(4, 8)),
                                    lambda head: setattr(head.bare, "bias", nn.Parameter(torch.randn(4), requires_grad=False))],
                         ids=["base in place", "copy in place", "copy's data", "another base bias"])
def test_a_change_of_either_is_heard(change):
    with torch.no_grad():
        model = at_half()
        torch.testing.assert_close(model(X), expected(model))
        change(head(model))
        torch.testing.assert_close(model(X), expected(model))


def test_what_was_made_for_inference_only_runs():
    with torch.inference_mode():
        model = at_half()
        torch.testing.assert_close(model(X), expected(model))


def test_a_batch_of_several_adapters_does_not_hear_what_the_stack_composed():
    with torch.no_grad():
        model = at_half()
        head(model).modules_to_save["default"].double()        # so that it cannot run in the module's place
        rows, stack = {"adapter_names": ["default"] * 3}, model.stack
        alone = model(X, **rows)
        stack.solo("default").version, stack.solo("default").tick = stack.version, stack.tick
        model(X)
        torch.testing.assert_close(model(X, **rows), alone)
