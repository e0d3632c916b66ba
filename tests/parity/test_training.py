"""Trained with both from the same seed on the same rows, the losses are the same at every step: every method and each of its forms."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch

import engine
from tests.support.methods import METHODS
from tests.support.tiny import make_model

LAYERS = {"first": "q_proj", "second": "down_proj"}
OUTSIDE = {                                # what sits on no single layer's weight, and two layers that only a model has
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 3}),
    "p-tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 3, "encoder_hidden_size": 16}),
    "p-tuning-lstm": ("PromptEncoderConfig", {"num_virtual_tokens": 3, "encoder_hidden_size": 16, "encoder_reparameterization_type": "LSTM"}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "prefix-projected": ("PrefixTuningConfig", {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 16}),
    "multitask": ("MultitaskPromptTuningConfig", {"num_virtual_tokens": 3, "num_tasks": 2}),
    "cartridge": ("CartridgeConfig", {"num_virtual_tokens": 3}),
    "adaption-prompt": ("AdaptionPromptConfig", {"adapter_len": 3, "adapter_layers": 1}),
    "shadow": ("ShadowConfig", {"r": 4, "shadow_dropout": 0.0}),
    "alora": ("LoraConfig", {"r": 4, "target_modules": ["q_proj"], "alora_invocation_tokens": [36]}),
    "lily": ("LilyConfig", {"r": 4, "target_modules": ["q_proj"]}),
    "poly": ("PolyConfig", {"r": 4, "n_tasks": 2, "n_skills": 2, "target_modules": ["q_proj"]}),
    "norms": ("LNTuningConfig", {"target_modules": ["input_layernorm", "norm"]}),
    "words": ("TrainableTokensConfig", {"token_indices": [7, 36, 65], "target_modules": ["embed_tokens"]}),
    "lora-and-words": ("LoraConfig", {"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [7, 36], "modules_to_save": ["lm_head"]}),
    "lora-on-words": ("LoraConfig", {"r": 4, "target_modules": ["embed_tokens", "v_proj"]}),
    "lora-everywhere": ("LoraConfig", {"r": 4, "target_modules": "all-linear", "bias": "none"}),
}
DRAWS = {"monteclora", "adamss"}           # in training by itself, and not in PEFT's order; clusters: see test_adamss.py


def renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {renamed(key): renamed(each) for key, each in value.items()}
    return [renamed(each) for each in value] if isinstance(value, list) else LAYERS.get(value, value) if isinstance(value, str) else value


KINDS = {**{name: (row.config, renamed({"target_modules": [*LAYERS], **row.settings})) for name, row in METHODS.items() if name not in DRAWS},
         **OUTSIDE}


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
        more = {"task_ids": torch.tensor([0, 1])} if kind in ("multitask", "poly") else {}
        losses = []
        for step in range(6):
            torch.manual_seed(step)        # some draw while they learn
            loss = model(input_ids=ids[step % 2::2], labels=ids[step % 2::2], **more).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] != curves[0][0]
    assert curves[0] == pytest.approx(curves[1], abs=2e-4)
