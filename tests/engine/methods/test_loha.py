"""LoHa against dense arithmetic: both ways of running it, convolutions in parts, and what training drops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from engine import LoHaConfig
from engine.law import Site
from engine.methods.loha import METHOD
from tests.support.one import one


def tensors(cfg: LoHaConfig, site: Site) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(spec.shape, dtype=torch.float64, requires_grad=True) for name, spec in METHOD.tensors(cfg, site).items()}


@pytest.mark.parametrize("kernel", [(), (3,), (3, 2), (2, 2, 2)])
@pytest.mark.parametrize("effective", [False, True])
def test_the_factors_are_the_delta_and_both_are_entry_by_entry(kernel, effective):
    cfg = LoHaConfig(r=2, alpha=6, use_effective_conv2d=effective)
    channels = 12
    site = Site("x", "conv" if kernel else "linear", 16, channels * math.prod(kernel), kernel)
    p = tensors(cfg, site)
    delta, f = METHOD.delta(p, cfg, site), METHOD.factors(p, cfg, site)
    assert f.A.shape == (4, site.columns)
    torch.testing.assert_close(f.scale * f.B @ f.A, delta)
    if "hada_t1" in p:                     # ΔW[o, c, k] = 3 · Σ t1[i, j, k] w1a[i, o] w1b[j, c] · the same of the second
        halves = [torch.einsum("ijk,io,jc->ock", p[f"hada_t{n}"].flatten(2), p[f"hada_w{n}_a"], p[f"hada_w{n}_b"]).flatten(1) for n in (1, 2)]
    else:
        halves = [p[f"hada_w{n}_a"] @ p[f"hada_w{n}_b"] for n in (1, 2)]
    torch.testing.assert_close(delta, 3 * halves[0] * halves[1])


def test_the_gradient_of_a_convolution_in_parts_is_that_of_its_delta():
    cfg = LoHaConfig(r=2, use_effective_conv2d=True)          # PEFT's own backward takes the other half's core for w1_a and w2_a
    site = Site("x", "conv", 4, 18, (3, 2))
    p = tensors(cfg, site)
    names, values = list(p), tuple(p.values())
    assert torch.autograd.gradcheck(lambda *v: METHOD.delta(dict(zip(names, v)), cfg, site), values)


def test_no_factors_where_they_would_be_larger_than_the_delta():
    cfg = LoHaConfig(r=4)
    assert METHOD.factors(tensors(cfg, Site("x", "linear", 16, 16)), cfg, Site("x", "linear", 16, 16)) is None


@pytest.mark.parametrize(("r", "share"), [(1, 0.5), (3, 0.5), (1, 0.0)])
def test_rank_dropout_drops_outputs_in_training_only_and_keeps_the_mean(r, share):
    layer = nn.Linear(12, 8)
    peft, adapted = one(layer, LoHaConfig(r=r, rank_dropout=share))
    x = torch.randn(5, 12, dtype=torch.float64)
    full = peft.eval()(x) - layer(x)
    peft.train()
    torch.manual_seed(3)
    seen = peft(x) - layer(x)
    torch.manual_seed(3)
    kept = (torch.rand(8) >= share).double()
    torch.testing.assert_close(seen, full * kept / kept.mean(), atol=1e-6, rtol=1e-5)
    assert 0 < kept.sum() < 8 or not share


def test_module_dropout_leaves_a_layer_out_for_a_step():
    layer = nn.Conv1d(4, 6, 3)
    peft, _ = one(layer, LoHaConfig(r=1, module_dropout=0.5))
    x = torch.randn(2, 4, 9, dtype=torch.float64)
    full, base = peft.eval()(x), layer(x)
    peft.train()
    steps = [peft(x) for _ in range(20)]
    out = [torch.equal(y, base) for y in steps]
    assert 0 < sum(out) < 20
    assert all(left_out or torch.allclose(y, full) for left_out, y in zip(out, steps))


def test_a_step_that_drops_every_output_is_silent_not_nan():
    peft, adapted = one(nn.Linear(3, 1), LoHaConfig(r=1, rank_dropout=0.9))
    x = torch.randn(5, 3, dtype=torch.float64)
    assert all(torch.isfinite(peft.train()(x)).all() for _ in range(20))


@pytest.mark.parametrize("settings", [{"r": 0}, {"r": 2, "rank_pattern": {"q": -1}}])
def test_impossible_settings(settings):
    with pytest.raises(ValueError, match="` should be a positive integer"):
        LoHaConfig(**settings)
