"""OFT against dense arithmetic, above all where PEFT is wrong (convolutions with k > 1, several adapters at once)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import LoraConfig, OFTConfig
from engine.methods.oft import METHOD, cayley, cayley_neumann, nearest_divisor, skew
from tests.support.one import one


def dense_rotation(adapted, name: str) -> torch.Tensor:
    tenant = adapted.tenants[name]
    return torch.block_diag(*METHOD.rotation(adapted.tensors(name), tenant.config, tenant.site))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("learning", [True, False])
def test_on_a_convolution_the_kernel_as_a_matrix_is_turned(groups, learning):
    layer = nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=groups)
    peft, adapted = one(layer, OFTConfig(oft_block_size=4))
    x, W = torch.randn(2, 4, 7, 6, dtype=torch.float64), layer.weight
    turned = (W.flatten(1) @ dense_rotation(adapted, "a0").T).view_as(W)
    expected = F.conv2d(x, turned, layer.bias, stride=2, padding=1, groups=groups)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)
    torch.testing.assert_close(peft.merge_and_unload()(x), expected)


def test_on_a_convolution_it_starts_without_effect():
    layer = nn.Conv2d(4, 6, 3, padding=1)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    peft, _ = one(layer, OFTConfig(), noise=0)
    torch.testing.assert_close(peft(x), layer(x))              # PEFT's is off by about 4 here


@pytest.mark.parametrize("learning", [True, False])
def test_a_stack_is_a_chain_in_its_order(learning):
    layer = nn.Linear(12, 8)
    peft, adapted = one(layer, OFTConfig(oft_block_size=4), LoraConfig(r=2), OFTConfig(oft_block_size=6, use_cayley_neumann=False))
    x, W, b = torch.randn(5, 12, dtype=torch.float64), layer.weight, layer.bias
    lora = adapted.tensors("a1")
    first, added, last = dense_rotation(adapted, "a0"), 4 * lora["lora_B.weight"] @ lora["lora_A.weight"], dense_rotation(adapted, "a2")

    def half(V):
        return V + 0.5 * (V @ first.T - V)

    for order in (["a0", "a1", "a2"], ["a2", "a1", "a0"]):
        peft.set_adapter({n: 0.5 if n == "a0" else 1.0 for n in order})
        if order[0] == "a0":
            expected = (half(W) + added) @ last.T
        else:
            expected = half(W @ last.T + added)
        with torch.set_grad_enabled(learning):
            torch.testing.assert_close(peft(x), F.linear(x, expected, b))
        peft.merge_adapter()
        torch.testing.assert_close(peft(x), F.linear(x, expected, b))
        peft.unmerge_adapter()


def test_the_series_tends_to_the_exact_turn():
    Q = skew(torch.randn(3, 10, dtype=torch.float64) * 0.05, 5)
    exact = cayley(-Q)                     # the series is that of the opposite turn
    errors = [(cayley_neumann(Q, terms) - exact).norm().item() for terms in (2, 3, 5, 7)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-4
    torch.testing.assert_close(cayley_neumann(Q, 4), cayley_neumann(Q, 3))      # as in PEFT
    torch.testing.assert_close(exact @ exact.mT, torch.eye(5, dtype=torch.float64).expand(3, 5, 5))


def test_small_turns_stay_within_their_bound():
    peft, adapted = one(nn.Linear(12, 8), OFTConfig(oft_block_size=4, coft=True, eps=0.03))
    angles = adapted.tensors("a0")["oft_R.weight"]
    before = angles.detach().clone()
    x = torch.randn(5, 12, dtype=torch.float64)
    heard = peft(x)
    assert torch.equal(angles, before)     # listening changes nothing
    torch.testing.assert_close(peft.train()(x), heard)
    assert (2 ** 0.5 * angles.norm(dim=1) <= 0.03 / 3 ** 0.5 + 1e-12).all()
    assert not torch.equal(angles, before)


def test_blocks_at_rest_in_training_only():
    peft, adapted = one(nn.Linear(12, 12, bias=False), OFTConfig(oft_block_size=4, module_dropout=0.7))
    with torch.no_grad():
        adapted.base_layer.weight.copy_(torch.eye(12))
    x = torch.randn(1, 12, dtype=torch.float64)
    moved = (peft.train()(x) - x).view(3, 4).norm(dim=1) > 1e-9
    assert moved.sum() == 1                # int(0.7 · 3) = 2 of 3 rest
    assert ((peft.eval()(x) - x).view(3, 4).norm(dim=1) > 1e-9).all()


@pytest.mark.parametrize(("n", "wanted", "found"), [(12, 5, 4), (12, 4, 4), (12, 40, 12), (7, 2, 1), (7, 5, 7), (100, 32, 25), (64, 48, 32)])
def test_block_sizes_are_rounded_to_what_divides(n, wanted, found):
    assert nearest_divisor(n, wanted) == found


def test_impossible_settings():
    with pytest.raises(ValueError, match="Either `r` or `oft_block_size` must be non-zero"):
        OFTConfig(r=0, oft_block_size=0)
    with pytest.raises(ValueError, match="but not both simultaneously"):
        OFTConfig(r=4)
    with pytest.raises(ValueError, match="OFT has been updated since PEFT 0.14.0"):
        OFTConfig.from_dict({"r": 8})
    with pytest.warns(UserWarning, match="cayley-neumann parameterization"):
        OFTConfig.from_dict({"oft_block_size": 8, "use_cayley_neumann": True, "peft_version": "0.17.1"})
