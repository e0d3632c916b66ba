"""PEANuT by dense arithmetic on layers for which PEFT has no code, and its errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import PeanutConfig
from tests.support.one import one


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_network_reads_the_kernel_as_a_matrix(groups, learning):
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=groups)
    peft, adapted = one(layer, PeanutConfig(r=3, depth=2, act_fn="silu", scaling=0.7))
    p, W, x = adapted.tensors("a0"), layer.weight, torch.randn(2, 4, 5, 5, dtype=torch.float64)
    h0 = F.silu(W.flatten(1).T @ p["peanut_A.weight"].T)
    h1 = F.silu(h0 @ p["peanut_encoders.0.weight"].T)
    h = F.silu(h1 @ p["peanut_encoders.1.weight"].T)
    h = F.silu(h @ p["peanut_decoders.0.weight"].T) + h1
    h = F.silu(h @ p["peanut_decoders.1.weight"].T) + h0
    expected = F.conv2d(x, W + 0.7 * (h @ p["peanut_B.weight"].T).T.reshape(W.shape), layer.bias, padding=1, groups=groups)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)
    torch.testing.assert_close(peft.merge_and_unload()(x), expected)


@pytest.mark.parametrize(("wrong", "words"), [({"r": 0}, "`r` must be a positive integer"), ({"depth": -1}, "non-negative integer"),
                                              ({"act_fn": "sine"}, "Unsupported `act_fn`: sine. Must be one of")])
def test_impossible_settings(wrong, words):
    with pytest.raises(ValueError, match=words):
        PeanutConfig(**wrong)
