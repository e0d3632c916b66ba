"""Every method on every layer that PEFT can do too: the same start from the same seed, outputs, gradients, merged weights, files both ways."""

from __future__ import annotations

import copy
import warnings

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import engine
from tests.support.methods import METHODS

LAYERS = {
    "linear": (lambda: nn.Linear(12, 8), (2, 5, 12)),
    "linear-no-bias": (lambda: nn.Linear(12, 8, bias=False), (5, 12)),
    "linear-square": (lambda: nn.Linear(12, 12), (5, 12)),
    "conv1D-transposed": (lambda: Conv1D(8, 12), (2, 5, 12)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 11)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(1, 2)), (2, 4, 7, 6)),
    "conv2d-1x1": (lambda: nn.Conv2d(4, 8, 1), (2, 4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2, padding=1), (1, 2, 4, 4, 4)),
    "embedding": (lambda: nn.Embedding(10, 8), None),
    "norm": (lambda: nn.LayerNorm(12), (5, 12)),
}
ROWS = [(method, layer) for method, row in METHODS.items() for layer in row.layers]
rows = pytest.mark.parametrize(("method", "layer"), ROWS, ids=["·".join(r) for r in ROWS])


class Two(nn.Module):
    """Two layers of a kind side by side (so that what is shared between layers is seen), summed."""

    def __init__(self, make):
        super().__init__()
        self.first, self.second = make(), make()

    def forward(self, x):
        return self.first(x) + self.second(x)


def pristine(layer: str) -> Two:
    torch.manual_seed(3)
    return Two(LAYERS[layer][0])


def pair(method: str, layer: str):
    """(ours, PEFT's, input): the same adapter from the same seed on equal bases."""
    row, (_, shape) = METHODS[method], LAYERS[layer]
    base = pristine(layer)
    x = torch.randint(0, 10, (3, 4)) if shape is None else torch.randn(shape)
    built = []
    for package in (engine, peft):
        settings = {"target_modules": ["first", "second"], **row.settings}
        if layer == "conv1D-transposed" and "fan_in_fan_out" in {f.name for f in getattr(package, row.config).__dataclass_fields__.values()}:
            settings["fan_in_fan_out"] = True
        torch.manual_seed(7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built.append(package.get_peft_model(copy.deepcopy(base), getattr(package, row.config)(**settings)))
    return *built, x


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name; what layers share goes by its shortest, as PEFT lists it under the first of the layers, too."""
    found = sorted(((n, p) for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad), key=lambda pair: len(pair[0]))
    seen: set[int] = set()
    return {n: p for n, p in found if id(p) not in seen and not seen.add(id(p))}


def stir(ours: nn.Module, theirs: nn.Module) -> None:
    """The same effect in both: noise on what trains."""
    generator = torch.Generator().manual_seed(1)
    theirs_by_name = adapter_parameters(theirs)
    with torch.no_grad():
        for name, p in sorted(adapter_parameters(ours).items()):
            noise = torch.randn(p.shape, generator=generator) * 0.2
            p.add_(noise)
            theirs_by_name[name].copy_(p)
    ours.stack.changed()


@rows
def test_same_names_and_same_start(method, layer):
    ours, theirs, x = pair(method, layer)
    a, b = adapter_parameters(ours), adapter_parameters(theirs)
    assert {n: tuple(p.shape) for n, p in a.items()} == {n: tuple(p.shape) for n, p in b.items()}
    if METHODS[method].exact_start:
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=METHODS[method].atol, rtol=1e-4)


@rows
def test_same_outputs_and_gradients(method, layer):
    ours, theirs, x = pair(method, layer)
    stir(ours, theirs)
    ours.eval(), theirs.eval()
    outputs = [model(x) for model in (ours, theirs)]
    torch.testing.assert_close(outputs[0], outputs[1], atol=METHODS[method].atol, rtol=1e-4)
    for y in outputs:
        y.pow(2).sum().backward()
    b = adapter_parameters(theirs)
    for name, p in adapter_parameters(ours).items():
        torch.testing.assert_close(p.grad, b[name].grad, atol=10 * METHODS[method].atol, rtol=1e-3)


@rows
def test_same_merged_weights(method, layer):
    ours, theirs, x = pair(method, layer)
    stir(ours, theirs)
    a, b = ours.eval().merge_and_unload().state_dict(), theirs.eval().merge_and_unload().state_dict()
    assert set(a) == set(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=METHODS[method].atol, rtol=1e-4)


@rows
def test_files_load_both_ways(method, layer, tmp_path):
    ours, theirs, x = pair(method, layer)
    stir(ours, theirs)
    expected = theirs.eval()(x)
    bases = [pristine(layer), pristine(layer)]                # not PEFT's `unload`, which does not give every base back
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    in_theirs = peft.PeftModel.from_pretrained(bases[1], tmp_path / "ours")
    in_ours = engine.PeftModel.from_pretrained(bases[0], tmp_path / "theirs")
    assert in_ours.load_report.complete, in_ours.load_report.sentence()
    torch.testing.assert_close(in_theirs.eval()(x), expected, atol=METHODS[method].atol, rtol=1e-4)
    torch.testing.assert_close(in_ours.eval()(x), expected, atol=METHODS[method].atol, rtol=1e-4)
