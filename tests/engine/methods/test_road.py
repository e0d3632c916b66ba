"""RoAd against its pairs written out, on layers that PEFT refuses, and its errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import LoraConfig, RoadConfig
from engine.errors import UnsupportedLayer
from tests.support.one import one


def dense(p: dict, variant: str, size: int, out: int) -> torch.Tensor:
    """R entry by entry: outputs i and i + size/2 of a group are a pair."""
    R, half = torch.zeros(out, out, dtype=torch.float64), size // 2
    theta, alpha = p["road_theta"].detach(), p["road_alpha"].detach()
    for g in range(out // size):
        for i in range(half):
            a, b = g * size + i, g * size + half + i
            if variant == "road_1":
                straight = across = [(alpha[g * half + i], theta[g * half + i])] * 2
            elif variant == "road_2":
                straight = across = [(alpha[a], theta[a]), (alpha[b], theta[b])]
            else:
                straight, across = ([(alpha[k], theta[k]) for k in (g * 2 * size + s * size + i, g * 2 * size + s * size + half + i)] for s in (0, 1))
            R[a, a], R[b, b] = (m * t.cos() for m, t in straight)
            R[a, b], R[b, a] = -across[0][0] * across[0][1].sin(), across[1][0] * across[1][1].sin()
    return R


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
@pytest.mark.parametrize("learning", [True, False])
def test_outputs_and_bias_turn_in_pairs(variant, learning):
    layer = nn.Conv1d(4, 8, 3, padding=1)                      # PEFT: linear layers only
    peft, adapted = one(layer, RoadConfig(variant=variant, group_size=4), noise=0.6)
    R, x = dense(adapted.tensors("a0"), variant, 4, 8), torch.randn(2, 4, 7, dtype=torch.float64)
    expected = F.conv1d(x, torch.einsum("oc,cik->oik", R, layer.weight), R @ layer.bias, padding=1)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)
    torch.testing.assert_close(peft.merge_and_unload()(x), expected)


def test_a_delta_above_is_not_turned_and_one_below_is():
    layer = nn.Linear(6, 8)
    peft, adapted = one(layer, RoadConfig(group_size=8), LoraConfig(r=2))
    R, lora, x = dense(adapted.tensors("a0"), "road_1", 8, 8), adapted.tensors("a1"), torch.randn(5, 6, dtype=torch.float64)
    added = 4 * lora["lora_B.weight"] @ lora["lora_A.weight"]
    for order, W in ((["a0", "a1"], R @ layer.weight + added), (["a1", "a0"], R @ (layer.weight + added))):
        peft.set_adapter(order)
        torch.testing.assert_close(peft(x), F.linear(x, W, R @ layer.bias))


def test_impossible_settings():
    with pytest.raises(ValueError, match="Invalid variant road_3 specified"):
        RoadConfig(variant="road_3")
    with pytest.raises(ValueError, match="must be divisible by 2"):
        RoadConfig(group_size=3)
    with pytest.raises(UnsupportedLayer, match="divisible by group_size"):
        one(nn.Linear(6, 8), RoadConfig())
