"""Hot swap: another adapter's values in the place of one that is there, without unloading it, so that a compiled model stays compiled.

Where ranks differ the smaller one is filled up with zeros, and the settings say so: the adapter stays true to its config, saves and merges
as ever. (PEFT's function of this name forgets to, and does LoRA only.)
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engine.checkpoint.load import load_peft_weights, match
from engine.checkpoint.report import LoadReport
from engine.checkpoint.shared import shared_specs
from engine.hosts.adapted import Tenant
from engine.law import PeftConfig, Site, Tensors
from engine.methods.lora import LoraConfig
from engine.methods.registry import law
from engine.model.tuner import Tuner, tuner_of

_RANKED = {"lora_A.weight": 0, "lora_B.weight": 1, "lora_embedding_A": 0, "lora_embedding_B": 1}       # tensor → its axis of ranks


def hotswap_adapter(model: nn.Module, model_name_or_path: Path | str, adapter_name: str, torch_device: str | None = None,
                    key_mapping: Mapping[str, str] | None = None, **hub: Any) -> LoadReport:
    """Put the values of a saved adapter in the place of the adapter ``adapter_name`` (PEFT function of the same name). All or nothing.

    Args:
        model: a `PeftModel` or one that was injected into. model_name_or_path: the saved adapter, a folder or a name on the Hub.
        torch_device: where the file is read to first; tensors stay where they are. key_mapping: as of `PeftModel.load_adapter`.
        hub: ``subfolder``, ``revision``, ``cache_dir``, ``token`` ….

    Raises:
        ValueError: no such adapter, it is merged, or the new one is of another kind. RuntimeError: the new one sits on layers where the old
        one does not. BadAdapter, WrongBase: its file.
    """
    config = PeftConfig.from_pretrained(model_name_or_path, **hub)
    file = load_peft_weights(model_name_or_path, torch_device, key_mapping, **hub)
    return _swap(_tuner(model, adapter_name), adapter_name, file, config)


def hotswap_adapter_from_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], adapter_name: str, config: PeftConfig,
                                    parameter_prefix: str = "lora_") -> LoadReport:
    """The same from tensors: by their keys in a file, or in the model's own state dict (PEFT function of the same name).

    Arguments and errors as of `hotswap_adapter`.
    """
    inner = re.compile(rf"\.{re.escape(adapter_name)}(?=\.[^.]+$|$)")
    return _swap(_tuner(model, adapter_name), adapter_name, {inner.sub("", key): tensor for key, tensor in state_dict.items()}, config)


@torch.no_grad()
def prepare_model_for_compiled_hotswap(model: nn.Module, *, target_rank: int | None = None, config: LoraConfig | dict[str, LoraConfig] | None = None,
                                       check_compiled: Literal["error", "warn", "ignore"] = "error") -> None:
    """Fill all LoRAs of the model up to one rank, so that every one that is swapped in later finds room (PEFT function of the same name).

    To be called after the first adapter has come and before the model is compiled. What the model computes stays the same.

    Args:
        target_rank: the largest rank that will come; None changes nothing, as strengths are tensors anyway.
        config: configs (of the adapters, by any names) whose ranks are set to ``target_rank`` as well.
        check_compiled: what a model that is compiled already is: an error, a warning, or nothing.

    Raises:
        ValueError: the model is compiled already, has no LoRA, or an adapter has a higher rank than ``target_rank``.
    """
    if isinstance(model, torch._dynamo.OptimizedModule) or getattr(model, "_compiled_call_impl", None):
        if check_compiled not in ("error", "warn", "ignore"):
            raise ValueError(f"check_compiled should be one of 'error', 'warn', or 'ignore', got '{check_compiled}' instead.")
        if check_compiled == "error":
            raise ValueError("Call prepare_model_for_compiled_hotswap *before* compiling the model")
        if check_compiled == "warn":
            warnings.warn("prepare_model_for_compiled_hotswap was called with a model that is already compiled: it will be compiled again. "
                          "Call it before compiling the model.", stacklevel=2)
    tuner = tuner_of(model)
    names = [name for name, c in tuner.peft_config.items() if isinstance(c, LoraConfig)] if isinstance(tuner, Tuner) else []
    if not names:
        raise ValueError("No adapter layers found on the model, make sure call `prepare_model_for_compiled_hotswap` after loading the first "
                         "adapter and before loading the second adapter.")
    for name in names if target_rank is not None else ():
        tenants = _ranked(tuner, name)
        values = {path: tuner.layers[path].tensors(name) for path in tenants}
        _put(tuner, name, *_filled(tuner.peft_config[name], tenants, values, dict.fromkeys(tenants, target_rank)))
    for each in (config.values() if isinstance(config, dict) else [config]) if config and target_rank is not None else ():
        each.r, each.rank_pattern = target_rank, dict.fromkeys(each.rank_pattern, target_rank)


# --- how it is done ---

def _tuner(model: nn.Module, name: str) -> Tuner:
    tuner = tuner_of(model)
    if not isinstance(tuner, Tuner) or name not in tuner.peft_config:
        raise ValueError(f"There is no adapter in layers named {name!r} that could be swapped.")
    if name in tuner.stack.merged:
        raise ValueError(f"Cannot hot-swap adapter '{name}' because it is currently merged into the base weights. Please unmerge the adapter "
                         "first by calling `unmerge_adapter()`.")
    return tuner


@torch.no_grad()
def _swap(tuner: Tuner, name: str, file: dict[str, Tensor], config: PeftConfig) -> LoadReport:
    old = tuner.peft_config[name]
    if type(config) is not type(old) or type(law(config)) is not type(law(old)):
        raise ValueError(f"Hot swapping only works between adapters of one kind: there is {type(old).__name__}, and {type(config).__name__} is to "
                         "come (or one of them is a variant).")
    config = copy.copy(config)
    config.inference_mode, config.target_modules = old.inference_mode, old.target_modules
    before = tuner.tenants(name)
    tenants = {path: t._replace(config=config) if t.config is old else t for path, t in before.items()}
    given, report = match(file, tenants, shared_specs(tenants.values()))
    if report.unexpected:
        raise RuntimeError(f"Hot swapping the adapter did not succeed, unexpected keys found: {', '.join(report.unexpected)}.")
    shared = given.pop("", {})
    absent = {path for path in tenants if path not in given and tenants[path].method.tensors(tenants[path].config, tenants[path].site)}
    if report.missing and (len(absent) == 0 or not isinstance(config, LoraConfig) or config.use_dora):
        raise RuntimeError(f"Hot swapping the adapter did not succeed, keys are missing: {', '.join(report.missing)}.")
    for path in absent:                    # the new one does not sit there: factors of zero
        specs = tenants[path].method.tensors(tenants[path].config, tenants[path].site)
        given[path] = {key: torch.zeros(spec.shape) for key, spec in specs.items()}
    config, tenants, given = _fit(tuner, name, config, tenants, given)
    for key, tensor in shared.items():
        tuner.tensors(name)[key].copy_(tensor)
    _put(tuner, name, config, tenants, given)
    return report


def _fit(tuner: Tuner, name: str, config: PeftConfig, tenants: dict[str, Tenant],
         given: dict[str, Tensors]) -> tuple[PeftConfig, dict[str, Tenant], dict[str, Tensors]]:
    """With the ranks that are there, if these have room for the new ones; as they come otherwise."""
    live = {path: tuner.layers[path].tensors(name) for path in tenants}
    if all(live[path][key].shape == tensor.shape for path in given for key, tensor in given[path].items()):
        return config, tenants, given
    ranks = {path: live[path][key].shape[axis] * (tenant.site.groups if axis and tenant.site.kind == "conv" else 1)
             for path, tenant in tenants.items() for key, axis in _RANKED.items() if axis == 0 and key in live[path]}
    if not isinstance(config, LoraConfig) or any(tenants[path].method.rank(config, tenants[path].site) > ranks[path] for path in ranks):
        return config, tenants, given
    return _filled(config, tenants, given, ranks)


def _ranked(tuner: Tuner, name: str) -> dict[str, Tenant]:
    tenants = tuner.tenants(name)
    if any(t.site.experts > 1 for t in tenants.values()):
        raise ValueError(f"The adapter {name} sits on experts, whose factors cannot be filled up.")
    return tenants


def _filled(config: LoraConfig, tenants: dict[str, Tenant], values: dict[str, Tensors],
            ranks: Mapping[str, int]) -> tuple[LoraConfig, dict[str, Tenant], dict[str, Tensors]]:
    """The same adapter with higher ranks: rows and columns of zeros, and settings that leave each layer's scale as it was."""
    own = {path: t for path, t in tenants.items() if any(key in values.get(path, ()) for key in _RANKED)}
    for path, tenant in own.items():
        if (rank := tenant.method.rank(tenant.config, tenant.site)) > ranks[path] or ranks[path] % tenant.site.groups:
            raise ValueError(f"Trying to pad the adapter to the target rank {ranks[path]}, but the original rank at {path} is {rank}"
                             f"{f' in {tenant.site.groups} groups' if tenant.site.groups > 1 else ''}. This is not possible.")
    loud = {path: t.method.scale(t.config, t.site) * (math.sqrt(ranks[path]) if config.use_rslora else ranks[path]) for path, t in own.items()}
    filled = copy.copy(config)
    filled.r, filled.rank_pattern = _common(config.r, {path: ranks[path] for path in own})
    filled.lora_alpha, filled.alpha_pattern = _common(config.lora_alpha, loud)
    tenants = {path: t._replace(config=filled) if path in own else t for path, t in tenants.items()}
    made = {path: {key: _padded(tensor, key, tenants[path]) if path in own else tensor for key, tensor in tensors.items()}
            for path, tensors in values.items()}
    return filled, tenants, made


def _common(now: Any, by_path: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(the value of all layers, {}) or (``now``, pattern → value); longer paths first, as a pattern also matches the end of one."""
    if len(set(by_path.values())) <= 1:
        return next(iter(by_path.values()), now), {}
    return now, {re.escape(path): by_path[path] for path in sorted(by_path, key=len, reverse=True)}


def _padded(tensor: Tensor, key: str, tenant: Tenant) -> Tensor:
    site: Site = tenant.site
    shape = tenant.method.tensors(tenant.config, site)[key].shape
    if key not in _RANKED or tuple(tensor.shape) == tuple(shape):
        return tensor
    groups = site.groups if _RANKED[key] == 0 else 1           # ranks stand group by group
    rows, wide = tensor.detach(), tensor.new_zeros(shape)
    wide.unflatten(0, (groups, -1))[(slice(None), *(slice(n) for n in rows.unflatten(0, (groups, -1)).shape[1:]))] = rows.unflatten(0, (groups, -1))
    return wide


def _put(tuner: Tuner, name: str, config: PeftConfig, tenants: dict[str, Tenant], values: dict[str, Tensors]) -> None:
    """Let the layers hold these; a tensor whose size stays is written in place."""
    for path, tensors in values.items():
        layer = tuner.layers[path]
        live = layer.tensors(name)
        for key, tensor in tensors.items():
            if live[key].shape == tensor.shape:
                live[key].copy_(tensor)
            else:
                new = tensor.detach().to(live[key].device, live[key].dtype)
                layer.put(name, {key: nn.Parameter(new, requires_grad=live[key].requires_grad) if isinstance(live[key], nn.Parameter) else new})
    for path, tenant in tenants.items():
        tuner.layers[path].tenants[name] = tenant
    tuner.peft_config[name] = config
    tuner.stack.changed()
