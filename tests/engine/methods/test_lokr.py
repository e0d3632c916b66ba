"""LoKr against dense arithmetic: the Kronecker product, how sizes are split, and what training drops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import LoKrConfig
from engine.methods.lokr import METHOD, split
from tests.support.one import one


@pytest.mark.parametrize(("size", "factor", "expected"), [
    (256, -1, (16, 16)), (128, -1, (8, 16)), (127, -1, (1, 127)), (128, 4, (4, 32)), (12, -1, (3, 4)), (12, 6, (6, 2)), (16, 3, (2, 8)),
    (15, 4, (3, 5)), (10, 0, (1, 10)), (1, -1, (1, 1))])
def test_sizes_are_split_as_in_peft(size, factor, expected):
    assert split(size, factor) == expected


@pytest.mark.parametrize("settings", [{"r": 1}, {"r": 9}, {"r": 1, "decompose_both": True}, {"r": 1, "decompose_factor": 4}])
def test_a_linear_layer_runs_it_in_two_small_products(settings):
    layer = nn.Linear(12, 8)
    peft, adapted = one(layer, LoKrConfig(alpha=3, **settings))
    p, x = adapted.tensors("a0"), torch.randn(2, 5, 12, dtype=torch.float64)
    W1 = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
    W2 = p["lokr_w2"] if "lokr_w2" in p else p["lokr_w2_a"] @ p["lokr_w2_b"]
    expected = layer(x) + F.linear(x, 3 / settings["r"] * torch.kron(W1.detach(), W2.detach()))
    torch.testing.assert_close(peft(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(peft(x), expected)


@pytest.mark.parametrize("layer", [lambda: nn.Conv1d(12, 8, 3, groups=2), lambda: nn.Conv2d(6, 8, (3, 2)), lambda: nn.Conv3d(6, 8, 2)])
def test_a_convolution_in_parts(layer):
    layer = layer()                        # PEFT's own cannot run Conv1d in parts: torch.kron fails on the strides it makes
    peft, adapted = one(layer, LoKrConfig(r=1, alpha=2, use_effective_conv2d=True))
    p, site = adapted.tensors("a0"), adapted.site
    core = p["lokr_t2"].flatten(2)
    assert core.shape == (1, 1, math.prod(site.kernel))
    W2 = torch.stack([p["lokr_w2_a"].T @ core[..., k] @ p["lokr_w2_b"] for k in range(core.shape[2])], -1)
    W1 = p["lokr_w1"]
    expected = torch.stack([torch.kron(W1, W2[..., k]) for k in range(core.shape[2])], -1).flatten(1)       # kernel place by kernel place
    torch.testing.assert_close(METHOD.delta(p, adapted.tenants["a0"].config, site), 2 * expected)


@pytest.mark.parametrize("even", [False, True])
def test_rank_dropout_drops_outputs_in_training_only(even):
    layer = nn.Linear(12, 8)
    peft, _ = one(layer, LoKrConfig(r=1, alpha=1, rank_dropout=0.5, rank_dropout_scale=even))
    x = torch.randn(5, 12, dtype=torch.float64)
    full = peft.eval()(x) - layer(x)
    peft.train()
    torch.manual_seed(3)
    seen = peft(x) - layer(x)
    torch.manual_seed(3)
    kept = (torch.rand(8) >= 0.5).double()
    assert 0 < kept.sum() < 8
    torch.testing.assert_close(seen, full * kept / (kept.mean() if even else 1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("settings", "phrase"), [({"r": 0}, "positive integer"), ({"init_weights": "gaussian"}, "Unknown initialization")])
def test_impossible_settings(settings, phrase):
    with pytest.raises(ValueError, match=phrase):
        LoKrConfig(**settings)
