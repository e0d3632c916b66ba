"""Frozen low-rank neighbours as one stacked A and one stacked B: the path that a chat runs, in as few operations as there can be.

Strengths are read from the stack at each call. The result may be written into the base's own output, which is nobody else's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.hosts.stack import Layout, LiveStack
from engine.methods.base import Factors

if TYPE_CHECKING:
    from engine.hosts.adapted import Adapted
    from engine.hosts.program import Path

FEW_ROWS, FEW_RANKS = 8, 32                # up to which a processor's float32 products beat its 16-bit ones


def fused(layer: "Adapted", stack: LiveStack, names: list[str], own_output: bool) -> "Path":
    """One path for all of them. ``own_output``: the output that comes in may be overwritten."""
    tenants = [layer.tenants[n] for n in names]
    parts = [t.method.factors(layer.all_tensors(n), t.config, t.site) for n, t in zip(names, tenants)]
    biases = [(n, f.bias.detach() * f.scale) for n, f in zip(names, parts) if f.bias is not None]
    pair = _Pair(parts)
    layout: Layout = tuple((n, f.A.shape[0], f.scale) for n, f in zip(names, parts))
    if layer.site.kind == "linear" and not biases:
        return _flat(layer, stack, layout, pair, own_output)
    host, base = layer.host, layer.base_layer

    def path(x: Tensor, y: Tensor, origin: Tensor | None) -> Tensor:
        A, B = pair.of(y.dtype)
        h = host.project(base, x if layer.site.kind == "embedding" else x.to(y.dtype), A)
        y = y + host.expand(base, host.per_output(h, stack.scales(layout, y.dtype, y.device)), B)
        for name, bias in biases:
            y = host.bias(y, (bias * stack.strength(name)).to(y.dtype))
        return y

    return path


class _Pair:
    """Stacked A ``(ranks, columns)`` and B ``(out, ranks)``, in the dtypes that were asked for; a single adapter's own are not copied."""

    def __init__(self, parts: list[Factors]):
        self._parts, self._known = parts, {}
        dtypes = {t.dtype for f in parts for t in (f.A, f.B)}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else None

    def of(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if dtype not in self._known:
            As, Bs = ([t.detach().to(dtype) for t in ts] for ts in ([f.A for f in self._parts], [f.B for f in self._parts]))
            self._known[dtype] = (As[0], Bs[0]) if len(As) == 1 else (torch.cat(As), torch.cat(Bs, dim=1))
        return self._known[dtype]


def _flat(layer: "Adapted", stack: LiveStack, layout: Layout, pair: _Pair, own_output: bool) -> "Path":
    """On a linear layer: two thin products for any number of rows, or two products of a matrix and a vector for a single one."""
    base = layer.base_layer
    ranks = sum(rank for _, rank, _ in layout)
    (name, _, scale), single = layout[0], len(layout) == 1
    # 16-bit products of a few rows cost a processor three times those of float32, if such tensors are there anyway
    wide = pair.dtype == torch.float32 and layer.like.device.type == "cpu"

    def path(x: Tensor, y: Tensor, origin: Tensor | None) -> Tensor:
        columns, dtype = x.shape[-1], y.dtype
        rows = x.numel() // columns
        exact = torch.float32 if wide and dtype.itemsize == 2 and rows <= FEW_ROWS and ranks <= FEW_RANKS else dtype
        A, B = pair.of(exact)
        x, alpha = x.to(exact), stack.strength(name) * scale if single else 1.0
        if not own_output or base._forward_hooks:             # somebody may be looking at the base's output
            y = y.clone()
        if rows == 1:
            h = torch.mv(A, x.reshape(columns))
            h = h if single else h * stack.scales(layout, exact, y.device)
            flat = y.view(-1)
            flat.addmv_(B, h, alpha=alpha) if exact == dtype else flat.add_(torch.mv(B, h), alpha=alpha)
        else:
            h = x.reshape(rows, columns) @ A.t()
            h = h if single else h * stack.scales(layout, exact, y.device)
            flat = y.view(rows, y.shape[-1])
            flat.addmm_(h, B.t(), alpha=alpha) if exact == dtype else flat.add_(h @ B.t(), alpha=alpha)
        return y

    return path
