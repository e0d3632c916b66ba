"""GLoRA by dense arithmetic in all its forms and on layers for which PEFT has no code; its errors."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import GloraConfig
from engine.errors import UnsupportedLayer
from tests.support.one import one

FORMS = list(itertools.product(("lora", "vector", "constant", "none"), ("lora", "vector", "none"), ("vector", "constant", "none")))


def part(p: dict, letter: str, shape: tuple[int, ...]) -> torch.Tensor:
    """One of A … E, written out in full."""
    if f"glora_{letter}.Xd" in p:
        return p[f"glora_{letter}.Xd"] @ p[f"glora_{letter}.Xu"]
    return p.get(f"glora_{letter}.X", torch.zeros(1, dtype=torch.float64)).expand(shape)


@pytest.mark.parametrize("forms", FORMS, ids="-".join)
def test_weight_and_bias_are_what_the_paper_says(forms):
    layer = nn.Linear(5, 4)
    peft, adapted = one(layer, GloraConfig(r=2, **dict(zip(("config_A_B", "config_C", "config_D_E"), forms))))
    p, W, b, x = adapted.tensors("a0"), layer.weight, layer.bias, torch.randn(3, 5, dtype=torch.float64)
    A, B, C, D, E = (part(p, letter, shape) for letter, shape in zip("ABCDE", [(4, 5), (4, 5), (5, 1), (4,), (4,)]))
    expected = F.linear(x, W + W * A + B, b + b * D + E + (W @ C).flatten())
    torch.testing.assert_close(peft(x), expected)
    peft.stack.set_strength("a0", 0.5)
    torch.testing.assert_close(peft(x), (expected + F.linear(x, W, b)) / 2)
    torch.testing.assert_close(peft.merge_and_unload()(x), (expected + F.linear(x, W, b)) / 2)


@pytest.mark.parametrize("learning", [True, False])
def test_on_a_convolution(learning):
    layer = nn.Conv1d(4, 6, 3, padding=1, groups=2)
    peft, adapted = one(layer, GloraConfig(r=2, config_D_E="vector"))
    p, W, b, x = adapted.tensors("a0"), layer.weight, layer.bias, torch.randn(2, 4, 9, dtype=torch.float64)
    A, B, C = (part(p, letter, ()) for letter in "ABC")
    weight = W + W * A.view_as(W) + B.view_as(W)
    expected = F.conv1d(x, weight, b + b * p["glora_D.X"] + p["glora_E.X"] + (W.flatten(1) @ C).flatten(), padding=1, groups=2)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)


def test_what_would_learn_nothing_is_refused():
    with pytest.raises(UnsupportedLayer, match="only the bias learns"):
        one(nn.Linear(4, 4, bias=False), GloraConfig(config_A_B="none"))


@pytest.mark.parametrize(("field", "value"), [("config_A_B", "full"), ("config_C", "constant"), ("config_D_E", "lora")])
def test_forms_that_do_not_exist(field, value):
    with pytest.raises(ValueError, match=f"Invalid {field} value: '{value}'. Valid values are"):
        GloraConfig(**{field: value})


def test_a_rank_below_one_is_refused():
    with pytest.raises(ValueError, match="`r` should be a positive integer"):
        GloraConfig(r=0)
