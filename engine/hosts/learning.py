"""One adapter that learns on a plain linear layer: the paths that a training runs.

Layer and low-rank adapter are one operation. It keeps for the backward pass its input (or what its input can be made from again) and what passes
through the ranks, which is thin: dropout falls again from its seed, and no tensor of the output's size is made beside the output.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.hosts.recompute import Origin, Recipe
from engine.hosts.turned import back
from engine.law import Factors, MapMethod, Method
from engine.hosts.beside import BIAS

if TYPE_CHECKING:
    from engine.hosts.adapted import Adapted
    from engine.hosts.program import Program
    from engine.hosts.stack import LiveStack

Thin = tuple[float, int]                   # share of the inputs that dropout takes away, and the seed by which it falls


def learning_low_rank(layer: "Adapted", stack: "LiveStack", name: str, otherwise: "Program") -> "Program | None":
    """A program for a lone low-rank adapter, or None if layer or method do more than two thin products; ``otherwise``: see `_plainly`."""
    tenant, base, p = layer.tenants[name], layer.base_layer, layer.all_tensors(name)
    method, config, site = tenant.method, tenant.config, tenant.site
    plain = type(method).apply is Method.apply and type(method).kept_outputs is Method.kept_outputs and not isinstance(method, MapMethod)
    if type(base) is not nn.Linear or not plain or BIAS in p:
        return None
    in_parts = not layer.packed and base.weight.dtype in (torch.float32, torch.float64) and method.parts(p, config, site) is not None
    if not in_parts and method.factors(p, config, site) is None:
        return None
    share = method.dropout(config)
    kept: dict[float, Tensor] = {}         # the weight with the part that never learns, at this strength; a program does not outlive either

    def program(x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        weight, bias, strength = base.weight, base.bias, stack.strength(name)
        if args or kwargs or not _plainly(base, x):
            return otherwise(x, args, kwargs)
        if in_parts:
            f, rest = method.parts(p, config, site)
            if strength not in kept:
                kept.clear()
                kept[strength] = _with_part(weight, rest, strength)
            weight = kept[strength]
        else:
            f = method.factors(p, config, site)
        if f.bias is not None:
            own = (f.bias * (strength * f.scale)).to(weight.dtype)
            bias = own if bias is None else bias + own
        thin = (share, int(torch.randint(2 ** 62, ()))) if share and layer.training else (0.0, 0)
        return _LowRank.apply(x, weight, bias, f.A, f.B, strength * f.scale, thin)

    return program


def learning_in_place(layer: "Adapted", stack: "LiveStack", name: str, otherwise: "Program") -> "Program | None":
    """A program for a lone adapter that holds all of the weight itself, so that W0 need not run (see `Method.whole`); else None."""
    tenant, base, p = layer.tenants[name], layer.base_layer, layer.all_tensors(name)
    method, config, site = tenant.method, tenant.config, tenant.site
    if type(base) is not nn.Linear or not layer.training or BIAS in p or layer._kept is not None or method.dropout(config):
        return None
    whole = method.whole(p, config, site)

    def program(x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        if args or kwargs or stack.strength(name) != 1 or x.dtype.itemsize < 4 or not _plainly(base, x):
            return otherwise(x, args, kwargs)
        y = whole(x)
        return y if base.bias is None else y + base.bias

    return None if whole is None else program


def learning_entries(layer: "Adapted", stack: "LiveStack", name: str, otherwise: "Program") -> "Program | None":
    """A program for a lone adapter that is a few entries of the weight (see `Method.entries`), on a processor; else None.

    Backward, no gradient of a whole weight is made to take those entries out of it, and the weight with them is made again, not kept.
    """
    tenant, base, p = layer.tenants[name], layer.base_layer, layer.all_tensors(name)
    if type(base) is not nn.Linear or layer.like.device.type != "cpu" or BIAS in p:
        return None
    found = tenant.method.entries(p, tenant.config, tenant.site)
    if found is None or len(found[1]) > base.weight.numel() // 8:               # so many that all in one go are quicker
        return None
    values, places, dtype = found[0], found[1].long(), base.weight.dtype
    pattern = _Pattern.of(places, base.weight.detach())

    def program(x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        if args or kwargs or x.dtype is not dtype or not _plainly(base, x):
            return otherwise(x, args, kwargs)
        return _Entries.apply(x, base.weight, base.bias, values, places, pattern, stack.strength(name))

    return None if pattern is None else program


def _plainly(base: nn.Linear, x: Tensor) -> bool:
    """Whether nothing but the sum of layer and adapter is asked for at this call.

    Otherwise somebody looks at the base's own output or learns its weight, the numbers are cast on the way (autocast), or a transform or
    compiler wants to see through it.
    """
    weight, bias = base.weight, base.bias
    return not (x.dtype != weight.dtype or weight.requires_grad or (bias is not None and bias.requires_grad) or is_watched(base)
                or torch.is_autocast_enabled(x.device.type)
                or torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling())


def is_watched(base: nn.Module) -> bool:
    """Whether somebody sees or replaces what the layer itself computes."""
    return bool(base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or "forward" in base.__dict__)


@torch.no_grad()
def _with_part(weight: Tensor, rest: Factors | Tensor, strength: float) -> Tensor:
    """``W + strength · scale · B · A``, or plus a dense rest."""
    if isinstance(rest, Tensor):
        return torch.add(weight, rest.to(weight.dtype), alpha=strength)
    return torch.addmm(weight, rest.B.to(weight.dtype), rest.A.to(weight.dtype), alpha=strength * rest.scale)


class _LowRank(torch.autograd.Function):
    """``y = W x + b + s · B A d(x)``; W gets no gradient. x ``(…, columns)``, A ``(rank, columns)``, B ``(out, rank)``, d dropout.

    A and B may be of another dtype than x: they are used in that of x, and their gradients come in their own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, thin: Thin) -> Tensor:
        needs_a, needs_b = ctx.needs_input_grad[3:5]
        ctx.recipe, kept = _to_keep(x, needs_a)
        ctx.scale, ctx.thin, ctx.columns, ctx.dtypes = scale, thin, x.shape[-1], (A.dtype, B.dtype)
        y, A, B = F.linear(x, weight, bias), A.to(x.dtype), (B * scale).to(x.dtype)
        h = _thinned(x.reshape(-1, x.shape[-1]), thin) @ A.T
        ctx.save_for_backward(weight, A, B, h if needs_b else None, *kept)
        return y.reshape(-1, y.shape[-1]).addmm_(h, B.T).view(y.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, A, B, h, *kept = ctx.saved_tensors            # B with the scale
        needs_x, needs_a, needs_b = ctx.needs_input_grad[0], *ctx.needs_input_grad[3:5]
        shape = (*grad.shape[:-1], ctx.columns)
        grad = grad.reshape(-1, grad.shape[-1])
        to_x = to_a = to_b = None
        to_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        if needs_x or needs_a:
            into_ranks = grad @ B
        if needs_a:
            x = kept[0] if ctx.recipe is None else ctx.recipe.make(*kept)
            to_a = (into_ranks.T @ _thinned(x.reshape(-1, ctx.columns), ctx.thin)).to(ctx.dtypes[0])
        if needs_b:                        # this way round the product is a third quicker
            to_b = ((h.T * ctx.scale) @ grad).T.to(ctx.dtypes[1])
        if needs_x:
            to_x = back(grad, weight)
            if ctx.thin[0]:
                to_x += _thinned(into_ranks @ A, ctx.thin)
            else:
                to_x.addmm_(into_ranks, A)
            to_x = to_x.view(shape)
        return to_x, None, to_bias, to_a, to_b, None, None


class _Entries(torch.autograd.Function):
    """``y = (W + s · Σ valueᵢ at placeᵢ) x + b``; W and b get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, places: Tensor, pattern: "_Pattern",
                strength: float) -> Tensor:
        ctx.recipe, kept = _to_keep(x, ctx.needs_input_grad[3])
        ctx.pattern, ctx.strength = pattern, strength
        ctx.save_for_backward(weight, values, places, *kept)
        return F.linear(x, _with(weight, values, places, strength), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, values, places, *kept = ctx.saved_tensors
        to_x = to_values = None
        if ctx.needs_input_grad[3]:
            x = kept[0] if ctx.recipe is None else ctx.recipe.make(*kept)
            to_values = ctx.pattern.products(grad.reshape(-1, grad.shape[-1]).T, x.reshape(-1, x.shape[-1])).mul_(ctx.strength).to(values.dtype)
        if ctx.needs_input_grad[0]:
            to_x = grad @ _with(weight, values, places, ctx.strength)
        return to_x, None, None, to_values, None, None, None


def _with(weight: Tensor, values: Tensor, places: Tensor, strength: float) -> Tensor:
    return weight.reshape(-1).index_add(0, places, values.to(weight.dtype), alpha=strength).view_as(weight)


class _Pattern:
    """Places in a matrix, none of them twice, as the rows and columns that PyTorch's sparse matrices know."""

    def __init__(self, order: Tensor, matrix: Tensor):
        self._order, self._matrix = order, matrix             # where each place comes among the sorted ones; a sparse matrix of zeros there

    @classmethod
    def of(cls, places: Tensor, like: Tensor) -> "_Pattern | None":
        """From places in the flattened matrix ``like``, in any order; None if one is there twice."""
        places, order = places.sort()
        if (places[1:] == places[:-1]).any():
            return None
        out, columns = like.shape
        starts = torch.searchsorted(places, torch.arange(out + 1) * columns)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            return cls(order, torch.sparse_csr_tensor(starts.int(), (places % columns).int(), like.new_zeros(len(places)), like.shape,
                                                      check_invariants=False))

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """Those entries of ``left @ right``, in the order of the places, and nothing else of it."""
        found = torch.sparse.sampled_addmm(self._matrix, left, right, beta=0).values()
        return torch.empty_like(found).index_copy_(0, self._order, found)


def _to_keep(x: Tensor, needed: bool) -> tuple[Recipe | None, tuple[Tensor, ...]]:
    """What a backward pass that needs ``x`` keeps: x itself, or (how it is made, what it is made from)."""
    origin = Origin.of(x) if needed and x.requires_grad else None
    if origin is None:
        return None, (x,) if needed else ()
    return origin.recipe, origin.inputs


def _thinned(x: Tensor, thin: Thin) -> Tensor:
    """Dropout that falls the same whenever it is given the same seed."""
    share, seed = thin
    if not share:
        return x
    dice = torch.Generator(x.device).manual_seed(seed)
    return x * torch.empty_like(x).bernoulli_(1 - share, generator=dice).div_(1 - share)
