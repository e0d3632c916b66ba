"""Two linear layers, and settings of a LoRA on the first, as programs for PEFT write them."""

from __future__ import annotations

import torch
from torch import nn

from engine.compat import install_as_peft

peft = install_as_peft()


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))


def lora(**more) -> object:
    return peft.LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": ["0"], "init_lora_weights": False, **more})
