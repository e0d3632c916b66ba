"""Putting an adapter into a model: everything is prepared first, then swapped in; if anything fails, nothing has changed."""

from __future__ import annotations

from dataclasses import dataclass, field
import torch
from torch import nn

from engine.hosts.adapted import Adapted, Tenant
from engine.hosts.stack import LiveStack
from engine.methods.base import TargetedConfig, Tensors
from engine.methods.registry import law
from engine.model.targets import Plan


@dataclass
class Injection:
    """A model's adapted layers by module path, and the live stack they share."""

    layers: dict[str, Adapted] = field(default_factory=dict)
    stack: LiveStack = field(default_factory=LiveStack)


def check_name(name: str) -> None:
    """Adapter names become module names. Raises `ValueError` for what cannot be one."""
    if not name or "." in name or hasattr(nn.ModuleDict, name):
        raise ValueError(f"An adapter cannot be named {name!r}: the name must not be empty, hold a dot or be a reserved word.")


def inject(model: nn.Module, injection: Injection, name: str, config: TargetedConfig, planned: Plan, *, trainable: bool,
           given: dict[str, Tensors] | None = None, dtype: torch.dtype | None = torch.float32) -> None:
    """Add one adapter to ``model`` in place, at the layers of ``planned``.

    Args:
        injection: what is in the model so far; extended on success only.
        planned: from `engine.model.targets.plan` on the model as it is now.
        given: tensors by module path and name (from a file). What is not given is initialised, in the order of the modules,
            from the global random stream, as PEFT does.
        dtype: of initialised tensors; given ones keep theirs unless they are to be trained. None: the base weight's.
    """
    method = law(config)
    tenant = Tenant(method, config)
    ready: list[tuple[str, Adapted, nn.Module | None, Tensors]] = []
    for target in planned.targets:
        known = isinstance(target.layer, Adapted)
        layer = target.layer if known else Adapted(target.layer, target.host, target.site, injection.stack)
        tensors = _tensors(tenant, layer, (given or {}).get(target.path, {}), trainable, dtype)
        ready.append((target.path, layer, None if known else target.layer, tensors))
    for path, layer, replaced, tensors in ready:               # nothing below can fail
        layer.add(name, tenant, tensors)
        if replaced is not None:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer)
            injection.layers[path] = layer
    injection.stack.changed()


def _tensors(tenant: Tenant, layer: Adapted, given: Tensors, trainable: bool, dtype: torch.dtype | None) -> Tensors:
    """One adapter's tensors at one layer: given ones as they are, the rest initialised."""
    method, weight = tenant.method, layer.pristine_weight
    specs = method.tensors(tenant.config, layer.site)
    device = torch.device("cpu") if weight.device.type == "meta" else weight.device
    made: Tensors = {}
    for key, spec in specs.items():
        if key in given:
            tensor = given[key].to(device)
            if trainable and tensor.is_floating_point():
                tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        else:
            tensor = torch.empty(spec.shape, dtype=torch.float32)
            with torch.no_grad():
                spec.init(tensor)
            tensor = tensor.to(device, dtype or weight.dtype)
        made[key] = tensor
    fresh = specs.keys() - given.keys()
    if fresh and method.starts_from_base(tenant.config):
        with torch.no_grad():
            method.start(made, tenant.config, layer.site, layer.canonical(), fresh)
    return {key: nn.Parameter(tensor, requires_grad=trainable and specs[key].trainable) for key, tensor in made.items()}


def eject(model: nn.Module, injection: Injection) -> None:
    """Put every base layer back in its place and forget all adapters; the base is as it was before the first injection."""
    for path, layer in injection.layers.items():
        layer.unmerge()
        _restore(model, path, layer)
    injection.layers.clear()
    injection.stack.arrange({})
    injection.stack.merged = ()


def bake(model: nn.Module, injection: Injection, names: list[str]) -> None:
    """Leave plain layers with the composed weights behind and forget all adapters."""
    for path, layer in injection.layers.items():
        layer.unmerge()
        layer.merge(names)
        _restore(model, path, layer)
    injection.layers.clear()
    injection.stack.arrange({})
    injection.stack.merged = ()


def _restore(model: nn.Module, path: str, layer: Adapted) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer.base_layer)
