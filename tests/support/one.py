"""A model of one layer with adapters that do something: for dense arithmetic by hand."""

from __future__ import annotations

import torch
from torch import nn

from engine import get_peft_model


class One(nn.Module):
    """A layer after which comes nothing."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        return self.layer(*args, **kwargs)


def one(layer: nn.Module, *configs, noise: float = 0.3, seed: int = 0):
    """(peft model with adapters a0, a1 … in float64, all active; the adapted layer)."""
    torch.manual_seed(seed)
    model = One(layer.double())
    for i, config in enumerate(configs):
        config.target_modules = ["layer"]
        if i == 0:
            peft = get_peft_model(model, config, "a0", autocast_adapter_dtype=False)
        else:
            peft.add_adapter(f"a{i}", config, autocast_adapter_dtype=False)
    adapted = peft.adapted["layer"]
    with torch.no_grad():
        for name in peft.peft_config:
            tenant = adapted.tenants[name]
            specs = {**tenant.method.shared(tenant.config, [tenant.site]), **tenant.method.tensors(tenant.config, tenant.site)}
            for key, tensor in adapted.all_tensors(name).items():
                if specs[key].trainable:
                    tensor.add_(noise * torch.randn_like(tensor))
    peft.set_adapter(list(peft.peft_config))
    return peft.eval(), adapted
