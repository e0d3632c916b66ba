"""The quicker gradient of a norm is autograd's, and is taken only where the module is such a norm."""

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from engine.train import lean


def norm(kind, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    module = kind(32, eps=1e-5, **settings)
    with torch.no_grad():
        module.weight.add_(torch.randn(32) * 0.3)
    return module.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma3RMSNorm, nn.RMSNorm])
def test_the_gradient_is_autograd_s_however_it_is_cut(monkeypatch, kind, dtype, tolerance):
    monkeypatch.setattr(lean, "CACHED", 3 * 4 * 32)                              # three rows in one go, of twenty
    module, given = norm(kind, dtype), torch.randn(4, 5, 32).to(dtype)
    back = lean._root_mean_back(module, module)
    for scale in (1e-3, 1.0, 30.0):
        x = (torch.randn(4, 5, 32) * scale).to(dtype).requires_grad_()
        before = x.detach().clone()
        expected, = torch.autograd.grad(module(x), x, given)
        found, = back(x.detach(), given)
        assert torch.equal(x, before) and found.dtype == dtype
        turned = x.detach().transpose(0, 1).contiguous().transpose(0, 1)         # as the heads of an attention lie
        assert torch.equal(back(turned, given)[0], found)
        assert float((found.float() - expected.float()).norm() / expected.float().norm()) < tolerance


def test_other_norms_keep_autograd_s():
    class Squeezed(LlamaRMSNorm):
        def forward(self, x):
            return super().forward(x).tanh()

    assert all(lean._root_mean_back(other, other) is None for other in (norm(nn.LayerNorm), norm(Squeezed)))
    assert lean._root_mean_back(plain := nn.RMSNorm(32, elementwise_affine=False), plain) is None


def test_a_norm_that_is_run_again_is_the_same_and_learns_the_same_below():
    module, below = norm(LlamaRMSNorm), nn.Linear(32, 32)
    x = torch.randn(5, 32)
    plain, = torch.autograd.grad(module(below(x)).square().sum(), below.weight)
    seen = lean._again(module)(below(x))
    assert torch.equal(seen, module(below(x))) and torch.equal(seen._origin.recipe.make(*seen._origin.inputs), seen)
    found, = torch.autograd.grad(seen.square().sum(), below.weight)
    torch.testing.assert_close(found, plain)
