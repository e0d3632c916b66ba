"""FRoD: the frame that layers share, its start, its files, and layers for which PEFT has no code."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import engine
from engine import FrodConfig, PeftModel, get_peft_model
from engine.errors import UnsupportedLayer
from engine.hosts import learning
from engine.numerics.frames import off_diagonal
from tests.support.one import one



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


def test_without_the_frame_in_its_file_it_is_made_again(tmp_path):
    torch.manual_seed(2)
    base, x = Blocks(), torch.randn(3, 6)
    tuned = get_peft_model(copy.deepcopy(base), config(engine, init_weights=False, save_projection=False))
    tuned.save_pretrained(tmp_path)
    assert not any("frod_V" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    again = PeftModel.from_pretrained(base, tmp_path)
    assert again.load_report.complete
    assert torch.equal(again(x), tuned.eval()(x))


def test_it_starts_with_exactly_no_effect():
    """PEFT's start is off by the rounding of a decomposition; so is ours, but only while it trains."""
    torch.manual_seed(2)
    base, x = Blocks(), torch.randn(3, 6)
    assert torch.equal(get_peft_model(copy.deepcopy(base), config(engine)).eval()(x), base(x))


def test_training_without_the_weight_is_training_with_it(monkeypatch):
    layer = nn.Linear(24, 16).double()
    peft, adapted = one(layer, FrodConfig(sparse_rate=0.04))
    x, names, found = torch.randn(2, 3, 24).double(), [n for n, p in peft.named_parameters() if p.requires_grad], []
    peft.train()
    for watched in (False, True):
        monkeypatch.setattr(learning, "is_watched", lambda base, watched=watched: watched)
        entering = x.clone().requires_grad_()
        y = peft(entering)
        found.append([y, *torch.autograd.grad(y.square().sum(), [entering, *(peft.get_parameter(n) for n in names)])])
    for without, plain in zip(*found, strict=True):
        torch.testing.assert_close(without, plain, atol=1e-4, rtol=1e-5)           # the frame is found in float32
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 9), lambda: nn.Linear(9, 5), lambda: nn.Conv1d(4, 6, 3, groups=2)],
                         ids=["tall", "flat", "grouped convolution"])
def test_the_weight_is_what_the_paper_says(make, learning):
    layer = make()
    peft, adapted = one(layer, FrodConfig(sparse_rate=0.3))
    p, x = adapted.all_tensors("a0"), torch.randn(3, 4, 8).double() if isinstance(layer, nn.Conv1d) else torch.randn(3, layer.in_features).double()
    S = torch.diag(p["frod_lambda_l"])
    S[tuple(p["frod_s_indices.layer"])] += p["frod_lambda_s_values"]
    weight = (p["frod_U"] @ S @ p["frod_V.layer"].T).view_as(layer.weight)
    expected = F.conv1d(x, weight, layer.bias, groups=2) if isinstance(layer, nn.Conv1d) else F.linear(x, weight, layer.bias)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected, atol=1e-6, rtol=0)           # the frame is found in float32
    torch.testing.assert_close(peft.merge_and_unload()(x), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("width", "count"), [(2, 2), (7, 42), (7, 5), (1, 0)])
def test_places_are_off_the_diagonal_and_none_twice(width, count):
    rows, columns = off_diagonal(width, count, torch.Generator().manual_seed(0))
    assert (rows != columns).all() and len(set(zip(rows.tolist(), columns.tolist()))) == count
    assert count == 0 or max(rows.max(), columns.max()) < width


def test_what_cannot_be():
    with pytest.raises(UnsupportedLayer, match="as large as the vocabulary"):
        one(nn.Embedding(9, 4), FrodConfig())
    model = nn.ModuleDict({"a": nn.ModuleDict({"0": nn.ModuleDict({"q": nn.Linear(4, 4)}), "1": nn.ModuleDict({"q": nn.Linear(5, 4)})})})
    with pytest.raises(UnsupportedLayer, match="share one frame, but their widths differ"):
        get_peft_model(model, FrodConfig(target_modules=["q"]))
    with pytest.raises(ValueError, match="`sparse_rate` should be between 0 and 1"):
        FrodConfig(sparse_rate=1.5)
    with pytest.raises(ValueError, match="`runtime_offload_base_weight` is not offered"):
        FrodConfig(runtime_offload_base_weight=True)
