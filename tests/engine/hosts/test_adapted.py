"""A layer with adapters as an object among others."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from engine import LoraConfig, get_peft_model
from tests.engine.test_laws import One


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copied", "pickled"])
@pytest.mark.parametrize("learning", [True, False])
def test_a_copy_that_has_run_before_runs_its_own_tensors(again, learning):
    peft = get_peft_model(One(nn.Linear(6, 4)), LoraConfig(r=2, target_modules=["first"], init_lora_weights=False)).eval()
    x = torch.randn(3, 6)
    with torch.set_grad_enabled(learning):
        before = peft(x)
        twin = again(peft)
        for tensor in twin.adapted["first"].tensors("default").values():
            tensor.data.zero_()
        assert torch.equal(peft(x), before)
        torch.testing.assert_close(twin(x), peft.adapted["first"].base_layer(x))
