"""Modules that learn whole and single words against PEFT: names, outputs, gradients, merged weights, files both ways."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import nn

import engine
from tests.parity.test_methods import LAYERS, Two, adapter_parameters, pristine, stir

CASES = {f"norms·{layer}": ("LNTuningConfig", {}, layer) for layer in ("norm", "linear", "conv2d", "embedding")} | {
    f"tokens·{layer}": ("TrainableTokensConfig", {"token_indices": [1, 3, 7]}, layer) for layer in ("embedding", "linear-no-bias")}
cases = pytest.mark.parametrize("case", CASES)


def made(case: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """(ours, PEFT's, input), stirred alike."""
    name, settings, layer = CASES[case]
    shape = LAYERS[layer][1]
    x = torch.randint(0, 10, (3, 4)) if shape is None else torch.randn(shape)
    ours, theirs = (package.get_peft_model(pristine(layer), getattr(package, name)(target_modules=["first", "second"], **settings))
                    for package in (engine, peft))
    stir(ours, theirs)
    return ours.eval(), theirs.eval(), x


@cases
def test_same_outputs_gradients_and_merged_weights(case):
    ours, theirs, x = made(case)
    outputs = [model(x) for model in (ours, theirs)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)
    for y in outputs:
        y.pow(2).sum().backward()
    b = adapter_parameters(theirs)
    for name, p in adapter_parameters(ours).items():
        torch.testing.assert_close(p.grad, b[name].grad, atol=1e-4, rtol=1e-3)
    merged = [model.merge_and_unload().state_dict() for model in (ours, theirs)]
    assert set(merged[0]) == set(merged[1])
    for name, tensor in merged[0].items():
        torch.testing.assert_close(tensor, merged[1][name], atol=1e-5, rtol=1e-4)


@cases
def test_files_load_both_ways(case, tmp_path):
    ours, theirs, x = made(case)
    expected = theirs(x)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    base: Two = pristine(CASES[case][2])
    in_theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours")
    in_ours = engine.PeftModel.from_pretrained(base, tmp_path / "theirs")
    assert in_ours.load_report.complete, in_ours.load_report.sentence()
    for again in (in_theirs, in_ours):
        torch.testing.assert_close(again.eval()(x), expected, atol=1e-5, rtol=1e-4)
