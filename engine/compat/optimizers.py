"""PEFT's LoRA-FA, whose groups of parameters tell names and scales."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from engine.model.peft_model import PeftModel
from engine.train import lora_optim


class LoraFAOptimizer(lora_optim.LoraFAOptimizer):
    """As ours; a group with PEFT's old ``scaling_factor`` brings PEFT's warning, for partners are what counts."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` computes the loss anew."""
        if any("scaling_factor" in group for group in self.param_groups):
            warnings.warn("`scaling_factor` is deprecated and changes nothing: each layer counts with its own scaling.", FutureWarning, stacklevel=2)
        return super().step(closure)


def create_lorafa_optimizer(model: PeftModel, r: int, lora_alpha: float, lr: float, weight_decay: float = 0.0,
                            use_rslora: bool | None = None) -> lora_optim.LoraFAOptimizer:
    """As `engine.train.lora_optim.create_lorafa_optimizer`; the group also has ``names`` and ``scaling_factors`` (None outside of LoRA)."""
    optimizer = lora_optim.create_lorafa_optimizer(model, r, lora_alpha, lr, weight_decay, use_rslora)
    scales = {id(tensor): layer.scaling[name] for layer in model.adapted.values() for name in layer.tenants
              for key, tensor in layer.tensors(name).items() if key.startswith("lora_")}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer.param_groups[0] |= {"names": [name for name, _ in named], "scaling_factors": [scales.get(id(p)) for _, p in named]}
    return optimizer
