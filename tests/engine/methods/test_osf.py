"""OSF where PEFT does nothing or half: layers other than linear, two adapters at once; its gradients, families and errors."""

from __future__ import annotations


import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from engine import OSFConfig
from engine.errors import UnsupportedLayer
from engine.methods.osf import S0, U0, V0, S, U, V
from tests.support.one import one

LAYERS = {"linear": (lambda: nn.Linear(9, 6), (2, 9)), "tall": (lambda: nn.Linear(6, 9), (2, 6)), "square": (lambda: nn.Linear(7, 7), (2, 7)),
          "conv1D-transposed": (lambda: Conv1D(6, 9), (2, 9)), "conv2d": (lambda: nn.Conv2d(3, 6, 3), (2, 3, 5, 5)),
          "embedding": (lambda: nn.Embedding(9, 6), None)}


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_small_end_of_the_weight_is_replaced_on_every_kind_of_layer(layer, learning):
    make, shape = LAYERS[layer]
    peft, adapted = one(make(), OSFConfig(effective_rank=4))
    x = torch.arange(9) if shape is None else torch.randn(shape, dtype=torch.float64)
    p, W0 = adapted.tensors("a0"), adapted.canonical()
    u, s, v = torch.linalg.svd(W0, full_matrices=False)
    expected = (u[:, :4] * s[:4]) @ v[:4] + (p[U] * p[S]) @ p[V]
    torch.testing.assert_close(adapted.host.canonical(adapted.compose()), expected)
    with torch.set_grad_enabled(learning):
        running = peft(x)
    torch.testing.assert_close(peft.merge_and_unload()(x), running)


def test_two_adapters_add_exactly():
    """PEFT runs the first one only, and merges both."""
    layer, x = nn.Linear(9, 6), torch.randn(2, 9, dtype=torch.float64)
    peft, adapted = one(layer, OSFConfig(), OSFConfig(effective_rank=0.8))
    change = sum((p[U] * p[S]) @ p[V] - (p[U0] * p[S0]) @ p[V0] for p in map(adapted.tensors, ("a0", "a1")))
    torch.testing.assert_close(peft(x), layer(x) + x @ change.T)


@pytest.mark.parametrize("layer", ["linear", "tall", "square", "embedding"])
def test_no_step_goes_into_the_main_directions(layer):
    make, shape = LAYERS[layer]
    peft, adapted = one(make(), OSFConfig(effective_rank=4))
    x = torch.arange(9) if shape is None else torch.randn(shape, dtype=torch.float64)
    peft(x).sin().sum().backward()
    p = adapted.tensors("a0")
    u, _, v = torch.linalg.svd(adapted.canonical(), full_matrices=False)
    assert (u[:, :4].T @ p[U].grad).abs().max() < 1e-12 < p[U].grad.abs().max()
    assert (p[V].grad @ v[:4].T).abs().max() < 1e-12 < p[V].grad.abs().max()


@pytest.mark.parametrize("rank", [0, -1, 0.0])
def test_a_rank_that_is_not_positive(rank):
    with pytest.raises(ValueError, match="`effective_rank` should be a positive integer value"):
        OSFConfig(effective_rank=rank)


def test_what_would_have_no_effect_is_refused():
    with pytest.warns(UserWarning, match="`target_svd_config` has no effect"):
        OSFConfig(target_svd_config={"lin0.weight": 8})
    for rank in (6, 1.0, 100):
        with pytest.raises(UnsupportedLayer, match="leave one to learn"):
            one(nn.Linear(9, 6), OSFConfig(effective_rank=rank))
