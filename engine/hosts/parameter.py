"""Weights that somebody else's forward reads: raw parameters of a module (fused experts), attention's projections.

There is no layer to run beside, so the whole stack is composed into one weight, differentiable while something learns, and the module's own
forward runs with it in place of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.hosts.adapted import NOTHING, Adapted, unwrapped
from engine.hosts.basis import versions
from engine.hosts.host import Layout
from engine.law import MapMethod, Method, Site, Tensors


@dataclass(frozen=True)
class ParameterLayout(Layout):
    """The parameter called ``name``: a matrix ``(out, in)``, or experts' matrices ``(experts, out, in)``, ``flipped``: ``(experts, in, out)``.

    ``bias``: name of the parameter that is its bias, if it has one.
    """

    name: str
    bias: str = ""
    flipped: bool = False

    def site(self, path: str, module: nn.Module) -> Site:
        weight = self.weight(module)
        out, columns = self.canonical(weight).shape
        return Site(path, "parameter", out, columns, experts=weight.shape[0] if weight.dim() == 3 else 1, has_bias=self.bias_of(module) is not None)

    def weight(self, module: nn.Module) -> Tensor:
        return module._parameters[self.name]

    def bias_of(self, module: nn.Module) -> Tensor | None:
        return module._parameters.get(self.bias)

    def put(self, module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
        module.register_parameter(self.name, weight)
        if self.bias:
            module.register_parameter(self.bias, bias)

    def names(self, path: str) -> tuple[str, str]:
        return path, f"{path.rpartition('.')[0]}.{self.bias}"

    def canonical(self, weight: Tensor) -> Tensor:
        stacked = weight.mT if self.flipped else weight
        return stacked.flatten(0, 1) if weight.dim() == 3 else stacked

    def native(self, matrix: Tensor, like: Tensor) -> Tensor:
        stacked = matrix.unflatten(0, (like.shape[0], -1)) if like.dim() == 3 else matrix
        return stacked.mT if self.flipped else stacked


class Read(Adapted):
    """A layer that others do not only call: its ``weight`` and ``bias`` are read, and so they are what the stack makes of them."""

    def value(self) -> tuple[Tensor, Tensor | None]:
        """Weight, in the layer's layout and dtype, and bias, with the stack on. The same tensors until something changes, if nothing learns.

        Raises `ValueError` where each sample of the batch is to hear another adapter: there is one weight for all.
        """
        stack, host, bare = self._stack, self._host, self.bare
        if stack.samples is not None and any(name in self.tenants for name in stack.samples.names):
            raise ValueError(f"The adapters on {self.site.path} do not support mixed adapter batches: its weight is one for the whole batch.")
        own, bias = host.weight(bare), host.bias_of(bare)
        heard = [] if stack.samples is not None else [name for name in stack.heard() if name in self.tenants]
        if not heard:
            return own, bias
        if torch.is_grad_enabled():
            self._known = (None, None, None)                  # a step may follow that leaves no trace (see `Basis`)
            if not any(cannot_be_read(self.tenants[name].method) for name in heard):
                return self._learning(heard, own), self._learning_bias(heard, own, bias)
            return self._on_present(heard, own)               # as exactly as when nothing learns, without what training drops
        stamp = (stack.tick, id(own), *versions([own]), own.device, own.dtype)
        if self._known[0] != stamp or self._known_of.moved():
            self._known, self._known_of = (stamp, *self._on_present(heard, own)), self._basis(heard)
        return self._known[1:]

    def _on_present(self, heard: list[str], own: Tensor) -> tuple[Tensor, Tensor | None]:
        W, b = self.on_present(heard, self._stack)
        return self._as(own, W), b if b is None else b.to(own.dtype)

    _known: tuple = (None, None, None)
    _known_of = NOTHING

    def _as(self, own: Tensor, matrix: Tensor) -> Tensor:
        return self._host.native(matrix, own).to(own.dtype).contiguous()

    def _learning(self, heard: list[str], own: Tensor) -> Tensor:
        """In the weight's own dtype: a second stack of experts in float32 would be too much."""
        W = self._host.canonical(own.detach())
        for name in heard:
            tenant, strength = self.tenants[name], self._stack.strength(name)
            method, config, site = tenant.method, tenant.config, tenant.site
            change = method.delta(self._cast(name, W.dtype), config, site, self.canonical() if method.needs_base else None)
            if self.training and (share := method.dropout(config)):         # of the inputs' channels, for all rows of the step alike
                change = change * F.dropout(change.new_ones(site.columns), share)
            if self.training and (kept := method.kept_outputs(config, site)) is not None:
                change = change * kept.to(change)[:, None]
            W = W + strength * change
        return self._as(own, W)

    def _learning_bias(self, heard: list[str], own: Tensor, bias: Tensor | None) -> Tensor | None:
        b = None if bias is None else bias.detach()
        for name in heard:
            tenant = self.tenants[name]
            W0 = self.canonical() if tenant.method.needs_base else None
            if (more := tenant.method.bias_delta(self._cast(name, own.dtype), tenant.config, tenant.site, self.pristine_bias, W0)) is not None:
                b = self._stack.strength(name) * more + (0 if b is None else b)
        return b

    def _cast(self, name: str, dtype: torch.dtype) -> Tensors:
        return {k: t.to(dtype) if t.is_floating_point() else t for k, t in self.all_tensors(name).items()}

    def shown(self, name: str) -> Any:
        """What code sees that reads past `forward` (fused encoder layers do)."""
        return self.value()[name == "bias"]

    weight = property(lambda self: self.shown("weight"))
    bias = property(lambda self: self.shown("bias"))


class AdaptedParameter(Read):
    """Stands round a module and lets its forward run with one of its parameters replaced. For several parameters such wrappers nest,
    the one that the module declares first innermost, as PEFT's ``ParamWrapper`` do."""

    @property
    def bare(self) -> nn.Module:
        return unwrapped(self.base_layer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        weight, bias = self.value()
        values = {name: value for name, value in ((self._host.name, weight), (self._host.bias, bias)) if name}
        with standing_in(self.bare, values):
            return self.base_layer(*args, **kwargs)

    def shown(self, name: str) -> Any:
        host = self._host
        return self.value()[name == host.bias] if name in (host.name, host.bias) else getattr(self.base_layer, name)

    def __getattr__(self, name: str) -> Any:
        host = self.__dict__.get("_host")
        return self.shown(name) if host is not None and name in (host.name, host.bias) else super().__getattr__(name)

    def enter(self, model: nn.Module, path: str) -> None:
        place, name = self._place(model, path)
        while isinstance(inner := getattr(place, name), AdaptedParameter) and inner.order > self.order:
            place, name = inner, "base_layer"
        self.base_layer = inner
        setattr(place, name, self)

    def leave(self, model: nn.Module, path: str) -> None:
        place, name = self._place(model, path)
        while (found := getattr(place, name)) is not self:
            place, name = found, "base_layer"
        setattr(place, name, self.base_layer)

    @property
    def order(self) -> int:
        """The parameter's place among those of its module."""
        return list(self.bare._parameters).index(self._host.name)

    @staticmethod
    def _place(model: nn.Module, path: str) -> tuple[nn.Module, str]:
        parent, _, leaf = path.rpartition(".")[0].rpartition(".")
        return unwrapped(model.get_submodule(parent)), leaf


@contextmanager
def standing_in(module: nn.Module, values: dict[str, Tensor | None]) -> Iterator[None]:
    """Inside the block these tensors are the module's parameters of those names; afterwards, whatever happens, its own are again.

    Sharded training lays a module's tensors beside its parameters while it runs: there they hide what stands under the same name.
    """
    held = {name: vars(module) if name in vars(module) else module._parameters for name in values}
    own = {name: place[name] for name, place in held.items()}
    for name, place in held.items():
        place[name] = values[name]
    try:
        yield
    finally:
        for name, place in held.items():
            place[name] = own[name]


def cannot_be_read(method: Method) -> str:
    """Why a method's change of a weight cannot be composed into one tensor for a whole step; empty if it can."""
    if isinstance(method, MapMethod) or type(method).apply is not Method.apply:
        return f"{method.title} has to run beside a layer, and here a weight is only read."
    return ""
