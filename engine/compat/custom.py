"""Layers of a program's own making: `LoraConfig._register_custom_module`, as PEFT's guide to custom models describes it.

Such a layer is an `Adapted` in front of which stands the program's class: what that class does itself (its forward, tensors that it has for
each adapter) holds, all else is the engine's. Its tensors are found by making one and looking at what it holds.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.compat.kinds import BufferDict
from engine.errors import UnsupportedLayer
from engine.hosts.adapted import Adapted, Tenant, unwrapped
from engine.hosts.beside import mixed
from engine.hosts.host import Host, host_of
from engine.hosts.linear import LinearHost
from engine.hosts.shelves import Fixed, Places, Shelves
from engine.hosts.stack import LiveStack
from engine.law import Method, Site, TargetedConfig, Tensors, TensorSpec, by_pattern
from engine.model.targets import Target

_PROBE = "probe"                           # name of the adapter of a layer that is only made to be looked at
_SAID_BY_THE_CLASS = ("forward", "merge", "get_delta_weight")
_Mixin = Method if TYPE_CHECKING else object


def register(config: TargetedConfig, mapping: Mapping[type[nn.Module], Callable[..., nn.Module]]) -> None:
    """From now on layers of these classes get the program's layers; it is no part of the config's file.

    Args:
        mapping: class of module → class derived from `peft.tuners.lora.Linear` or another one there (or a `functools.partial` of it).
    """
    config.custom_modules = {**config.custom_modules, **{kind: partial(target, made=made) for kind, made in mapping.items()}}


def target(path: str, module: nn.Module, method: Method, config: TargetedConfig, made: Any) -> Target:
    """What an adapter on this module sits on. Raises `UnsupportedLayer`."""
    if getattr(config, "bias", "none") != "none":
        raise UnsupportedLayer(f"The biases of {path} cannot be learned.", "It has a layer of the program's own.", "Set `bias` to \"none\".")
    cls, settings = getattr(made, "func", made), getattr(made, "keywords", {})
    layer, host, site = unwrapped(module), *_described(path, unwrapped(module))
    make = partial(_made, _layer_class(cls), {"settings": settings, "remade": partial(target, made=made)})
    probe = make(layer, host, site, LiveStack())
    probe.tenants[_PROBE] = Tenant(method, config, site, {})
    probe.let_in(_PROBE)
    known = {} if site.kind == "module" else method.tensors(config, site)
    law = copy.copy(mixed(_ByHand, method))
    if site.kind == "module" or any(name in vars(c) for c in cls.__mro__ if c is not nn.Module for name in _SAID_BY_THE_CLASS):
        law.why_unmerged = f"{cls.__name__} has ways of its own to run or to merge them."
    law.held = {key: known.get(key, TensorSpec(tuple(t.shape), t.copy_, isinstance(t, nn.Parameter), dtype=t.dtype))._replace(init=_as(t.detach()))
                for key, t in probe.tensors(_PROBE).items()}
    return Target(path, module if isinstance(module, OwnLayer) else layer, host, site, make, law=law)


def _as(tensor: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda other: other.copy_(tensor)


def _described(path: str, layer: nn.Module) -> tuple[Host, Site]:
    """The host and the site of a layer; one of a kind that the engine does not know is taken for a linear one, if it has that one's sizes."""
    if (host := host_of(layer)) is not None:
        return host, host.site(path, layer)
    warnings.warn(f"Unsupported layer type '{type(layer)}' encountered, proceed at your own risk.", stacklevel=2)
    sizes, weight = (getattr(layer, "out_features", None), getattr(layer, "in_features", None)), getattr(layer, "weight", None)
    if isinstance(weight, Tensor) and weight.shape == sizes:
        return LinearHost(), Site(path, "linear", *sizes, has_bias=getattr(layer, "bias", None) is not None)
    return _Unknown(), Site(path, "module", 0, 0)


class _Unknown(LinearHost):
    """Of a layer that only the program's own class can run."""

    def weight(self, layer: nn.Module) -> Tensor:
        return next(layer.parameters())


class _ByHand(_Mixin):
    """Mixed into a method: its tensors are those that the layer was found to hold."""

    held: dict[str, TensorSpec]

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        return self.held


@cache
def _layer_class(cls: type) -> type[OwnLayer]:
    """The program's class, with the engine behind it; only putting W0 back is always the engine's."""
    return type(cls.__name__, (cls, OwnLayer), {"own": cls, "unmerge": Adapted.unmerge, "__module__": __name__, "__qualname__": cls.__qualname__})


def _made(cls: type[OwnLayer], more: dict[str, Any], layer: nn.Module, host: Host, site: Site, stack: LiveStack) -> OwnLayer:
    """A layer as the engine makes one; the program's part of it follows with the first adapter, whose name it wants to know."""
    made = cls.__new__(cls)
    Adapted.__init__(made, layer, host, site, stack)
    made.__dict__ |= more
    return made


class OwnLayer(Adapted):
    """What stands behind a program's class of layers: what PEFT's ``LoraLayer`` gives to those that are derived from it."""

    own: type

    def __init__(self, *args: Any, **kwargs: Any):
        """Called by the program's class; all is there already."""

    def __setattr__(self, name: str, value: Any) -> None:
        known = getattr(type(self), name, None)               # what the engine knows by itself cannot be told to it
        if not (isinstance(known, property) and known.fset is None):
            super().__setattr__(name, value)

    # --- adapters ---

    def add(self, name: str, tenant: Tenant, tensors: Tensors) -> None:
        self.tenants[name] = tenant
        with torch.random.fork_rng(devices=[]):
            self.let_in(name)
        places = self.places(name)
        if places.keys() != tensors.keys():
            raise ValueError(f"{self.own.__name__} must make the same tensors each time: {sorted(places)} and {sorted(tensors)}.")
        for key, (held, leaf) in places.items():
            held[leaf] = tensors[key]
        tenant.method.held = {key: spec._replace(init=nn.init.zeros_) for key, spec in tenant.method.held.items()}      # let go of first values

    def let_in(self, name: str) -> None:
        """Let the program's class make what it has for this adapter: with the first one, itself."""
        config, path = self.tenants[name].config, self.site.path
        r, alpha = by_pattern(path, config.rank_pattern, config.r), by_pattern(path, config.alpha_pattern, config.lora_alpha)
        if len(self.tenants) > 1:
            self.make_shelves()
            self.update_layer(name, r, lora_alpha=alpha, config=config)
        else:
            self.own.__init__(self, self.bare, name, config=config, r=r, lora_alpha=alpha, target_name=path.rpartition(".")[2], **self.settings)
            self._modules.setdefault("base_layer", self.bare)

    def make_shelves(self) -> None:
        """The empty shelves of PEFT's ``LoraLayer``."""
        for kind in ("lora_A", "lora_B", "lora_magnitude_vector"):
            self._modules.setdefault(kind, nn.ModuleDict())
        for kind in ("lora_embedding_A", "lora_embedding_B"):
            self._modules.setdefault(kind, nn.ParameterDict())

    def update_layer(self, adapter_name: str, r: int, lora_alpha: float = 1, config: Any = None, **kwargs: Any) -> None:
        """Make the tensors of the method itself. Raises `ValueError` where the layer's size is not known."""
        tenant = self.tenants[adapter_name]
        if self.site.kind == "module":
            raise ValueError(f"The sizes of {self.site.path} are not known: {self.own.__name__} has to have an `update_layer` of its own.")
        made = {}
        for key, spec in getattr(tenant.method, "plain", tenant.method).tensors(tenant.config, tenant.site).items():
            made[key] = torch.empty(spec.shape, dtype=spec.dtype)
            spec.init(made[key])
            made[key] = nn.Parameter(made[key]) if spec.trainable and spec.dtype.is_floating_point else made[key]
        self.put(adapter_name, made)

    def places(self, name: str) -> Places:
        found: Places = {}
        for kind, shelf in self._modules.items():
            if not isinstance(shelf, (nn.ModuleDict, nn.ParameterDict, Fixed, BufferDict)) or name not in shelf:
                continue
            if name in shelf._modules:
                for path, module in shelf._modules[name].named_modules(prefix=kind):
                    found |= {f"{path}.{leaf}": (held, leaf) for held in (module._parameters, module._buffers)
                              for leaf, tensor in held.items() if tensor is not None}
            else:
                found[kind] = shelf._parameters if name in shelf._parameters else shelf._buffers, name
        return found

    def set_requires_grad(self, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            for tensor in self.tensors(name).values():
                tensor.requires_grad_(requires_grad and isinstance(tensor, nn.Parameter))
        self._stack.changed()

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:
        return Shelves.named_modules(self, *args, **kwargs)

    # --- what such classes call ---

    def _check_forward_args(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """Checked where a batch begins."""

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Any = None) -> None:
        """It is there."""

    def _cast_input_dtype(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype)

    def reset_lora_parameters(self, adapter_name: str, init_lora_weights: bool | str) -> None:
        """They begin as the method says."""
