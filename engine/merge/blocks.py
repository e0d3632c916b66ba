"""A merged weight in pieces: low-rank adapters are added to a stretch of rows at a time, so that no tensor is ever whole in float32."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from engine.hosts.adapted import Adapted
from engine.hosts.stack import LiveStack

ELEMENTS = 1 << 20                         # of one block; 4 MB in float32 stay in the processor's cache


@torch.no_grad()
def merged_blocks(layer: Adapted, stack: LiveStack, W0: Tensor, dtype: torch.dtype, elements: int = ELEMENTS) -> Iterator[Tensor]:
    """``layer.compose(W0)`` as successive stretches of its elements in file order, computed in float32 or better, cast to ``dtype``.

    Where an adapter of the layer has no low-rank form, or the layout allows no stretches, the whole tensor comes at once.
    """
    exact = torch.promote_types(W0.dtype, torch.float32)
    matrix = layer.host.canonical(W0)
    flipped = not matrix.is_contiguous()   # GPT-2's Conv1D and embeddings lie transposed in the file
    rows = matrix.t() if flipped else matrix
    pairs = _pairs(layer, stack, exact)
    if pairs is None or not rows.is_contiguous():
        yield layer.compose(W0.to(exact)).to(dtype)
        return
    step = max(1, elements // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        part = slice(start, start + step)
        block = rows[part].to(exact, copy=True)
        for A, B, factor in pairs:
            if flipped:
                block.addmm_(A[:, part].t(), B.t(), alpha=factor)
            else:
                block.addmm_(B[part], A, alpha=factor)
        yield block.to(dtype)


def _pairs(layer: Adapted, stack: LiveStack, exact: torch.dtype) -> list[tuple[Tensor, Tensor, float]] | None:
    """(A, B, strength · scale) of every adapter that is heard at this layer; None if one has no such form."""
    pairs = []
    for name, strength in stack.entries:
        if name in layer.tenants and strength != 0:
            tenant = layer.tenants[name]
            factors = tenant.method.factors(layer.all_tensors(name), tenant.config, tenant.site)
            if factors is None or tenant.fresh:
                return None
            pairs.append((factors.A.detach().to(exact), factors.B.detach().to(exact), strength * factors.scale))
    return pairs
