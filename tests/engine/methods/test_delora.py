"""DeLoRA against dense arithmetic: its bound, its start, and the norms it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import DeloraConfig
from engine.methods.delora import METHOD
from tests.support.one import one


@pytest.mark.parametrize("layer", [lambda: nn.Linear(12, 8), lambda: nn.Conv2d(3, 8, 2), lambda: nn.Conv1d(4, 8, 3, groups=2),
                                   lambda: nn.Embedding(12, 8)])
def test_each_rank_moves_the_weight_by_lambda_over_r_of_its_own_norms(layer):
    layer = layer()
    peft, adapted = one(layer, DeloraConfig(r=3, delora_lambda=4))
    p, cfg, site = adapted.tensors("a0"), adapted.tenants["a0"].config, adapted.site
    unit = [torch.outer(p["delora_B"][:, i] / p["delora_B"][:, i].norm(), p["delora_A"][i] / p["delora_A"][i].norm()) for i in range(3)]
    expected = p["delora_lambda"] / 3 * sum(unit) * p["delora_w_norm"]
    torch.testing.assert_close(METHOD.delta(p, cfg, site), expected)
    if site.groups == 1:
        f = METHOD.factors(p, cfg, site)
        torch.testing.assert_close(f.scale * f.B @ f.A, expected)


def test_the_norms_are_those_of_the_pristine_columns_and_rest():
    layer = nn.Linear(12, 8)
    peft, adapted = one(layer, DeloraConfig(r=2), noise=0)
    p = adapted.tensors("a0")
    torch.testing.assert_close(p["delora_w_norm"], layer.weight.norm(dim=0))
    assert not p["delora_w_norm"].requires_grad
    assert (p["delora_lambda"] == 15).all() and not METHOD.delta(p, adapted.tenants["a0"].config, adapted.site).any()


def test_the_first_gradient_is_finite_though_b_has_no_direction_yet():
    peft, adapted = one(nn.Linear(12, 8), DeloraConfig(r=2), noise=0)
    peft(torch.randn(5, 12, dtype=torch.float64)).pow(2).sum().backward()
    grads = {n: t.grad for n, t in adapted.tensors("a0").items() if t.requires_grad}
    assert all(g.isfinite().all() for g in grads.values()) and grads["delora_B"].any()


@pytest.mark.parametrize("settings", [{"r": 0}, {"rank_pattern": {"q": 0}}])
def test_impossible_settings(settings):
    with pytest.raises(ValueError, match="`r` must be a positive integer"):
        DeloraConfig(**settings)
