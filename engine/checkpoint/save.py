"""Writing adapters in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from engine.checkpoint.keys import file_key
from engine.checkpoint.shared import shared_specs
from engine.methods.base import Method, PeftConfig, Tensors
from engine.store.atomic import replacing

if TYPE_CHECKING:
    from engine.hosts.adapted import Tenant
    from engine.model.peft_model import PeftModel


def adapter_tensors(model: "PeftModel", name: str) -> dict[str, Tensor]:
    """An adapter's tensors under their names in the file; detached, contiguous, on the CPU, in the layers' order.

    Raises `ValueError` if the model has no such adapter.
    """
    if name not in model.peft_config:
        raise ValueError(f"There is no adapter named {name!r}; there are {sorted(model.peft_config)}.")
    found: dict[str, Tensor] = model.lone.to_file(name) if model.lone else {}
    tenants = {path: layer.tenants[name] for path, layer in model.adapted.items() if name in layer.tenants}
    began = any(tenant.site.quantized and type(tenant.method).start_shared is not Method.start_shared for tenant in tenants.values())
    for key, spec in shared_specs(tenants.values()).items():
        if spec.saved or began:
            found[file_key("", key)] = model.shared_tensors(name)[key]
    for path, tenant in tenants.items():
        encoded = tenant.method.encode(model.adapted[path].all_tensors(name), tenant.config, tenant.site)
        encoded |= _began_at_codes(tenant, model.adapted[path].tensors(name), encoded)
        for key, tensor in encoded.items():                   # beside a prompt, modules have the short prefix
            at = ("", f"{tenant.site.in_file}.{key}") if getattr(model, "prompts", None) else (tenant.site.in_file, key)
            found[file_key(*at)] = tensor
    return {key: tensor.detach().cpu().contiguous() for key, tensor in found.items()}


def _began_at_codes(tenant: "Tenant", tensors: Tensors, encoded: Tensors) -> Tensors:
    """What need not be in a file, as W0 gives it again, but did begin at a quantized weight: on a base in 16 bits it would begin elsewhere."""
    if not (tenant.site.quantized and tenant.method.starts_from_base(tenant.config)):
        return {}
    specs = tenant.method.tensors(tenant.config, tenant.site)
    return {key: tensors[name] for name, spec in specs.items() if not spec.saved and (key := spec.file or name) not in encoded}


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
