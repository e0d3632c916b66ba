"""DEFT by dense arithmetic, also on layers for which PEFT has no code, and its errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import DeftConfig
from tests.support.one import one


def projector(P: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(what is injected along, the matrix that takes out)."""
    if kind == "relu":
        return P, P @ P.clamp_min(0).T
    Q = torch.linalg.qr(P).Q
    return Q, Q @ Q.T


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("kind", ["relu", "qr"])
@pytest.mark.parametrize("para", [True, False])
def test_taken_out_and_filled_in(kind, para, learning):
    layer = nn.Conv2d(4, 6, 3, padding=1)
    peft, adapted = one(layer, DeftConfig(r=2, decomposition_method=kind, para=para, alpha=6))
    p, W, x = adapted.tensors("a0"), layer.weight.flatten(1), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    Q, taken = projector(p["deft_P"], kind)
    weight = W - taken @ W + (0 if para else 3 * Q @ p["deft_R"])
    expected = F.conv2d(x, weight.view_as(layer.weight), layer.bias, padding=1)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)
    torch.testing.assert_close(peft.merge_and_unload()(x), expected)


@pytest.mark.parametrize("kind", ["relu", "qr"])
@pytest.mark.parametrize("alpha", [None, 5])
def test_it_starts_without_effect(kind, alpha):
    layer, x = nn.Embedding(10, 8), torch.tensor([[1, 9], [0, 3]])
    peft, _ = one(layer, DeftConfig(r=3, alpha=alpha, decomposition_method=kind), noise=0)
    torch.testing.assert_close(peft(x), layer(x))


def test_an_orthogonal_projection_empties_its_subspace():
    layer = nn.Linear(5, 7)
    peft, adapted = one(layer, DeftConfig(r=3, para=True, decomposition_method="qr"))
    left = peft.merge_and_unload().layer.weight
    assert (adapted.tensors("a0")["deft_P"].T @ left).abs().max() < 1e-12


def test_the_rank_is_no_more_than_there_are_outputs():
    _, adapted = one(nn.Linear(9, 2), DeftConfig(r=8))
    assert adapted.tensors("a0")["deft_P"].shape == (2, 2)


def test_impossible_settings():
    with pytest.raises(ValueError, match="Unknown decomposition_method 'svd', must be one of"):
        DeftConfig(decomposition_method="svd")
    with pytest.raises(ValueError, match="`r` should be a positive integer"):
        DeftConfig(r=0)
