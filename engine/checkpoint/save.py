"""Writing adapters in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``, whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.checkpoint.card import write_card
from engine.checkpoint.keys import file_key
from engine.checkpoint.load import locate, read_tensors
from engine.checkpoint.shared import shared_specs
from engine.hosts.adapted import Tenant
from engine.hosts.offloaded import fetched
from engine.law import Method, PeftConfig, Tensors
from engine.model.embeddings import embeddings_to_save
from engine.model.lone import LoneTuner
from engine.model.tuner import Tuner, tuner_of
from engine.store.atomic import as_json, replacing_all


@dataclass(frozen=True)
class Saving:
    """How adapters are written; see `engine.model.peft_model.PeftModel.save_pretrained`. Raises `ValueError` for a pickle."""

    safe_serialization: bool = True
    save_embedding_layers: bool | str = "auto"
    initial: Path | str | None = None
    state_dict: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if not self.safe_serialization:
            raise ValueError("Adapters are only written as safetensors: a pickle could run a program when it is opened.")


def adapter_tensors(model: nn.Module, name: str, state_dict: Mapping[str, Tensor] | None = None,
                    save_embedding_layers: bool | str = False) -> dict[str, Tensor]:
    """An adapter's tensors under their names in the file; detached, contiguous, on the CPU (unless they hold no values), in the layers' order.

    Args:
        state_dict: the whole model's, whose values are taken instead of the model's own.
        save_embedding_layers: the base's embeddings too; see `engine.model.embeddings`.

    Raises `ValueError` if the model has no such adapter.
    """
    tuner = tuner_of(model)
    there = {} if tuner is None else tuner.peft_config
    if name not in there:
        raise ValueError(f"There is no adapter named {name!r}; there are {sorted(there)}.")
    instead = {} if state_dict is None else {id(live): state_dict[key] for key, live in model.state_dict(keep_vars=True).items()
                                             if key in state_dict}
    found: dict[str, Tensor] = tuner.to_file(name) if isinstance(tuner, LoneTuner) else {}
    tenants = {path: layer.tenants[name] for path, layer in tuner.layers.items() if name in layer.tenants}
    began = any(tenant.site.quantized and type(tenant.method).start_shared is not Method.start_shared for tenant in tenants.values())
    for key, spec in shared_specs(tenants.values()).items():
        if spec.saved or began:
            found[file_key("", key)] = tuner.tensors(name)[key]
    for path, tenant in tenants.items():
        with fetched(tuner.layers[path]):
            p: Tensors = {key: instead.get(id(live), live) for key, live in tuner.layers[path].all_tensors(name).items()}
            encoded = tenant.method.encode(p, tenant.config, tenant.site)
            encoded |= _began_at_codes(tenant, p, encoded)
        for key, tensor in encoded.items():
            found[_key(tuner, tenant.site.in_file, key)] = tensor
    for path, tensor in embeddings_to_save(tuner, name, save_embedding_layers).items():
        found.setdefault(_key(tuner, *path.rsplit(".", 1)), tensor)
    found = {key: instead.get(id(tensor), tensor).detach() for key, tensor in found.items()}
    return {key: tensor if tensor.is_meta else tensor.cpu().contiguous() for key, tensor in found.items()}


def _began_at_codes(tenant: Tenant, p: Tensors, encoded: Tensors) -> Tensors:
    """What need not be in a file, as W0 gives it again, but did begin at a quantized weight: on a base in 16 bits it would begin elsewhere."""
    if not (tenant.site.quantized and tenant.method.starts_from_base(tenant.config)):
        return {}
    specs = tenant.method.tensors(tenant.config, tenant.site)
    return {key: p[name] for name, spec in specs.items() if not spec.saved and (key := spec.file or name) not in encoded}


def _key(tuner: Tuner | LoneTuner, path: str, tensor: str) -> str:
    """Beside a prompt, modules have the short prefix."""
    return file_key(path, tensor) if tuner.prefixed else file_key("", f"{path}.{tensor}")


def save_adapter(model: nn.Module, name: str, folder: Path | str) -> None:
    """Write one adapter straight into ``folder`` (made if needed): its files replace their predecessors together, weights first."""
    write_adapter(folder, adapter_tensors(model, name), tuner_of(model).peft_config[name])


def save_adapters(model: nn.Module, folders: Mapping[str, Path], root: Path, saving: Saving) -> None:
    """Write several adapters of a `PeftModel`, each into its folder, and a model card into ``root``.

    Raises `ValueError` if ``root`` is a file or an adapter cannot be written as asked; then nothing has been written.
    """
    if root.is_file():
        raise ValueError(f"Provided path ({root}) should be a directory, not a file")
    tuner, ready = tuner_of(model), {}
    for name in folders:
        ready[name] = adapter_tensors(model, name, saving.state_dict, saving.save_embedding_layers), tuner.peft_config[name]
        if saving.initial is not None:
            blocks = {_key(tuner, layer.tenants[name].site.in_file, key): max(layer.tenants[name].site.groups, layer.tenants[name].site.experts)
                      for layer in tuner.layers.values() if name in layer.tenants for key in ("lora_A.weight", "lora_embedding_A")}
            ready[name] = since(*ready[name], saving.initial, blocks)
    _write({folders[name]: (tensors, _with_class_of_base(config, tuner.model)) for name, (tensors, config) in ready.items()})
    write_card(model, root)


def _with_class_of_base(config: PeftConfig, base: nn.Module) -> PeftConfig:
    """The config, which names the class of the base where there is no task to tell it; `AutoPeftModel` makes one of it."""
    if config.task_type is not None:
        return config
    config = copy.copy(config)
    config.auto_mapping = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
    return config


def write_adapter(folder: Path | str, tensors: dict[str, Tensor], config: PeftConfig) -> None:
    """Write these tensors (by their keys in the file) and this config as an adapter; see `save_adapter`."""
    _write({Path(folder): (tensors, config)})


def _write(adapters: Mapping[Path, tuple[dict[str, Tensor], PeftConfig]]) -> None:
    """All of them, or, if one cannot be written, none: tensors and settings that do not belong together would be another adapter."""
    with replacing_all([folder / name for folder in adapters for name in ("adapter_model.safetensors", "adapter_config.json")]) as temporaries:
        for (tensors, config), weights, settings in zip(adapters.values(), temporaries[::2], temporaries[1::2], strict=True):
            save_file(_apart(tensors), weights, metadata={"format": "pt"})
            settings.write_text(as_json({**config.to_dict(), "inference_mode": True}), encoding="utf-8", newline="\n")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same on the CPU; what several names stand for (layers that share a weight) is there for each, as the format wants it."""
    found, seen = {key: tensor.cpu() for key, tensor in tensors.items()}, set()
    for key, tensor in found.items():
        if (memory := tensor.untyped_storage().data_ptr()) in seen:
            found[key] = tensor.clone()
        seen.add(memory)
    return found


def since(tensors: Mapping[str, Tensor], config: PeftConfig, initial: Path | str,
          blocks: Mapping[str, int]) -> tuple[dict[str, Tensor], PeftConfig]:
    """What a LoRA has learned since it was saved at ``initial``, as an ordinary one: ``B·A − B₀·A₀ = [B | −B₀] · [A ; A₀]``.

    ``blocks``: in how many blocks, by groups or experts, the rows of an A lie, by its key; one by default.

    Raises:
        ValueError: it is no plain LoRA, or the one at ``initial`` has other tensors. BadAdapter: there is none.
    """
    if config.peft_type != "LORA" or getattr(config, "use_dora", False):
        raise ValueError("`path_initial_model_for_weight_conversion` only works for LoRA without DoRA: what it learned is a product of two factors.")
    began, found = read_tensors(locate(initial)), {}
    for key, tensor in tensors.items():
        axis = 0 if "lora_A" in key or "lora_embedding_A" in key else 1 if "lora_B.weight" in key or "lora_embedding_B" in key else None
        if axis is None:
            found[key] = tensor
        elif key not in began or began[key].shape != tensor.shape:
            raise ValueError(f"The adapter at {initial} is not how this one began: {key} is missing there or has another size.")
        elif axis:
            found[key] = torch.cat([tensor, -began[key].to(tensor.dtype)], dim=1)
        else:
            both = [rows.unflatten(0, (blocks.get(key, 1), -1)) for rows in (tensor, began[key].to(tensor.dtype))]
            found[key] = torch.cat(both, dim=1).flatten(0, 1)
    config, factor = copy.copy(config), 2 ** 0.5 if config.use_rslora else 2
    config.r, config.lora_alpha, config.init_lora_weights = 2 * config.r, factor * config.lora_alpha, True
    config.rank_pattern = {key: 2 * rank for key, rank in config.rank_pattern.items()}
    config.alpha_pattern = {key: factor * alpha for key, alpha in config.alpha_pattern.items()}
    return found, config
