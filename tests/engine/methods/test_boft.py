"""BOFT against the dense butterfly that its definition spells out; PEFT runs several factors only with its CUDA kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import BOFTConfig
from engine.errors import UnsupportedLayer
from tests.support.one import one


def dense_butterfly(R: torch.Tensor) -> torch.Tensor:
    """B as PEFT builds it: P · blocks · Pᵀ of every factor, the last one leftmost."""
    factors, many, size, _ = R.shape
    n = many * size
    B = torch.eye(n, dtype=R.dtype)
    for level in range(factors):
        order = torch.arange(n)
        if level:
            width, half = size * 2 ** level, size // 2
            steps = width // half
            order = torch.cat([start + torch.cat([torch.arange(s * half, (s + 1) * half) for s in (*range(0, steps, 2), *range(1, steps, 2))])
                               for start in range(0, n, width)])
        P = torch.eye(n, dtype=R.dtype)[order]
        turns = []
        for block in R[level]:
            Q, I = (block - block.T) / 2, torch.eye(size, dtype=R.dtype)
            turns.append((I - Q) @ torch.linalg.inv(I + Q))
        B = P @ torch.block_diag(*turns) @ P.T @ B
    return B


@pytest.mark.parametrize("factors", [1, 2, 3])
@pytest.mark.parametrize("learning", [True, False])
def test_every_factor_turns(factors, learning):
    layer = nn.Linear(16, 6)
    peft, adapted = one(layer, BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=factors))
    p, x = adapted.tensors("a0"), torch.randn(5, 16, dtype=torch.float64)
    B = dense_butterfly(p["boft_R"])
    torch.testing.assert_close(B @ B.T, torch.eye(16, dtype=torch.float64))
    expected = F.linear(x, p["boft_s"] * (layer.weight @ B.T), layer.bias)      # the bias is not scaled
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)
    torch.testing.assert_close(peft.merge_and_unload()(x), expected)


@pytest.mark.parametrize("learning", [True, False])
def test_on_a_convolution_the_kernel_as_a_matrix_is_turned(learning):
    layer = nn.Conv2d(4, 6, (3, 1), padding=(2, 0), dilation=2, groups=2)      # PEFT: square kernels without groups or dilation only
    peft, adapted = one(layer, BOFTConfig(boft_block_size=3))
    p, x = adapted.tensors("a0"), torch.randn(2, 4, 7, 6, dtype=torch.float64)
    W = (p["boft_s"].view(6, 1) * (layer.weight.flatten(1) @ dense_butterfly(p["boft_R"]).T)).view_as(layer.weight)
    expected = F.conv2d(x, W, layer.bias, padding=(2, 0), dilation=2, groups=2)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)
    torch.testing.assert_close(peft.merge_and_unload()(x), expected)


def test_blocks_at_rest_in_training_only():
    peft, adapted = one(nn.Linear(12, 12, bias=False), BOFTConfig(boft_block_size=4, boft_dropout=0.7))
    with torch.no_grad():
        adapted.base_layer.weight.copy_(torch.eye(12))
        adapted.tensors("a0")["boft_s"].fill_(1)
    x = torch.randn(1, 12, dtype=torch.float64)
    assert ((peft.train()(x) - x).view(3, 4).norm(dim=1) > 1e-9).sum() == 1
    assert ((peft.eval()(x) - x).view(3, 4).norm(dim=1) > 1e-9).all()


def test_impossible_settings():
    with pytest.raises(ValueError, match="must be non-zero"):
        BOFTConfig(boft_block_size=0)
    with pytest.raises(ValueError, match="but not both simultaneously"):
        BOFTConfig(boft_block_num=4)
    with pytest.raises(ValueError, match="to be a positive integer number"):
        BOFTConfig(boft_n_butterfly_factor=0)
    for settings, phrase in (({"boft_block_size": 5}, "must be divisible by boft_block_size"),
                             ({"boft_block_size": 0, "boft_block_num": 5}, "must be divisible by boft_block_num"),
                             ({"boft_block_size": 3, "boft_n_butterfly_factor": 2}, "Invalid combination"),
                             ({"boft_block_size": 4, "boft_n_butterfly_factor": 2}, "Invalid combination")):
        with pytest.raises(UnsupportedLayer, match=phrase):
            one(nn.Linear(12, 8), BOFTConfig(**settings))
    with pytest.raises(UnsupportedLayer):
        one(nn.Embedding(12, 8), BOFTConfig())
