"""An adapter that is named twice counts twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import IA3Config, LoraConfig, get_peft_model


@pytest.mark.parametrize("config, how", [(LoraConfig(r=4, target_modules=["0"]), {"combination_type": "cat"}),
                                         (LoraConfig(r=4, target_modules=["0"]), {"combination_type": "svd"}),
                                         (IA3Config(target_modules=["0"], feedforward_modules=[]), {})], ids=["cat", "svd", "ia3"])
def test_half_and_half_of_an_adapter_is_that_adapter(config, how):
    model, x = get_peft_model(nn.Sequential(nn.Linear(16, 24)), config, "a").eval(), torch.randn(3, 16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".a" in name:
                parameter.normal_()
    model.add_weighted_adapter(["a", "a"], [0.5, 0.5], "both", **how)
    model.set_adapter("a")
    once = model(x)
    model.set_adapter("both")
    torch.testing.assert_close(model(x), once, atol=1e-4, rtol=1e-4)
