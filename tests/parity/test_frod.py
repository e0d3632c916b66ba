"""FRoD against the package `peft`, beyond the common table."""

from __future__ import annotations

import copy
import warnings

import peft as oracle
import pytest
import torch
from peft.tuners.frod.model import _category_from_key, _layer_index_from_key
from safetensors.torch import load_file
from torch import nn

import engine
from engine import PeftModel
from engine.methods.frod import category, depth

PATHS = ["lin", "encoder.layer.0.attention.self.query", "vision.encoder.layers.0.self_attn.q_proj", "encoder.layer.11.attention.output.dense",
         "encoder.layer.3.output.dense", "h.7", "layers.x.2.q", "layers", "blocks.5.mlp.0", "classifier.dense"]


class Blocks(nn.Module):
    """Two blocks with two kinds of layers, one of them wider than all its weights are high."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(6, 5), "down": nn.Linear(5, 6)}) for _ in range(2)])
        self.layers.append(nn.ModuleDict({"flat": nn.Linear(6, 2)}))

    def forward(self, x):
        for block in self.layers[:2]:
            x = x + block["down"](block["up"](x).tanh())
        return self.layers[2]["flat"](x)


def config(package, **settings):
    return package.FrodConfig(target_modules=["up", "down", "flat"], progressbar=False, sparse_rate=0.2, **settings)


@pytest.mark.parametrize("path", PATHS)
def test_kinds_and_depths_are_told_as_in_peft(path):
    assert category(path) == _category_from_key(path)
    assert depth(path, 99) == _layer_index_from_key(path, 99)


def test_one_frame_for_each_kind_in_files_too(tmp_path):
    torch.manual_seed(2)
    base, x = Blocks(), torch.randn(3, 6)
    tuned = {}
    for package in (engine, oracle):
        torch.manual_seed(4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned[package] = package.get_peft_model(copy.deepcopy(base), config(package, init_weights=False))
        tuned[package].save_pretrained(tmp_path / package.__name__)
    torch.testing.assert_close(tuned[engine](x), tuned[oracle](x), atol=1e-5, rtol=0)
    ours, theirs = (load_file(tmp_path / package.__name__ / "adapter_model.safetensors") for package in (engine, oracle))
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if name.startswith("base_model.frod_V.")} == {f"base_model.frod_V.{kind}" for kind in ("up", "down", "flat")}
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)
    torch.testing.assert_close(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "peft")(x), tuned[oracle](x), atol=1e-5, rtol=0)
