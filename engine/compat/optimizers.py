"""PEFT's LoRA-FA, whose groups of parameters tell names and scales."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import Tensor

from engine.model.peft_model import PeftModel
from engine.train import lora_optim


class _State(defaultdict):
    """By parameter, as everywhere in torch; asked for a layer by name (``….lin0.lora``), it shows that layer's B as PEFT keeps it."""

    def __init__(self, by_parameter: dict[Tensor, dict], layers: dict[str, Tensor]):
        super().__init__(dict, by_parameter)
        self._layers = layers

    def __missing__(self, key: Any) -> Any:
        if isinstance(key, str):
            return {f"{name}_B" if name.startswith("exp_avg") else name: value for name, value in self[self._layers[key]].items()}
        return super().__missing__(key)


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
    optimizer.state = _State(optimizer.state, {f"{name.partition('.lora_B.')[0]}.lora": p for name, p in named if ".lora_B." in name})
    optimizer.param_groups[0] |= {"names": [name for name, _ in named], "scaling_factors": [scales.get(id(p)) for _, p in named]}
    return optimizer
