"""Adapters as LoRAs against PEFT's conversion, and their files in PEFT."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch

import engine
from tests.parity.test_methods import pair, pristine, stir

CONVERTED = ["lora", "loha", "lokr", "vera", "randlora", "vblora", "unilora", "tinylora", "fourierft", "waveft", "c3a", "delora", "gralora", "psoft"]


def quietly(work):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work()


@pytest.mark.parametrize("rank", [2, 0.8], ids=["rank", "threshold"])
@pytest.mark.parametrize("method", CONVERTED)
def test_the_same_ranks_and_the_same_change_as_peft(method, rank):
    ours, theirs, _ = pair(method, "linear")
    stir(ours, theirs)
    made = [quietly(lambda package=package, model=model: package.convert_to_lora(model, rank))
            for package, model in ((engine, ours), (peft, theirs))]
    (config, tensors), (their_config, their_tensors) = made
    assert {k: t.shape for k, t in tensors.items()} == {k: t.shape for k, t in their_tensors.items()}
    assert (config.r, config.lora_alpha, config.rank_pattern) == (their_config.r, their_config.lora_alpha, their_config.rank_pattern)
    for path in ("first", "second"):
        changes = [t[f"base_model.model.{path}.lora_B.weight"] @ t[f"base_model.model.{path}.lora_A.weight"] for t in (tensors, their_tensors)]
        torch.testing.assert_close(changes[0], changes[1], atol=2e-4, rtol=0)


@pytest.mark.parametrize(("method", "layer"), [
    ("hira", "conv2d"), ("loha", "conv1d"), ("ia3", "linear"), ("oft", "linear-no-bias"), ("ia3", "conv2d"), ("hira", "embedding"),
    ("fourierft", "conv1D-transposed"), ("beft", "linear"), ("dora", "conv3d"), ("glora", "linear"), ("adalora", "linear"), ("kasa", "linear")])
def test_what_peft_cannot_convert_runs_there_as_a_lora(method, layer, tmp_path):
    ours, _, x = pair(method, layer)
    with torch.no_grad():
        for p in ours.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    ours.stack.changed()
    engine.to_lora(ours, error=0.0).save(tmp_path)
    there = peft.PeftModel.from_pretrained(pristine(layer), tmp_path)
    torch.testing.assert_close(there.eval()(x), ours.eval()(x), atol=5e-5, rtol=1e-4)


def test_saved_as_lora_it_loads_in_both(tmp_path):
    ours, theirs, x = pair("loha", "linear")
    stir(ours, theirs)
    engine.save_as_lora(tmp_path / "ours", ours, 3)
    peft.save_as_lora(tmp_path / "theirs", theirs, 3)
    outputs = [package.PeftModel.from_pretrained(pristine("linear"), tmp_path / made).eval()(x)
               for package in (engine, peft) for made in ("ours", "theirs")]
    for y in outputs[1:]:
        torch.testing.assert_close(y, outputs[0], atol=1e-4, rtol=0)
