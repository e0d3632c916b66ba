"""Optimizers for LoRA step by step against the package `peft`."""

from __future__ import annotations

import copy
import warnings

import peft
import pytest
import torch
from peft import optimizers as theirs

import engine
from engine.train import lora_optim as ours
from tests.support.tiny import make_model

MAKERS = {
    "loraplus": lambda side, model: side.create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=3.0,
                                                                   loraplus_weight_decay=0.1, loraplus_lr_embedding=5e-3),
    "lorafa": lambda side, model: side.create_lorafa_optimizer(model, 4, 6, lr=1e-2, weight_decay=0.1),
    "riemannian": lambda side, model: side.create_riemannian_optimizer(model, torch.optim.SGD, lr=1e-2, reg=0.1),
    "riemannian-adamw": lambda side, model: side.create_riemannian_optimizer(model, torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
}
SETTINGS = {
    "plain": {},
    "rslora-patterns": {"use_rslora": True, "rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 20}},
}
# PEFT's LoRA-FA takes an embedding's two factors for a pair whose A is frozen, though it is not, and DoRA's vectors for halves of pairs
ONLY = {"loraplus": {"embedding": {"target_modules": ["embed_tokens", "q_proj"]}, "dora": {"use_dora": True}},
        "riemannian": {"embedding": {"target_modules": ["embed_tokens", "q_proj"]}, "dora": {"use_dora": True}}}
ROWS = [(name, kind, settings) for name in MAKERS for kind, settings in {**SETTINGS, **ONLY.get(name, {})}.items()]


@pytest.mark.parametrize(("name", "kind", "settings"), ROWS, ids=[f"{name}·{kind}" for name, kind, _ in ROWS])
def test_the_same_steps(name, kind, settings, monkeypatch):
    monkeypatch.setattr("peft.optimizers.lorafa.is_bf16_available", lambda: False)         # else PEFT computes the projection in bfloat16
    base, ids, built = make_model(), torch.arange(16).reshape(2, 8), []
    for side, package in ((ours, engine), (theirs, peft)):
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = package.get_peft_model(copy.deepcopy(base), package.LoraConfig(
                **{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **settings}))
        optimizer = MAKERS[name](side, model)
        for _ in range(3):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        built.append({n: p for n, p in model.named_parameters() if "lora_" in n})
    a, b = built
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].requires_grad == b[key].requires_grad
        torch.testing.assert_close(a[key], b[key], atol=2e-5, rtol=1e-4)
