"""Grouped convolutions, attention and fused experts against PEFT: names, start, outputs, gradients, files both ways."""

from __future__ import annotations

import copy
import warnings

import peft
import pytest
import torch
from torch import nn
from transformers import (
    GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM)

import engine

IDS = torch.tensor([[5, 9, 14, 7, 12, 3], [1, 2, 3, 4, 5, 6]])
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32,
         "head_dim": 8, "num_experts_per_tok": 2, "initializer_range": 0.2}
EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}

APART = {"target_modules": ["after"], "target_parameters": [f"layer.{each}_proj_weight" for each in "qkv"]}


class Around(nn.Module):
    """A layer and a linear one after it, so that what one draws from the random stream moves the other."""

    def __init__(self, layer: nn.Module, size: int):
        super().__init__()
        self.layer, self.after = layer, nn.Linear(size, size)
        self.values = layer.vdim if isinstance(layer, nn.MultiheadAttention) else None

    def forward(self, x):
        return self.after(self.layer(x) if self.values is None else self.layer(x, x, x[..., :self.values])[0])


CASES = {
    "conv1d-grouped": (lambda: Around(nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), 5), (2, 4, 10), {"target_modules": ["layer", "after"]}),
    "conv2d-grouped": (lambda: Around(nn.Conv2d(4, 6, (3, 2), padding=1, groups=2), 6), (2, 4, 5, 5), {"target_modules": ["layer", "after"]}),
    "attention": (lambda: Around(nn.MultiheadAttention(8, 2, batch_first=True), 8), (3, 5, 8), {"target_modules": ["layer", "after"]}),
    "attention-apart": (lambda: Around(nn.MultiheadAttention(8, 2, kdim=8, vdim=6, batch_first=True), 8), (3, 5, 8), APART),
    "mixtral": (lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=3)), None, EXPERTS),
    "qwen3-moe": (lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, num_experts=3, moe_intermediate_size=12)), None, EXPERTS),
    "gpt-oss": (lambda: GptOssForCausalLM(GptOssConfig(**SIZES, num_local_experts=3)), None, EXPERTS),
    "one-parameter": (lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=3)), None,
                      {"target_modules": [], "target_parameters": ["gate.weight", "experts.down_proj"]}),
}
cases = pytest.mark.parametrize("case", CASES)


def rig(case: str):
    """(ours, PEFT's, base, input) with the same start from the same seed, before the first call."""
    make, shape, settings = CASES[case]
    torch.manual_seed(3)
    base = make().eval()
    built = []
    for package in (engine, peft):
        torch.manual_seed(7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built.append(package.get_peft_model(copy.deepcopy(base), package.LoraConfig(r=4, lora_alpha=6, **settings)).eval())
    return *built, base, IDS if shape is None else torch.randn(shape)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def stir(ours: nn.Module, theirs: nn.Module) -> None:
    """The same effect in both. PEFT 0.21.2 adds ΔW of attention's output projection twice (its pull request 3774): it gets half."""
    generator, b = torch.Generator().manual_seed(1), trained(theirs)
    with torch.no_grad():
        for name, p in sorted(trained(ours).items()):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
            b[name].copy_(p * (0.5 if "out_proj.lora_B" in name else 1))
    ours.stack.changed()


def out(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = model(x)
    return y if isinstance(y, torch.Tensor) else y.logits


@cases
def test_same_names_and_same_start(case):
    ours, theirs, _, x = rig(case)
    a, b = trained(ours), trained(theirs)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    torch.testing.assert_close(out(ours, x), out(theirs, x))


@cases
def test_same_outputs_and_gradients(case):
    ours, theirs, _, x = rig(case)
    stir(ours, theirs)
    outputs = [out(model, x) for model in (ours, theirs)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(out(ours, x), outputs[0], atol=1e-5, rtol=1e-4)
    for y in outputs:
        y.pow(2).mean().backward()
    b = trained(theirs)
    for name, p in trained(ours).items():
        if "out_proj.lora_A" not in name:  # PEFT's second addition has no gradient, and A's comes through half a B
            torch.testing.assert_close(p.grad, b[name].grad, atol=1e-5, rtol=1e-3)
    ours.merge_adapter()
    torch.testing.assert_close(out(ours, x), outputs[0], atol=1e-5, rtol=1e-4)


@cases
def test_files_load_both_ways(case, tmp_path):
    ours, theirs, base, x = rig(case)
    stir(ours, theirs)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    in_theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours")
    in_ours = engine.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "theirs")
    assert in_ours.load_report.complete and not in_ours.load_report.renamed, in_ours.load_report.sentence()
    for name, a, b in ((n, a, b) for model, other in ((in_theirs, ours), (in_ours, theirs))
                       for (n, a), b in zip(peft_state(model).items(), peft_state(other).values(), strict=True)):
        assert torch.equal(a, b), name
    if case != "attention":
        torch.testing.assert_close(out(in_theirs.eval(), x), out(ours, x), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(out(in_ours, x), out(theirs, x), atol=1e-5, rtol=1e-4)


def peft_state(model: nn.Module) -> dict[str, torch.Tensor]:
    package = engine if isinstance(model, engine.PeftModel) else peft
    return dict(sorted(package.get_peft_model_state_dict(model).items()))
