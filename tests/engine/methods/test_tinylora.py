"""TinyLoRA: the directions of the base, who shares a vector with whom, and a random start that is finite."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import TinyLoraConfig, get_peft_model
from engine.methods.tinylora import METHOD
from tests.support.one import one


@pytest.mark.parametrize("layer", [lambda: nn.Linear(6, 8), lambda: nn.Conv2d(3, 5, 2), lambda: nn.Embedding(9, 4)])
def test_the_change_lies_in_the_largest_directions_of_the_base(layer):
    layer = layer().double()
    peft, adapted = one(layer, TinyLoraConfig(r=2, u=3))
    site, p = adapted.site, adapted.all_tensors("a0")
    W0 = layer.weight.T if site.kind == "embedding" else layer.weight.flatten(1)
    U, S, Vh = torch.linalg.svd(W0, full_matrices=False)
    delta = METHOD.delta(p, peft.peft_config["a0"], adapted.tenants["a0"].site)
    inside = U[:, :2] @ (U[:, :2].T @ delta @ Vh[:2].T) @ Vh[:2]
    torch.testing.assert_close(delta, inside, atol=1e-5, rtol=0)              # the directions are computed in single precision
    R = torch.einsum("i,ijk->jk", p["tinylora_v.0"], p["tinylora_P"])
    kernel = p["tinylora_B"] @ R @ p["tinylora_A"]
    torch.testing.assert_close(delta, kernel.T if site.kind == "embedding" else kernel)


@pytest.mark.parametrize(("tying", "groups"), [(0.0, [0, 1, 2, 3, 4]), (1.0, [0] * 5), (0.5, [0, 0, 1, 1, 1]), (0.7, [0, 0, 1, 1, 1])])
def test_neighbours_share_a_vector(tying, groups):
    base = nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)])
    peft = get_peft_model(base, TinyLoraConfig(u=3, weight_tying=tying, target_modules=list("01234")))
    assert sorted(peft.shared_tensors("default")) == [f"tinylora_v.{i}" for i in sorted(set(groups))]
    tenants = [layer.tenants["default"] for layer in peft.adapted.values()]
    assert [METHOD.group(t.config, t.site) for t in tenants] == groups
    assert sum(q.numel() for q in peft.parameters() if q.requires_grad) == 3 * len(set(groups))


def test_each_layer_has_projections_of_its_own():
    peft = get_peft_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), TinyLoraConfig(u=3, target_modules=["0", "1"], projection_seed=5))
    P = [peft.adapted[i].tensors("default")["tinylora_P"] for i in "01"]
    for i in (0, 1):
        torch.testing.assert_close(P[i], torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(5 + i)) / 2**0.5)


def test_a_random_start_is_within_its_bounds():
    """PEFT leaves the vector uninitialised for `init_weights=False`, which may be anything."""
    for start in (False, "uniform"):
        peft = get_peft_model(nn.Sequential(nn.Linear(4, 4)), TinyLoraConfig(u=500, init_v_bound=0.3, init_weights=start, target_modules=["0"]))
        v = peft.shared_tensors("default")["tinylora_v.0"]
        assert 0.25 < v.abs().max() <= 0.3


def test_it_runs_where_only_what_learns_is_in_single_precision(tmp_path):
    base = nn.Sequential(nn.Linear(6, 4).bfloat16())
    peft = get_peft_model(base, TinyLoraConfig(u=3, target_modules=["0"], init_weights="uniform"))
    p = peft.adapted["0"].all_tensors("default")
    p["tinylora_A"].data = p["tinylora_A"].data.bfloat16()
    p["tinylora_P"].data = p["tinylora_P"].data.double()
    x = torch.ones(1, 6).bfloat16()
    torch.testing.assert_close(peft.eval()(x), peft.merge_and_unload()(x), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("settings", "phrase"), [
    ({"r": 0}, "`r` should be a positive integer"), ({"u": 0}, "`u` should be a positive integer"),
    ({"weight_tying": 1.1}, "between 0.0 and 1.0"), ({"init_weights": "normal"}, "Unknown initialization")])
def test_impossible_settings(settings, phrase):
    with pytest.raises(ValueError, match=phrase):
        TinyLoraConfig(**settings)


def test_what_it_cannot_sit_on():
    with pytest.raises(ValueError, match="grouped"):
        get_peft_model(nn.Sequential(nn.Conv1d(4, 4, 3, groups=2)), TinyLoraConfig(target_modules=["0"]))
