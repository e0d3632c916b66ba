"""Adapters and bases as state dicts: PEFT's functions of these names, for a `PeftModel` and for a model that was injected into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.keys import PREFIX, SHARED_PREFIX
from engine.checkpoint.load import fill, match
from engine.checkpoint.report import LoadReport
from engine.checkpoint.save import adapter_tensors
from engine.checkpoint.shared import shared_specs
from engine.hosts.adapted import Tenant
from engine.hosts.shelves import Shelves
from engine.law import Method
from engine.model.lone import LoneTuner
from engine.model.tuner import AT, inside, tuner_of


def get_peft_model_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor] | None = None, adapter_name: str = "default",
                              unwrap_compiled: bool = False, save_embedding_layers: bool | str = "auto") -> dict[str, Tensor]:
    """An adapter's tensors under their names in the file (PEFT function of the same name); detached, on the CPU.

    Args:
        model: a `PeftModel`, or one that was injected into: then the names have no ``base_model.model.``, as in PEFT. What compiling or
            parallel training wraps round it is looked through, whatever ``unwrap_compiled`` says.
        state_dict: the whole model's, if its values are to be taken instead of the model's own (gathered from several processes).
        save_embedding_layers: see `PeftModel.save_pretrained`.

    Raises:
        ValueError: the model has no such adapter.
    """
    found = adapter_tensors(model, adapter_name, state_dict, save_embedding_layers)
    return found if not _injected(model) else {key.removeprefix(PREFIX): tensor for key, tensor in found.items()}


@torch.no_grad()
def set_peft_model_state_dict(model: nn.Module, peft_model_state_dict: Mapping[str, Tensor], adapter_name: str = "default",
                              ignore_mismatched_sizes: bool = False, low_cpu_mem_usage: bool = False) -> LoadReport:
    """Copy tensors into an existing adapter, in place and all or none (PEFT function of the same name).

    Args:
        peft_model_state_dict: by their names in a file, with or without ``base_model.model.``.
        ignore_mismatched_sizes: tensors of other sizes are left out and told in the report, instead of refusing them all.
        low_cpu_mem_usage: tensors without values (``meta``) get some by this, whatever it says.

    Raises:
        WrongBase: nothing fits, or shapes differ; the adapter is unchanged. ValueError: there is no such adapter.
    """
    tuner = tuner_of(model)
    if tuner is None or adapter_name not in tuner.peft_config:
        raise ValueError(f"There is no adapter named {adapter_name!r}; there are {sorted(tuner.peft_config) if tuner else 'none at all'}.")
    if isinstance(tuner, LoneTuner):
        return tuner.load_all(adapter_name, dict(peft_model_state_dict))
    tenants = {path: layer.tenants[adapter_name] for path, layer in tuner.layers.items() if adapter_name in layer.tenants}
    given, report = match(dict(peft_model_state_dict), tenants, shared_specs(tenants.values()), ignore_mismatched_sizes=ignore_mismatched_sizes)
    home = next(iter(tuner.layers.values()))
    for path, tensors in given.items():
        layer = tuner.layers[path] if path else tuner
        fill(layer.tensors(adapter_name), tensors, (layer if path else home).like.device)
    for path, tenant in tenants.items() if "" in given else ():
        _begin_again(tuner.layers[path], tenant)
    tuner.stack.changed()                  # stacked copies are stale
    return report


def _begin_again(layer: Any, tenant: Tenant) -> None:
    """Make again what no file holds and W0 gives together with what all layers share, which has just come."""
    unsaved = {key for key, spec in tenant.specs.items() if not spec.saved}
    if unsaved and type(tenant.method).start_shared is not Method.start_shared:
        layer.begin(tenant, layer.all_tensors(next(name for name, there in layer.tenants.items() if there is tenant)), unsaved)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model that was injected into, without what compiling, sharded or parallel training wraps round it; if none was, ``model``."""
    inner: nn.Module | None = model
    while inner is not None and AT not in inner.__dict__:
        inner = inside(inner)
    return model if inner is None else inner


def _injected(model: nn.Module) -> bool:
    return AT in _unwrapped(model).__dict__


# --- the base's own weights ---

def get_base_model_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The base's weights by their names before adapters came (PEFT function of the same name); the live tensors.

    While adapters are merged these are the merged ones. A model without adapters gives its state dict.
    """
    return {name: tensor for name, _, tensor in _base(model)}


def set_base_model_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], strict: bool = True) -> Any:
    """Give the base these weights, by their names before adapters came (PEFT function of the same name).

    Returns:
        (missing_keys, unexpected_keys), as `torch.nn.Module.load_state_dict`.

    Raises:
        RuntimeError: ``strict``, and names are missing or unexpected; or shapes differ. Nothing is changed in the first case.
    """
    inside = {name: key for name, key, _ in _base(model)}
    missing, unexpected = [name for name in inside if name not in state_dict], sorted(set(state_dict) - inside.keys())
    if strict and (unexpected or missing):
        raise RuntimeError(f"Error(s) in loading state_dict. Missing keys: {sorted(missing)}. Unexpected keys: {unexpected}.")
    done = model.load_state_dict({inside[name]: tensor for name, tensor in state_dict.items() if name in inside}, strict=False)
    if (tuner := tuner_of(model)) is not None:
        tuner.stack.changed()
    return type(done)(missing, unexpected)


def _base(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """(name of old, key in the model's state dict, tensor) of everything that belongs to the base."""
    tuner = tuner_of(model)
    if tuner is None or _injected(model):
        yield from _inside(_unwrapped(model), "", "")
    else:
        yield from _inside(tuner.model, "", PREFIX if tuner.prefixed else SHARED_PREFIX)


def _inside(module: nn.Module, name: str, key: str) -> Iterator[tuple[str, str, Tensor]]:
    if isinstance(module, Shelves):        # it stands round the base's own module, beside adapters' tensors
        inner, = module._own
        yield from _inside(module._modules[inner], name, f"{key}{inner}.")
        return
    own: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    for found, prefix in zip(own, (name, key)):
        module._save_to_state_dict(found, prefix, keep_vars=False)
    yield from ((old, now, tensor) for (old, tensor), now in zip(own[0].items(), own[1]))
    for child, inner in module._modules.items():
        if inner is not None:
            yield from _inside(inner, f"{name}{child}.", f"{key}{child}.")
