"""GraLoRA against dense arithmetic, block by block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import GraloraConfig, get_peft_model
from engine.errors import UnsupportedLayer
from engine.law import Site
from engine.methods.gralora import METHOD
from tests.support.one import one


@pytest.mark.parametrize("hybrid", [0, 3])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_each_block_of_the_grid_is_a_small_lora(k, hybrid):
    layer = nn.Linear(12, 8)
    cfg = GraloraConfig(r=4, alpha=6, gralora_k=k, hybrid_r=hybrid)
    peft, adapted = one(layer, cfg)
    p, x = {n: t.detach() for n, t in adapted.tensors("a0").items()}, torch.randn(2, 5, 12, dtype=torch.float64)
    share, rows, columns, dense = 4 // k, 8 // k, 12 // k, torch.zeros(8, 12, dtype=torch.float64)
    for j in range(k):
        for n in range(k):
            A = p["gralora_A"][n][:, j * share:(j + 1) * share]                   # what output block j is told of input block n
            B = p["gralora_B"][j][n * share:(n + 1) * share]
            dense[j * rows:(j + 1) * rows, n * columns:(n + 1) * columns] = (A @ B).T
    if hybrid:
        dense += p["gralora_B_general.weight"] @ p["gralora_A_general.weight"]
    expected = layer(x) + 6 / (4 + hybrid) * F.linear(x, dense)
    torch.testing.assert_close(peft.train()(x), expected)
    torch.testing.assert_close(peft.eval()(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(peft(x), expected)
    assert METHOD.factors(p, cfg, adapted.site).A.shape[0] == 4 * k + hybrid


def test_a_layer_off_the_grid_is_refused():
    with pytest.raises(UnsupportedLayer, match="in_features should be divisible by gralora_k"):
        get_peft_model(nn.Sequential(nn.Linear(9, 8)), GraloraConfig(r=4, target_modules=["0"]))
    with pytest.raises(UnsupportedLayer, match="out_features should be divisible by gralora_k"):
        get_peft_model(nn.Sequential(nn.Linear(8, 9)), GraloraConfig(r=4, target_modules=["0"]))


def test_a_second_part_from_a_file_leaves_the_first_its_start():
    specs = METHOD.tensors(GraloraConfig(r=4, init_weights=False), Site("x", "linear", 8, 12))
    B = torch.empty(specs["gralora_B"].shape)
    specs["gralora_B"].init(B)             # A was there already
    assert B.isfinite().all() and B.abs().sum() > 0


@pytest.mark.parametrize(("settings", "phrase"), [({"r": 5}, "r should be divisible by gralora_k"), ({"r": 0}, "`r` should be a positive"),
                                                  ({"gralora_k": 0}, "`gralora_k` should be a positive"), ({"hybrid_r": -1}, "non-negative")])
def test_impossible_settings(settings, phrase):
    with pytest.raises(ValueError, match=phrase):
        GraloraConfig(**settings)
