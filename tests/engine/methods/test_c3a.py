"""C3A against dense arithmetic; above all two adapters at once, which PEFT puts one behind the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import C3AConfig, get_peft_model
from engine.errors import UnsupportedLayer
from tests.support.one import one


def circulant(kernel: torch.Tensor, columns: int) -> torch.Tensor:
    """Each block's row i is its kernel turned by i places to the right."""
    rows = [torch.cat([torch.stack([block.roll(i) for i in range(len(block))]) for block in row], 1) for row in kernel.detach()]
    return torch.cat(rows) / columns


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("block", [1, 2, 4])
def test_two_at_once_add_exactly(learning, block):
    layer = nn.Linear(12, 8)
    peft, adapted = one(layer, C3AConfig(block_size=block), C3AConfig(block_size=4))
    peft.set_adapter({"a0": 0.5, "a1": -2.0})
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    added = sum(s * circulant(adapted.tensors(n)["c3a_kernel"], 12) for n, s in (("a0", 0.5), ("a1", -2.0)))
    expected = layer(x) + F.linear(x, added)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)
    torch.testing.assert_close(peft.merge_and_unload()(x), expected)


def test_sixteen_bit_layers_transform_in_32():
    torch.manual_seed(0)
    layer = nn.Linear(12, 8, dtype=torch.bfloat16)
    peft = get_peft_model(nn.Sequential(layer), C3AConfig(block_size=4, target_modules=["0"], init_weights="gaussian"), autocast_adapter_dtype=False)
    x = torch.randn(5, 12).bfloat16()
    expected = layer(x).float() + F.linear(x.float(), circulant(peft.adapted["0"].tensors("default")["c3a_kernel"].float(), 12))
    torch.testing.assert_close(peft(x).float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("shape", "side"), [((12, 6), "output"), ((10, 8), "input")])
def test_a_block_that_does_not_fit_is_refused(shape, side):
    with pytest.raises(UnsupportedLayer, match=f"factor of the {side} size"):
        get_peft_model(nn.Sequential(nn.Linear(*shape)), C3AConfig(block_size=4, target_modules=["0"]))


@pytest.mark.parametrize(("settings", "phrase"), [({"block_size": 0}, "positive integer"), ({"block_size_pattern": {"q": -4}}, "positive integer"),
                                                  ({"init_weights": "lycoris"}, "Unknown init_weights")])
def test_impossible_settings(settings, phrase):
    with pytest.raises(ValueError, match=phrase):
        C3AConfig(**settings)
