"""HiRA by dense arithmetic, where PEFT refuses the layer or takes no notice of a setting, and its errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import HiraConfig, get_peft_model
from tests.support.one import one


@pytest.mark.parametrize("learning", [True, False])
def test_a_grouped_convolution_is_scaled_entry_by_entry(learning):
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    peft, adapted = one(layer, HiraConfig(r=3), HiraConfig(r=2))
    x, W = torch.randn(2, 4, 5, 5, dtype=torch.float64), layer.weight
    scale = 1 + sum((p["hira_B"].flatten(1) @ p["hira_A"].flatten(1)).view_as(W) for p in map(adapted.tensors, ("a0", "a1")))
    expected = F.conv2d(x, W * scale, layer.bias, padding=1, groups=2)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)
    torch.testing.assert_close(peft.merge_and_unload()(x), expected)


def test_rank_pattern_counts():
    """PEFT takes the default rank for every layer that has no adapter yet."""
    model = nn.ModuleDict({"q": nn.Linear(8, 6), "v": nn.Linear(8, 6)})
    peft = get_peft_model(model, HiraConfig(r=2, target_modules=["q", "v"], rank_pattern={"q": 5}))
    assert {path: layer.tensors("default")["hira_A"].shape[0] for path, layer in peft.adapted.items()} == {"q": 5, "v": 2}


def test_gaussian_counts_on_convolutions_too():
    """PEFT starts them from the uniform distribution all the same."""
    torch.manual_seed(0)
    _, adapted = one(nn.Conv1d(40, 8, 5), HiraConfig(r=10, init_weights="gaussian"), noise=0)
    A = adapted.tensors("a0")["hira_A"]
    assert A.abs().max() > 0.3 and A.std().item() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("wrong", [{"r": 0}, {"r": 2, "rank_pattern": {"q": -1}}])
def test_a_rank_below_one_is_refused(wrong):
    with pytest.raises(ValueError, match="` should be a positive integer value"):
        HiraConfig(**wrong)


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match="Unknown initialization"):
        HiraConfig(init_weights="pissa")
