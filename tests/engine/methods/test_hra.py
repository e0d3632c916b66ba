"""HRA against reflections done one after another."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import HRAConfig
from engine.errors import UnsupportedLayer
from tests.support.one import one


def chain(u: torch.Tensor) -> torch.Tensor:
    M = torch.eye(u.shape[0], dtype=u.dtype)
    for i in range(u.shape[1]):
        v = u[:, i:i + 1] / u[:, i].norm()
        M = M @ (torch.eye(u.shape[0], dtype=u.dtype) - 2 * v @ v.T)
    return M


def gram_schmidt(u: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    for i in range(u.shape[1]):
        v = u[:, i]
        for w in found:
            v = v - (w @ v) * w
        found.append(v / v.norm())
    Q = torch.stack(found, dim=1)
    return torch.eye(u.shape[0], dtype=u.dtype) - 2 * Q @ Q.T


@pytest.mark.parametrize("at_right_angles", [True, False])
@pytest.mark.parametrize("learning", [True, False])
def test_on_a_convolution_the_kernel_as_a_matrix_is_mirrored(learning, at_right_angles):
    layer = nn.Conv2d(4, 6, (3, 2), dilation=2, groups=2, padding=1)           # PEFT: square kernels without groups or dilation only
    peft, adapted = one(layer, HRAConfig(r=3, apply_GS=at_right_angles))
    M = (gram_schmidt if at_right_angles else chain)(adapted.tensors("a0")["hra_u"])
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    expected = F.conv2d(x, (layer.weight.flatten(1) @ M).view_as(layer.weight), layer.bias, dilation=2, groups=2, padding=1)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)
    torch.testing.assert_close(peft.merge_and_unload()(x), expected)


def test_a_stack_is_a_chain_in_its_order():
    layer = nn.Linear(12, 8)
    peft, adapted = one(layer, HRAConfig(r=4), HRAConfig(r=2))
    x = torch.randn(5, 12, dtype=torch.float64)
    first, second = (chain(adapted.tensors(n)["hra_u"]) for n in ("a0", "a1"))
    for order, expected in ((["a0", "a1"], layer.weight @ first @ second), (["a1", "a0"], layer.weight @ second @ first)):
        peft.set_adapter(order)
        torch.testing.assert_close(peft(x), F.linear(x, expected, layer.bias))
        with torch.no_grad():
            torch.testing.assert_close(peft(x), F.linear(x, expected, layer.bias))


def test_pairs_start_without_effect_and_right_angles_start_independent():
    layer, x = nn.Linear(12, 8), torch.randn(5, 12, dtype=torch.float64)
    peft, _ = one(layer, HRAConfig(r=4), noise=0)
    torch.testing.assert_close(peft(x), layer(x))
    _, adapted = one(nn.Linear(12, 8), HRAConfig(r=4, apply_GS=True), noise=0)
    assert torch.linalg.matrix_rank(adapted.tensors("a0")["hra_u"]) == 4


def test_impossible_settings():
    with pytest.raises(ValueError, match="`r` should be a positive integer value"):
        HRAConfig(r=0)
    with pytest.raises(UnsupportedLayer):
        one(nn.Embedding(12, 8), HRAConfig())
