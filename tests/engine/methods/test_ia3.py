"""IA³ by dense arithmetic where PEFT has no code, its families of models, and its errors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import IA3Config, get_peft_model
from engine.errors import UnsupportedLayer
from tests.support.one import One, one


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("feedforward", [True, False])
def test_grouped_convolutions_scale_channel_by_channel(feedforward, learning):
    layer = nn.Conv1d(6, 4, 3, padding=1, groups=2)
    peft, adapted = one(layer, IA3Config(target_modules=["layer"], feedforward_modules=["layer"] if feedforward else []))
    scale, x = adapted.tensors("a0")["ia3_l"], torch.randn(2, 6, 9, dtype=torch.float64)
    assert scale.shape == ((1, 6, 1) if feedforward else (1, 4, 1))
    expected = layer(x * scale) if feedforward else layer(x) * scale
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)
    torch.testing.assert_close(peft.merge_and_unload()(x), expected)


def test_an_embeddings_vectors_are_scaled():
    layer, x = nn.Embedding(10, 4), torch.tensor([[1, 2], [9, 0]])
    peft, adapted = one(layer, IA3Config(feedforward_modules=[]))
    expected = F.embedding(x, layer.weight) * adapted.tensors("a0")["ia3_l"].flatten()
    torch.testing.assert_close(peft(x), expected)
    torch.testing.assert_close(peft.merge_and_unload()(x), expected)
    with pytest.raises(UnsupportedLayer):
        one(nn.Embedding(10, 4), IA3Config(target_modules=["layer"], feedforward_modules=["layer"]))


def test_the_family_of_the_model_decides_what_was_left_open():
    model = One(nn.ModuleDict({name: nn.Linear(4, 4) for name in ("q_proj", "k_proj", "v_proj", "down_proj")}))
    model.config = SimpleNamespace(model_type="llama")
    peft = get_peft_model(model, IA3Config())
    shapes = {path.rpartition(".")[2]: tuple(layer.tensors("default")["ia3_l"].shape) for path, layer in peft.adapted.items()}
    assert shapes == {"k_proj": (4, 1), "v_proj": (4, 1), "down_proj": (1, 4)}
    assert peft.peft_config["default"].feedforward_modules == ["down_proj"]


def test_impossible_settings():
    with pytest.raises(ValueError, match="should be a subset of `target_modules`"):
        IA3Config(target_modules=["q"], feedforward_modules=["k"])
    with pytest.raises(ValueError, match="Please specify `feedforward_modules`"):
        one(nn.Linear(4, 4), IA3Config())
