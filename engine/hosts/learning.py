"""One low-rank adapter that learns on a plain linear layer: the path that a training runs.

Layer and adapter are one operation. It keeps its input for the backward pass (or what its input can be made from again) and nothing
else: what passes through the ranks is computed again, dropout falls again from its seed, and no tensor of the output's size is made
beside the output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.hosts.recompute import Origin
from engine.law import MapMethod, Method
from engine.hosts.beside import BIAS

if TYPE_CHECKING:
    from engine.hosts.adapted import Adapted
    from engine.hosts.program import Program
    from engine.hosts.stack import LiveStack

Thin = tuple[float, int]                   # share of the inputs that dropout takes away, and the seed by which it falls


def learning_low_rank(layer: "Adapted", stack: "LiveStack", name: str, otherwise: "Program") -> "Program | None":
    """A program for a lone low-rank adapter, or None if layer or method do more than two thin products.

    ``otherwise`` runs whatever this cannot at the moment of the call: somebody looks at the base's own output or learns its weight, the
    numbers are cast on the way (autocast), or a transform or compiler wants to see through it.
    """
    tenant, base, p = layer.tenants[name], layer.base_layer, layer.all_tensors(name)
    method, config, site = tenant.method, tenant.config, tenant.site
    plain = type(method).apply is Method.apply and type(method).kept_outputs is Method.kept_outputs and not isinstance(method, MapMethod)
    if type(base) is not nn.Linear or not plain or BIAS in p or (f := method.factors(p, config, site)) is None or f.bias is not None:
        return None
    share = method.dropout(config)

    def program(x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        weight, bias = base.weight, base.bias
        if (args or kwargs or x.dtype != weight.dtype or weight.requires_grad or (bias is not None and bias.requires_grad) or _is_watched(base)
                or torch.is_autocast_enabled(x.device.type)
                or torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling()):
            return otherwise(x, args, kwargs)
        f = method.factors(p, config, site)
        thin = (share, int(torch.randint(2 ** 62, ()))) if share and layer.training else (0.0, 0)
        return _LowRank.apply(x, weight, bias, f.A, f.B, stack.strength(name) * f.scale, thin)

    return program


def _is_watched(base: nn.Module) -> bool:
    """Whether somebody sees or replaces what the layer itself computes."""
    return bool(base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or "forward" in base.__dict__)


class _LowRank(torch.autograd.Function):
    """``y = W x + b + s · B A d(x)``; W and b get no gradient. x ``(…, columns)``, A ``(rank, columns)``, B ``(out, rank)``, d dropout.

    A and B may be of another dtype than x: they are used in that of x, and their gradients come in their own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, thin: Thin) -> Tensor:
        origin = Origin.of(x) if x.requires_grad else None
        kept = (x,) if origin is None else origin.inputs
        ctx.recipe = None if origin is None else origin.recipe.expect()
        ctx.scale, ctx.thin, ctx.columns = scale, thin, x.shape[-1]
        ctx.save_for_backward(weight, A, B, *kept)
        y = F.linear(x, weight, bias)
        h = _thinned(x.reshape(-1, x.shape[-1]), thin) @ A.to(x.dtype).T
        return y.reshape(-1, y.shape[-1]).addmm_(h, B.to(x.dtype).T, alpha=scale).view(y.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, A, B, *kept = ctx.saved_tensors
        needs_x, needs_a, needs_b = ctx.needs_input_grad[0], *ctx.needs_input_grad[3:5]
        shape = (*grad.shape[:-1], ctx.columns)
        grad = grad.reshape(-1, grad.shape[-1])
        into_ranks = grad @ (B.to(grad.dtype) * ctx.scale)
        to_x = to_a = to_b = None
        if needs_a or needs_b or ctx.recipe is not None:
            x = kept[0] if ctx.recipe is None else ctx.recipe.make(*kept)
            x = _thinned(x.reshape(-1, ctx.columns), ctx.thin)
            if needs_a:
                to_a = (into_ranks.T @ x).to(A.dtype)
            if needs_b:
                to_b = (grad.T @ (x @ A.to(grad.dtype).T)).to(B.dtype) * ctx.scale
        if needs_x:
            to_x = grad @ weight
            if ctx.thin[0]:
                to_x += _thinned(into_ranks @ A.to(grad.dtype), ctx.thin)
            else:
                to_x.addmm_(into_ranks, A.to(grad.dtype))
            to_x = to_x.view(shape)
        return to_x, None, None, to_a, to_b, None, None


def _thinned(x: Tensor, thin: Thin) -> Tensor:
    """Dropout that falls the same whenever it is given the same seed."""
    share, seed = thin
    if not share:
        return x
    dice = torch.Generator(x.device).manual_seed(seed)
    return x * torch.empty_like(x).bernoulli_(1 - share, generator=dice).div_(1 - share)
