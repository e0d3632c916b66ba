"""BEFT: a bias and nothing else, also where the layer has none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import BeftConfig, get_peft_model
from engine.errors import UnsupportedLayer
from tests.support.one import one


@pytest.mark.parametrize("layer", [lambda: nn.Linear(4, 6), lambda: nn.Linear(4, 6, bias=False), lambda: nn.Conv1d(4, 6, 3, bias=False)])
def test_outputs_move_by_the_bias_and_a_merge_keeps_that(layer):
    layer = layer()                        # PEFT refuses to merge into a layer without a bias
    bare = layer.bias is None
    peft, adapted = one(layer, BeftConfig(), BeftConfig())
    peft.set_adapter({"a0": 2.0, "a1": -0.5})
    x = torch.randn(2, 4, 9, dtype=torch.float64) if isinstance(layer, nn.Conv1d) else torch.randn(5, 4, dtype=torch.float64)
    moved = (2 * adapted.tensors("a0")["beft_bias"] - 0.5 * adapted.tensors("a1")["beft_bias"]).flatten()
    expected = layer(x) + (moved[:, None] if isinstance(layer, nn.Conv1d) else moved)
    torch.testing.assert_close(peft(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(peft(x), expected)
    peft.merge_adapter()
    torch.testing.assert_close(peft(x), expected)
    peft.unmerge_adapter()
    assert bare == (adapted.base_layer.bias is None)
    torch.testing.assert_close(peft.merge_and_unload()(x), expected)


def test_an_embedding_has_no_bias():
    with pytest.raises(UnsupportedLayer, match="bias"):
        get_peft_model(nn.Sequential(nn.Embedding(4, 6)), BeftConfig(target_modules=["0"]))
