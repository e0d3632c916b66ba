"""Writing adapters in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from engine.checkpoint.keys import file_key
from engine.checkpoint.shared import shared_specs
from engine.methods.base import PeftConfig
from engine.store.atomic import replacing

if TYPE_CHECKING:
    from engine.model.peft_model import PeftModel


def adapter_tensors(model: "PeftModel", name: str) -> dict[str, Tensor]:
    """An adapter's tensors under their names in the file; detached, contiguous, on the CPU, in the layers' order.

    Raises `ValueError` if the model has no such adapter.
    """
    if name not in model.peft_config:
        raise ValueError(f"There is no adapter named {name!r}; there are {sorted(model.peft_config)}.")
    found: dict[str, Tensor] = model.lone.to_file(name) if model.lone else {}
    tenants = {path: layer.tenants[name] for path, layer in model.adapted.items() if name in layer.tenants}
    for key, spec in shared_specs(tenants.values()).items():
        if spec.saved:
            found[file_key("", key)] = model.shared_tensors(name)[key]
    for path, tenant in tenants.items():
        encoded = tenant.method.encode(model.adapted[path].all_tensors(name), tenant.config, tenant.site)
        for key, tensor in encoded.items():                   # beside a prompt, modules have the short prefix
            at = ("", f"{tenant.site.in_file}.{key}") if getattr(model, "prompts", None) else (tenant.site.in_file, key)
            found[file_key(*at)] = tensor
    return {key: tensor.detach().cpu().contiguous() for key, tensor in found.items()}


def save_adapter(model: "PeftModel", name: str, folder: Path | str) -> None:
    """Write one adapter straight into ``folder`` (made if needed). Each file replaces its predecessor atomically, weights first."""
    write_adapter(folder, adapter_tensors(model, name), model.peft_config[name])


def write_adapter(folder: Path | str, tensors: dict[str, Tensor], config: PeftConfig) -> None:
    """Write the two files of an adapter whose tensors have their names in the file, as `save_adapter` does."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "adapter_model.safetensors") as temporary:
        save_file({key: tensor.cpu() for key, tensor in tensors.items()}, temporary, metadata={"format": "pt"})
    config.save_pretrained(folder)
