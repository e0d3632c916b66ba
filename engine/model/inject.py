"""Putting an adapter into a model: everything is prepared first, then swapped in; if anything fails, nothing has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from engine.checkpoint.shared import by_law, shared_specs
from engine.hosts.adapted import Adapted, Tenant
from engine.hosts.offloaded import here
from engine.hosts.replaced import Replaced
from engine.hosts.stack import Samples
from engine.law import Method, Site, TargetedConfig, Tensors, TensorSpec
from engine.hosts.beside import BIAS
from engine.model.targets import Target

if TYPE_CHECKING:
    from engine.model.tuner import Tuner

SHARED = ""                                # the "module path" of tensors that all layers of an adapter share
Given = Mapping[str, Tensors]              # module path → tensors that come from a file


@dataclass(frozen=True)
class Placement:
    """One method on one layer, as a part of an adapter; ``site`` knows its peers."""

    target: Target
    method: Method
    config: TargetedConfig
    site: Site
    twin: str = ""                         # path of the layer of this adapter whose tensors it uses, as the two share a weight

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """The adapter's tensors at this layer."""
        return self.method.tensors(self.config, self.site)


def placements(targets: Sequence[Target], method: Method, config: TargetedConfig) -> list[Placement]:
    """The same method on all these layers."""
    peers = tuple(t.site for t in targets)
    return [Placement(t, t.law or method, config, t.site.among(peers, i)) for i, t in enumerate(targets)]


_TAKEN = frozenset({Samples.BASE, *dir(nn.ModuleDict()), *dir(nn.ParameterDict())})


def check_name(name: str) -> None:
    """Adapter names become names within modules. Raises `ValueError` for what cannot be one."""
    if not name or "." in name or name in _TAKEN:
        raise ValueError(f"An adapter cannot be named {name!r}: the name must not be empty, hold a dot or be a reserved word.")


@torch.no_grad()
def inject(tuner: "Tuner", name: str, placed: Sequence[Placement], *, trainable: bool, given: Given | None = None,
           autocast: bool = True, device: torch.device | None = None) -> None:
    """Add one adapter to the tuner's model in place.

    Args:
        given: tensors from a file. What is not given is initialised, first what is shared, then layer by layer in the order of the
            modules, from the global random stream, as PEFT does.
        autocast: initialised tensors are float32 at least; otherwise of the base weight's dtype. Given ones keep theirs unless they train.
        device: of all its tensors; by default, that of each layer. On ``meta`` nothing is initialised but what no file holds.
    """
    given = given or {}
    shared, adrift = _shared(placed, given.get(SHARED, {}), trainable, autocast, device)
    ready: list[tuple[str, Adapted | Replaced, bool, Tenant, Tensors]] = []
    made: dict[str, Tensors] = {}
    for place in placed:
        target = place.target
        known = isinstance(target.layer, (Adapted, Replaced))
        layer = target.layer if known else target.wrapper(target.layer, target.host, target.site, tuner.stack)
        borrowed = {name: made[owner.path][name] for name, owner in place.method.borrowed(place.config, place.site).items()}
        lent = {**made[place.twin], **borrowed} if place.twin else borrowed
        tenant = Tenant(place.method, place.config, place.site, {**shared, **lent} if lent else shared, adrift=adrift)
        if target.in_vain is not None and not known:
            _made(place.method.tensors(place.config, target.in_vain), {}, False, torch.float32, device, torch.device("cpu"))
        ready.append((target.path, layer, known, *_tensors(tenant, place.specs, layer, given.get(target.path, {}), trainable, autocast, device)))
        made[target.path] = ready[-1][-1]
    if shared:                             # nothing below can fail
        tuner.put(name, shared)
    for path, layer, known, tenant, tensors in ready:
        layer.add(name, tenant, tensors)
        if not known:
            layer.enter(tuner.model, path)
            tuner.layers[path] = layer
    tuner.stack.changed()


def _shared(placed: Sequence[Placement], given: Tensors, trainable: bool, autocast: bool,
            device: torch.device | None) -> tuple[Tensors, bool]:
    """What all layers share, and whether some of it should begin at weights that are not there."""
    specs = shared_specs(placed)
    if not specs:
        return {}, False
    first = _like(placed[0].target)
    made = _made(specs, given, trainable, _dtype(first, autocast), device, _here(first))
    fresh = {key for key in specs.keys() - given.keys() if not made[key].is_meta}
    starting = [group for group in by_law(placed)
                if fresh and type(group[0].method).start_shared is not Method.start_shared]
    if starting and first.is_meta:
        return made, True
    for group in starting:
        weights = {p.site: p.target for p in group}
        group[0].method.start_shared(made, group[0].config, [p.site for p in group],
                                     lambda site, weights=weights: _exact(_weight(weights[site])), fresh)
    return made, False


def _weight(target: Target) -> Tensor:
    """W0 as the matrix that methods see."""
    layer = target.layer
    return layer.canonical() if isinstance(layer, Adapted) else target.host.canonical(here(layer, target.host.weight).detach())


def _like(target: Target) -> Tensor:
    """Number format and device of W0, without making it readable where it is quantized."""
    layer = target.layer
    return layer.like if isinstance(layer, (Adapted, Replaced)) else here(layer, target.host.like)


def _exact(W0: Tensor) -> Tensor:
    return W0.to(torch.promote_types(W0.dtype, torch.float32))


def _dtype(weight: Tensor, autocast: bool) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32) if autocast else weight.dtype


def _here(weight: Tensor) -> torch.device:
    """Where a layer's adapters live: beside its weight; a layer without memory (streaming merges) gets them on the processor."""
    return torch.device("cpu") if weight.is_meta else weight.device


def _tensors(tenant: Tenant, specs: Mapping[str, TensorSpec], layer: Adapted | Replaced, given: Tensors, trainable: bool, autocast: bool,
             device: torch.device | None) -> tuple[Tenant, Tensors]:
    """One adapter's tensors at one layer: given ones as they are, the rest initialised."""
    method, weight = tenant.method, layer.like
    made = _made(specs, given, trainable, _dtype(weight, autocast), device, _here(weight))
    starts = method.starts_from_base(tenant.config)
    if not starts and BIAS not in specs:   # as with most: thousands of layers need not be asked further
        return tenant, made
    fresh = frozenset(key for key in specs.keys() - given.keys() if not made[key].is_meta)
    if fresh and (starts or BIAS in fresh):
        if weight.is_meta:
            return tenant._replace(fresh=fresh), made
        if any(tensor.is_meta for tensor in tenant.shared.values()):           # a file will bring it; see `engine.checkpoint.state`
            return tenant, made
        layer.begin(tenant, {**tenant.shared, **made}, fresh)
    return tenant, made


def _made(specs: Mapping[str, TensorSpec], given: Tensors, trainable: bool, dtype: torch.dtype, device: torch.device | None,
          here: torch.device) -> Tensors:
    """``device``: where they are asked for; on ``meta`` only what a file will bring has no values."""
    made: Tensors = {}
    nowhere = device is not None and device.type == "meta"
    device = here if device is None or nowhere else device
    if len(given) < len(specs):            # what is made again beside tensors from a file is no coarser than they are
        for tensor in given.values():
            dtype = torch.promote_types(dtype, tensor.dtype) if tensor.is_floating_point() else dtype
    for key, spec in specs.items():
        kind = dtype if spec.dtype.is_floating_point else spec.dtype
        if key in given:
            tensor = given[key].to(device)
            if trainable and spec.trainable and tensor.is_floating_point():
                tensor = tensor.to(torch.promote_types(tensor.dtype, dtype))
        elif nowhere and spec.saved:
            tensor = torch.empty(spec.shape, dtype=kind, device="meta")
        else:
            tensor = torch.empty(spec.shape, dtype=spec.dtype)
            spec.init(tensor)
            if device.type != "cpu" or kind is not spec.dtype:
                tensor = tensor.to(device, kind)
        learns = spec.trainable and tensor.is_floating_point()
        made[key] = nn.Parameter(tensor, requires_grad=trainable) if learns else tensor
    return made
