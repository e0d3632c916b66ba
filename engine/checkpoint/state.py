"""PEFT's functions on adapter state dicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.checkpoint.load import match
from engine.checkpoint.report import LoadReport
from engine.checkpoint.save import adapter_tensors
from engine.checkpoint.shared import shared_specs

if TYPE_CHECKING:
    from engine.model.peft_model import PeftModel


def get_peft_model_state_dict(model: "PeftModel", adapter_name: str = "default") -> dict[str, Tensor]:
    """An adapter's tensors under their names in the file (PEFT function of the same name)."""
    return adapter_tensors(model, adapter_name)


@torch.no_grad()
def set_peft_model_state_dict(model: "PeftModel", state: dict[str, Tensor], adapter_name: str = "default") -> LoadReport:
    """Copy tensors into an existing adapter, in place and all or none (PEFT function of the same name).

    Raises:
        WrongBase: nothing fits, or shapes differ; the adapter is unchanged.
    """
    if model.lone:
        return model.lone.load_all(adapter_name, state)
    tenants = {path: layer.tenants[adapter_name] for path, layer in model.adapted.items() if adapter_name in layer.tenants}
    given, report = match(state, tenants, shared_specs(tenants.values()))
    for path, tensors in given.items():
        live = model.adapted[path].tensors(adapter_name) if path else model.shared_tensors(adapter_name)
        for key, tensor in tensors.items():
            live[key].copy_(tensor)
    model.stack.changed()                  # stacked copies are stale
    return report
