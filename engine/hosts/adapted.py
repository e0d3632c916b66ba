"""A layer with adapters: one pristine base weight and the live stack of adapters round it.

The base is never changed. Each adapter's tensors stand beside it under PEFT's own names, so that the module tree reads
``….q_proj.lora_A.<adapter>.weight`` and a key in a file is the key in memory less the adapter's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.hosts.host import Host
from engine.hosts.stack import Layout, LiveStack
from engine.methods.base import Factors, Method, Site, Tensors


class Slot(nn.Module):
    """Holds one adapter's tensors of one kind (``lora_A`` → ``weight``, ``bias``), so that names nest as in PEFT."""


@dataclass(frozen=True)
class Tenant:
    """One adapter at one layer: its method and settings. Its tensors live in the layer's module tree."""

    method: Method
    config: Any


FEW_ROWS = 8                               # of a decoding step; a prompt has more
Path = Callable[[Tensor, Tensor, Tensor | None], Tensor]      # (x, y, W0·x) → y with one adapter, or one fused group, added


class Adapted(nn.Module):
    """Wraps ``base_layer``; behaves like it wherever nothing is in the stack."""

    def __init__(self, base_layer: nn.Module, host: Host, site: Site, stack: LiveStack):
        super().__init__()
        self.base_layer = base_layer
        self.site = site
        self.tenants: dict[str, Tenant] = {}
        self._host, self._stack = host, stack
        self._pristine: nn.Parameter | None = None            # W0 while a merged weight stands in its place
        self._pristine_bias: nn.Parameter | None = None
        self._paths: list[Path] = []
        self._needs_origin = False
        self._stamp: tuple = ()
        self.train(base_layer.training)

    # --- adapters ---

    def add(self, name: str, tenant: Tenant, tensors: Tensors) -> None:
        """Let an adapter in. ``tensors`` by their names in PEFT's files; those of trainable specs become parameters."""
        self.tenants[name] = tenant
        for key, tensor in tensors.items():
            kind, _, leaf = key.partition(".")
            parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
            if leaf:
                shelf = self._shelf(kind, nn.ModuleDict)
                if name not in shelf:
                    shelf[name] = Slot()
                shelf[name].register_parameter(leaf, parameter)
            else:
                self._shelf(kind, nn.ParameterDict)[name] = parameter

    def _shelf(self, kind: str, container: type) -> Any:
        if kind not in self._modules:
            self.add_module(kind, container())
        return self._modules[kind]

    def remove(self, name: str) -> None:
        """Forget an adapter; empty shelves go with it."""
        self.tenants.pop(name, None)
        for kind in [k for k in self._modules if k != "base_layer"]:
            shelf = self._modules[kind]
            if name in shelf:
                del shelf[name]
            if not len(shelf):
                delattr(self, kind)
        self._stamp = ()

    def tensors(self, name: str) -> Tensors:
        """An adapter's tensors by their names in PEFT's files; the live parameters, not copies."""
        found: Tensors = {}
        for kind, shelf in self._modules.items():
            if kind != "base_layer" and name in shelf:
                if isinstance(shelf[name], Slot):
                    found.update({f"{kind}.{leaf}": p for leaf, p in shelf[name]._parameters.items()})
                else:
                    found[kind] = shelf[name]
        return found

    # --- running ---

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x, *args, **kwargs)
        stamp = (self._stack.version, torch.is_grad_enabled(), self.training, y.dtype)
        if stamp != self._stamp:
            self._paths, self._needs_origin = self._prepare(y.dtype, frozen=not stamp[1])
            self._stamp = stamp
        origin = self._origin(x, y) if self._needs_origin else None
        for path in self._paths:
            y = path(x, y, origin)
        return y

    def _origin(self, x: Tensor, y: Tensor) -> Tensor:
        """The untouched weight's own output, without bias."""
        if self._pristine is not None:     # a merged weight stands in its place: y is not it
            return self._host.run(self.base_layer, x, self.canonical().to(y.dtype))
        return y if self.pristine_bias is None else self._host.bias(y, -self.pristine_bias)

    def canonical(self) -> Tensor:
        """W0 as the matrix that methods see."""
        return self._host.canonical(self.pristine_weight.detach())

    def _prepare(self, dtype: torch.dtype, frozen: bool) -> tuple[list[Path], bool]:
        """Decide once how to run the present stack: frozen low-rank neighbours fuse into one; frozen dense deltas are computed once.

        Returns the paths in order, and whether any of them asks for the untouched weight's output.
        """
        paths: list[Path] = []
        group: list[str] = []
        needs_origin = False
        for name in self._stack.heard():
            if name not in self.tenants:
                continue
            tenant, tensors = self.tenants[name], self.tensors(name)
            still = frozen and not any(t.requires_grad for t in tensors.values())
            low_rank = tenant.method.factors(tensors, tenant.config, self.site) is not None
            if low_rank and still:
                group.append(name)
                continue
            if group:
                paths.append(self._fused(group, dtype))
                group = []
            if low_rank:
                paths.append(self._low_rank(name))
            elif tenant.method.needs_base and tenant.method.gain(tensors, tenant.config, self.site, self.canonical()) is not None:
                paths.append(self._gained(name, still))
                needs_origin = True
            else:
                paths.append(self._dense(name, still))
        if group:
            paths.append(self._fused(group, dtype))
        return paths, needs_origin

    def _fused(self, names: list[str], dtype: torch.dtype) -> Path:
        """Frozen low-rank adapters as one stacked A and one stacked B; the strengths are read from the stack at each call."""
        parts = [self.tenants[n].method.factors(self.tensors(n), self.tenants[n].config, self.site) for n in names]
        biases = [(n, f.bias.detach() * f.scale) for n, f in zip(names, parts) if f.bias is not None]
        linear = self.site.kind == "linear" and not biases
        if linear and len(parts) == 1:
            return self._alone(names[0], parts[0], dtype)
        layout: Layout = tuple((n, f.A.shape[0], f.scale) for n, f in zip(names, parts))
        host, layer, stack = self._host, self.base_layer, self._stack
        A = torch.cat([f.A.detach().to(dtype) for f in parts])
        B = torch.cat([f.B.detach().to(dtype) for f in parts], dim=1)

        def flat(x: Tensor, y: Tensor, origin: Tensor | None) -> Tensor:
            h = x.to(dtype).reshape(-1, x.shape[-1]) @ A.t()
            return torch.addmm(y.reshape(-1, y.shape[-1]), h * stack.scales(layout, dtype, y.device), B.t()).view(y.shape)

        def fused(x: Tensor, y: Tensor, origin: Tensor | None) -> Tensor:
            h = host.project(layer, self._inputs(x, y), A)
            y = y + host.expand(layer, host.per_output(h, stack.scales(layout, dtype, y.device)), B)
            for name, bias in biases:
                y = host.bias(y, (bias * stack.strength(name)).to(dtype))
            return y

        return flat if linear else fused

    def _alone(self, name: str, f: Factors, dtype: torch.dtype) -> Path:
        """One frozen adapter on a linear layer, the everyday case, in as few operations as there can be."""
        stack, scale = self._stack, f.scale
        A, B = f.A.detach().to(dtype).t(), f.B.detach().to(dtype).t()
        master_A, master_B = f.A.detach().t(), f.B.detach().t()
        # a processor's 16-bit products of a few rows cost three times those of the float32 tensors that are there anyway
        few = FEW_ROWS if f.A.dtype == torch.float32 and dtype.itemsize == 2 and f.A.device.type == "cpu" else 0

        def path(x: Tensor, y: Tensor, origin: Tensor | None) -> Tensor:
            rows, out, alpha = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), stack.strength(name) * scale
            if rows.shape[0] <= few:
                return torch.addmm(out.float(), rows.float() @ master_A, master_B, alpha=alpha).to(dtype).view(y.shape)
            return torch.addmm(out, rows.to(dtype) @ A, B, alpha=alpha).view(y.shape)

        return path

    def _inputs(self, x: Tensor, y: Tensor, share: float = 0.0) -> Tensor:
        """What an adapter sees: token ids as they are, anything else in the output's dtype, thinned out by dropout in training."""
        return x if self.site.kind == "embedding" else F.dropout(x, share, self.training and share > 0).to(y.dtype)

    def _low_rank(self, name: str) -> Path:
        """One low-rank adapter with gradients: computed in the activations' dtype, master tensors stay as they are."""
        tenant, host, layer, stack = self.tenants[name], self._host, self.base_layer, self._stack
        tensors, share = self.tensors(name), tenant.method.dropout(tenant.config)

        def path(x: Tensor, y: Tensor, origin: Tensor | None) -> Tensor:
            f = tenant.method.factors(tensors, tenant.config, self.site)
            h = host.project(layer, self._inputs(x, y, share), f.A.to(y.dtype))
            factor = stack.strength(name) * f.scale
            y = y + host.expand(layer, h * factor, f.B.to(y.dtype))
            return y if f.bias is None else host.bias(y, (f.bias * factor).to(y.dtype))

        return path

    def _gained(self, name: str, still: bool) -> Path:
        """A delta that rescales the base's own output rows; when nothing learns, the gains are computed once."""
        tenant, host, layer, stack = self.tenants[name], self._host, self.base_layer, self._stack
        tensors, share = self.tensors(name), tenant.method.dropout(tenant.config)

        def gain() -> tuple[Tensor, Factors]:
            return tenant.method.gain(tensors, tenant.config, self.site, self.canonical())

        kept = gain() if still else None

        def path(x: Tensor, y: Tensor, origin: Tensor | None) -> Tensor:
            g, f = kept or gain()
            h = host.project(layer, self._inputs(x, y, share), f.A.to(y.dtype))
            learned = host.expand(layer, h * (stack.strength(name) * f.scale), f.B.to(y.dtype))
            return y + host.per_output(origin, (stack.strength(name) * (g - 1)).to(y.dtype)) + host.per_output(learned, g.to(y.dtype))

        return path

    def _dense(self, name: str, still: bool) -> Path:
        """A delta without factors: the layer's own forward with ΔW in place of its weight; when nothing learns, ΔW is computed once."""
        tenant, host, layer, stack = self.tenants[name], self._host, self.base_layer, self._stack
        tensors, share = self.tensors(name), tenant.method.dropout(tenant.config)

        def delta(dtype: torch.dtype) -> Tensor:
            return tenant.method.delta(tensors, tenant.config, self.site, self._seen_base(tenant)).to(dtype)

        kept: dict[torch.dtype, Tensor] = {}

        def path(x: Tensor, y: Tensor, origin: Tensor | None) -> Tensor:
            if still and y.dtype not in kept:
                kept[y.dtype] = delta(y.dtype)
            strength = stack.strength(name)
            y = y + strength * host.run(layer, self._inputs(x, y, share), kept[y.dtype] if still else delta(y.dtype))
            bias = tenant.method.bias_delta(tensors, tenant.config, self.site)
            return y if bias is None else host.bias(y, (bias * strength).to(y.dtype))

        return path

    def _seen_base(self, tenant: Tenant, W0: Tensor | None = None) -> Tensor | None:
        return (self.canonical() if W0 is None else W0) if tenant.method.needs_base else None

    # --- merging: composed from W0, never subtracted ---

    @torch.no_grad()
    def compose(self, W0: Tensor | None = None, names: Iterable[str] | None = None) -> Tensor:
        """The weight with the stack baked in, in the layer's own layout and W0's dtype; summed in float32 or better.

        Args:
            W0: the pristine weight, if the layer itself holds none (streaming merges on the meta device).
            names: only these adapters of the stack; all by default.
        """
        W0 = self.pristine_weight if W0 is None else W0
        exact = torch.promote_types(W0.dtype, torch.float32)
        origin = self._host.canonical(W0).to(exact)
        matrix = origin.clone()
        for name in self._stack.names if names is None else names:
            if name in self.tenants and (strength := self._stack.strength(name)) != 0:
                tenant = self.tenants[name]
                tensors = {k: t.detach().to(W0.device, exact) for k, t in self.tensors(name).items()}
                matrix += strength * tenant.method.delta(tensors, tenant.config, self.site, self._seen_base(tenant, origin))
        return self._host.native(matrix, W0).to(W0.dtype).contiguous()

    @torch.no_grad()
    def compose_bias(self, b0: Tensor | None = None, names: Iterable[str] | None = None) -> Tensor | None:
        """The bias ``(out,)`` with the stack baked in, or None if the layer has none."""
        b0 = self.pristine_bias if b0 is None else b0
        if b0 is None:
            return None
        exact = torch.promote_types(b0.dtype, torch.float32)
        bias = b0.to(exact, copy=True)
        for name in self._stack.names if names is None else names:
            if name in self.tenants and (strength := self._stack.strength(name)) != 0:
                tenant = self.tenants[name]
                tensors = {k: t.detach().to(b0.device, exact) for k, t in self.tensors(name).items()}
                if (delta := tenant.method.bias_delta(tensors, tenant.config, self.site)) is not None:
                    bias += strength * delta
        return bias.to(b0.dtype)

    def merge(self, names: Iterable[str]) -> None:
        """Let a composed weight stand in for W0, which is kept; `unmerge` puts the very same object back."""
        names = [name for name in names if name in self.tenants]
        if not names:
            return
        weight, bias = self.compose(names=names), self.compose_bias(names=names)
        if self._pristine is None:
            self._pristine, self._pristine_bias = self.base_layer.weight, getattr(self.base_layer, "bias", None)
        self.base_layer.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.base_layer.bias = nn.Parameter(bias, requires_grad=False)

    def unmerge(self) -> None:
        """Restore W0, bit for bit: it is the same tensor that was there before."""
        if self._pristine is not None:
            self.base_layer.weight = self._pristine
            if self._pristine_bias is not None:
                self.base_layer.bias = self._pristine_bias
            self._pristine = self._pristine_bias = None

    @property
    def pristine_weight(self) -> Tensor:
        """W0, whatever is merged."""
        return self.base_layer.weight if self._pristine is None else self._pristine

    @property
    def pristine_bias(self) -> Tensor | None:
        return getattr(self.base_layer, "bias", None) if self._pristine_bias is None else self._pristine_bias

    # --- looking like the layer it wraps ---

    @property
    def weight(self) -> Tensor:
        """The base layer's present weight, for code that looks at a layer's dtype, device or shape."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    def _apply(self, fn: Callable, recurse: bool = True) -> "Adapted":
        super()._apply(fn, recurse)
        for kept in ("_pristine", "_pristine_bias"):
            if (parameter := getattr(self, kept)) is not None:
                setattr(self, kept, nn.Parameter(fn(parameter.data), requires_grad=False))
        self._stamp = ()                   # stacked copies may lie on another device now
        return self
