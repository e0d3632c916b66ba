"""LoRA against the package `peft`: files both ways, logits, gradients, the random start. Tolerance 1e-5 in float32."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from torch import nn

import engine
from tests.parity.test_route import losses
from tests.support.tiny import make_model, save_base

CONFIGS = {
    "two-targets": {"r": 4, "target_modules": ["q_proj", "down_proj"]},
    "all-linear": {"r": 4, "lora_alpha": 3, "target_modules": "all-linear"},
    "regex": {"r": 2, "target_modules": r".*layers\.1\..*(q|v)_proj"},
    "rslora-patterns": {"r": 4, "use_rslora": True, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"layers.0.self_attn.q_proj": 2},
                        "alpha_pattern": {"v_proj": 20}},
    "excluded-depth": {"r": 2, "target_modules": ["q_proj", "o_proj"], "exclude_modules": ["o_proj"], "layers_to_transform": [1]},
    "default-targets": {"r": 2},
    "gaussian": {"r": 2, "target_modules": ["k_proj"], "init_lora_weights": "gaussian"},
    "dora": {"r": 4, "use_dora": True, "target_modules": "all-linear"},
    "dora-rslora": {"r": 4, "use_dora": True, "use_rslora": True, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False},
    "embedding": {"r": 3, "target_modules": ["embed_tokens", "v_proj"], "init_lora_weights": False},
}
configs = pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)


def pair(settings: dict, **more):
    """The same adapter made by both from the same seed, on equal bases."""
    ours_base, theirs_base = make_model(tied=False), make_model(tied=False)
    torch.manual_seed(7)
    ours = engine.get_peft_model(ours_base, engine.LoraConfig(task_type="CAUSAL_LM", **settings, **more))
    torch.manual_seed(7)
    theirs = peft.get_peft_model(theirs_base, peft.LoraConfig(task_type="CAUSAL_LM", **settings, **more))
    return ours, theirs


def ids() -> torch.Tensor:
    return torch.arange(24).reshape(2, 12) * 13 % 384


def stir(model: nn.Module) -> None:
    """Give every adapter tensor the same non-zero values in both."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for n, p in sorted((n, p) for n, p in model.named_parameters() if "lora_" in n):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + ("magnitude" in n))


@configs
def test_same_names_same_random_start(settings):
    ours, theirs = pair(settings)
    a = {n: p for n, p in ours.named_parameters()}
    b = {n: p for n, p in theirs.named_parameters()}
    assert set(a) == set(b)
    for n in a:                            # equal to the bit, but for DoRA's norms, which we do not compute from a dense sum
        torch.testing.assert_close(a[n], b[n], atol=1e-6 if "magnitude" in n else 0, rtol=0)
    assert {n for n, p in a.items() if p.requires_grad} == {n for n, p in b.items() if p.requires_grad}
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()


@configs
def test_same_logits_and_gradients(settings):
    ours, theirs = pair(settings)
    stir(ours), stir(theirs)
    losses = [m(input_ids=ids(), labels=ids()).loss for m in (ours, theirs)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=0)
    b = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, b[name].grad, atol=1e-5, rtol=1e-4)


@configs
def test_files_load_both_ways(settings, tmp_path):
    ours, theirs = pair(settings)
    stir(ours), stir(theirs)
    # PEFT saves the whole base embedding beside an adapter on it; that copy is not part of the adapter
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    expected = theirs(ids()).logits
    in_theirs = peft.PeftModel.from_pretrained(make_model(tied=False), tmp_path / "ours")
    in_ours = engine.PeftModel.from_pretrained(make_model(tied=False), tmp_path / "theirs")
    assert in_ours.load_report.complete
    torch.testing.assert_close(in_theirs(ids()).logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(in_ours(ids()).logits, expected, atol=1e-5, rtol=0)
    a, b = (json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs"))
    for config in (a, b):                  # both mean sets
        for key in ("target_modules", "exclude_modules"):
            config[key] = sorted(config[key]) if isinstance(config[key], list) else config[key]
    if settings.get("target_modules") == "all-linear":         # the same layers, by shorter names
        a["target_modules"] = sorted(n for n in b["target_modules"] if n.rpartition(".")[2] in a["target_modules"])
    assert a == b


@configs
def test_same_merged_weights(settings):
    ours, theirs = pair(settings)
    stir(ours), stir(theirs)
    a, b = ours.merge_and_unload().state_dict(), theirs.merge_and_unload().state_dict()
    assert set(a) == set(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=0)


def test_layers_beside_linear():
    """Conv1d/2d/3d and GPT-2's Conv1D, against PEFT's own layers."""
    from transformers.pytorch_utils import Conv1D

    cases = [(nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)), (nn.Conv2d(4, 6, (3, 2), stride=(1, 2)), (2, 4, 7, 6)),
             (nn.Conv3d(2, 4, 2, padding=1), (1, 2, 4, 4, 4)), (Conv1D(8, 6), (2, 5, 6))]
    for layer, shape in cases:
        x, models = torch.randn(shape), []
        for package in (engine, peft):
            model = nn.Sequential(copy.deepcopy(layer))
            torch.manual_seed(3)
            models.append(package.get_peft_model(model, package.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)))
        torch.testing.assert_close(models[0](x), models[1](x), atol=1e-5, rtol=0)
        assert {n: p.shape for n, p in models[0].named_parameters()} == {n: p.shape for n, p in models[1].named_parameters()}


def test_dilation_and_padding_mode_which_peft_drops():
    """Who is right is shown by dense arithmetic: W + s·B·A in the layer itself."""
    layer = nn.Conv2d(3, 4, 3, padding=2, dilation=2, padding_mode="reflect")
    dense, x = copy.deepcopy(layer), torch.randn(1, 3, 9, 9)
    model = engine.get_peft_model(nn.Sequential(layer), engine.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    p = model.adapted["0"].tensors("default")
    A, B = p["lora_A.weight"].detach(), p["lora_B.weight"].detach()
    with torch.no_grad():
        dense.weight += (8 / 2) * torch.einsum("orxy,rikl->oikl", B, A)
    torch.testing.assert_close(model(x), dense(x), atol=1e-5, rtol=0)


def test_a_trained_step_is_the_same():
    """The same losses for ten steps from the same seed."""
    ours, theirs = (losses(model, {"input_ids": ids(), "labels": ids()}, 10) for model in pair(CONFIGS["all-linear"]))
    assert ours == pytest.approx(theirs, abs=1e-5) and ours[-1] < ours[0] - 0.1


def test_generation_is_the_same(tmp_path):
    from transformers import AutoModelForCausalLM

    base = save_base(tmp_path / "base")
    ours, theirs = pair(CONFIGS["all-linear"])
    stir(ours)
    ours.save_pretrained(tmp_path / "a")
    models = [p.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "a") for p in (engine, peft)]
    answers = [m.generate(input_ids=ids(), max_new_tokens=8, do_sample=False) for m in models]
    assert torch.equal(*answers)
