"""Trained with both from the same seed on the same rows, the losses are the same at every step."""

from __future__ import annotations

import peft
import pytest
import torch

import engine
from tests.support.tiny import make_model

KINDS = {
    "lora": ("LoraConfig", {"r": 4, "target_modules": "all-linear"}),
    "rslora": ("LoraConfig", {"r": 4, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]}),
    "dora": ("LoraConfig", {"r": 4, "use_dora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "loha": ("LoHaConfig", {"r": 3, "target_modules": ["q_proj", "down_proj"]}),
    "lokr": ("LoKrConfig", {"r": 3, "target_modules": ["q_proj", "down_proj"]}),
    "oft": ("OFTConfig", {"oft_block_size": 4, "target_modules": ["q_proj", "v_proj"]}),
    "hra": ("HRAConfig", {"r": 2, "target_modules": ["q_proj"]}),
    "ia3": ("IA3Config", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "hira": ("HiraConfig", {"r": 4, "target_modules": ["q_proj", "down_proj"]}),
    "vera": ("VeraConfig", {"r": 8, "target_modules": ["q_proj"]}),
    "fourierft": ("FourierFTConfig", {"n_frequency": 40, "target_modules": ["q_proj"]}),
    "miss": ("MissConfig", {"r": 4, "target_modules": ["q_proj", "down_proj"]}),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 3}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_losses_step_by_step(kind):
    name, settings = KINDS[kind]
    ids = (torch.arange(48).reshape(4, 12) * 29 + 7) % 384
    curves = []
    for package in (engine, peft):
        base = make_model(tied=False)
        torch.manual_seed(11)
        model = package.get_peft_model(base, getattr(package, name)(task_type="CAUSAL_LM", **settings)).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        losses = []
        for step in range(6):
            loss = model(input_ids=ids[step % 2::2], labels=ids[step % 2::2]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] != curves[0][0]
    assert curves[0] == pytest.approx(curves[1], abs=2e-4)
