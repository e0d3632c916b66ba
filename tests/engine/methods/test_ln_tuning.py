"""LN tuning: what a file holds comes back whole, biases too."""

from __future__ import annotations

import copy

import torch
from torch import nn

import engine


def test_a_norms_bias_comes_back_from_the_file(tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6))
    model = engine.get_peft_model(copy.deepcopy(base), engine.LNTuningConfig(target_modules=["1"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    loaded = engine.PeftModel.from_pretrained(base, tmp_path)
    assert loaded.load_report.complete, loaded.load_report.sentence()
    x = torch.randn(3, 4)
    torch.testing.assert_close(loaded(x), model.eval()(x))
