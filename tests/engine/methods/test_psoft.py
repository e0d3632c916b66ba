"""PSOFT: rotations within the main directions, on all kinds of layers; its errors and warnings."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from engine import PsoftConfig
from engine.errors import UnsupportedLayer
from engine.methods.psoft import cayley_series, turn
from tests.support.one import one

PURE = {"psoft_mag_a": False, "psoft_mag_b": False}


@pytest.mark.parametrize("make", [lambda: nn.Linear(9, 6), lambda: Conv1D(6, 9), lambda: nn.Conv1d(3, 6, 3), lambda: nn.Embedding(9, 6)],
                         ids=["linear", "conv1D-transposed", "conv1d", "embedding"])
def test_a_pure_rotation_keeps_the_sizes_of_the_weight(make):
    """PEFT has code for linear layers alone."""
    peft, adapted = one(make(), PsoftConfig(r=4, **PURE))
    before = adapted.canonical()
    after = adapted.host.canonical(adapted.compose())
    assert not torch.allclose(before, after, atol=1e-3)
    # W = U S V: the rotation acts between (U S) and V, whose rows stay orthonormal, so the Gram matrix of the rest of W is untouched
    U, S, V = torch.linalg.svd(before, full_matrices=False)
    R = turn(adapted.tensors("a0"), adapted.tenants["a0"].config)
    torch.testing.assert_close(R @ R.T, torch.eye(4, dtype=torch.float64))
    expected = before + (U[:, :4] * S[:4]) @ (R - torch.eye(4)) @ V[:4]
    torch.testing.assert_close(after, expected)
    torch.testing.assert_close(after @ after.T, expected @ expected.T)


def test_the_loudness_cancels():
    torch.manual_seed(1)
    layer, x = nn.Linear(9, 6), torch.randn(2, 9, dtype=torch.float64)
    outputs = [one(layer, PsoftConfig(r=4, psoft_alpha=alpha, ab_svd_init="pissa_init"))[0](x) for alpha in (4, 64)]
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 8])
def test_the_series_is_the_beginning_of_the_rotation(terms):
    torch.manual_seed(0)
    Q = torch.randn(5, 5, dtype=torch.float64) * 0.05
    Q, I = Q - Q.T, torch.eye(5, dtype=torch.float64)
    exact = torch.linalg.solve(I - Q, I + Q, left=False)
    near = cayley_series(Q, terms, None)
    size = torch.linalg.matrix_norm(Q, 2)
    left_out = max(terms, 4) - 1 if terms > 2 else terms       # the first power that is not there in full
    assert torch.linalg.matrix_norm(exact - near, 2) <= 2 * size ** left_out / (1 - size)


def test_the_bound_shrinks_what_is_too_large():
    Q = torch.tensor([[0.0, 3.0], [-3.0, 0.0]])
    torch.testing.assert_close(cayley_series(Q, 5, 0.5), cayley_series(Q * 0.5 / 18 ** 0.5, 5, None))
    small = Q / 100
    assert torch.equal(cayley_series(small, 5, 0.5), cayley_series(small, 5, None))


def test_errors_and_warnings():
    for wrong, words in [({"r": 0}, "`r` must be a positive integer"), ({"ab_svd_init": "x"}, "`ab_svd_init` must be one of"),
                         ({"psoft_svd": "x"}, "`psoft_svd` must be one of"),
                         ({"use_cayley_neumann": True, "num_cayley_neumann_terms": 0}, "`num_cayley_neumann_terms` must be a positive"),
                         ({"use_cayley_neumann": True, "cayley_neumann_eps": 1.5}, "`cayley_neumann_eps` must be in")]:
        with pytest.raises(ValueError, match=words):
            PsoftConfig(**wrong)
    for idle in ({"psoft_svd_lowrank_niter": 3}, {"num_cayley_neumann_terms": 7}, {"cayley_neumann_eps": 0.5}):
        with pytest.warns(UserWarning, match=f"{next(iter(idle))}=.* will be ignored"):
            PsoftConfig(**idle)
    with pytest.raises(UnsupportedLayer, match="must be less than or equal to"):
        one(nn.Linear(9, 6), PsoftConfig(r=7))
    with pytest.raises(UnsupportedLayer, match="grouped convolution"):
        one(nn.Conv1d(4, 4, 3, groups=2), PsoftConfig(r=2))
