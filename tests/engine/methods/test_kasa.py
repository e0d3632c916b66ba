"""KaSA: the cut is a part of the adapter and not of the base; its loss; what it cannot be combined with."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from engine import KasaConfig, LoraConfig, get_peft_model
from engine.errors import UnsupportedLayer
from tests.support.one import One, one



def config(**settings) -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=3, kasa_config=KasaConfig(), **settings)


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("make", [lambda: nn.Linear(9, 6), lambda: nn.Conv2d(3, 6, 3), lambda: nn.Embedding(9, 6)],
                         ids=["linear", "conv2d", "embedding"])
def test_the_smallest_components_make_room(make, learning):
    """PEFT has code for linear layers alone."""
    layer = make()
    peft, adapted = one(layer, config())
    W0, (A, B) = adapted.canonical(), (adapted.tensors("a0")[n].flatten(1) for n in (
        ("lora_embedding_A", "lora_embedding_B") if isinstance(layer, nn.Embedding) else ("lora_A.weight", "lora_B.weight")))
    u, s, v = torch.linalg.svd(W0, full_matrices=False)
    expected = (u[:, :-2] * s[:-2]) @ v[:-2] + 1.5 * (B * adapted.tensors("a0")["lora_diag"]) @ A
    torch.testing.assert_close(adapted.host.canonical(adapted.compose()), expected)
    x = torch.arange(9) if isinstance(layer, nn.Embedding) else torch.randn(2, *((9,) if isinstance(layer, nn.Linear) else (3, 5, 5))).double()
    with torch.set_grad_enabled(learning):
        running = peft(x)
    torch.testing.assert_close(peft.merge_and_unload()(x), running)


def test_without_the_adapter_the_base_is_whole():
    """PEFT cuts the base for good."""
    layer = nn.Linear(9, 6)
    before, x = copy.deepcopy(layer).double(), torch.randn(2, 9, dtype=torch.float64)
    peft, _ = one(layer, config())
    with peft.disable_adapter():
        assert torch.equal(peft(x), before(x))
    assert torch.equal(peft.unload().layer.weight, before.weight)


def test_it_goes_beside_an_adapter_without_a_cut():
    """PEFT refuses this, since it has only one base."""
    layer, x = nn.Linear(9, 6), torch.randn(2, 9, dtype=torch.float64)
    peft, _ = one(layer, config(), LoraConfig(r=2))
    both, base = peft(x), layer(x)
    alone = []
    for name in ("a0", "a1"):
        peft.set_adapter(name)
        alone.append(peft(x) - base)
    torch.testing.assert_close(both, base + alone[0] + alone[1])


def test_what_it_cannot_be():
    with pytest.raises(UnsupportedLayer, match="smaller than min"):
        get_peft_model(One(nn.Linear(9, 2)), config(target_modules=["layer"]))
    for other in ({"use_dora": True}, {"lora_bias": True}, {"init_lora_weights": "pissa"}):
        with pytest.raises(ValueError, match="combination"):
            config(**other)
    for wrong in ({"beta": -1}, {"gamma": -0.1}):
        with pytest.raises(ValueError, match="must be non-negative"):
            KasaConfig(**wrong)
