"""A router in a layer: low-rank experts side by side, each heard as strongly as a gate says for each input vector.

All experts run as one stacked A and one stacked B; the gate multiplies the ranks between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.hosts.basis import versions
from engine.hosts.stack import LiveStack
from engine.law import Factors, Gate, Run

if TYPE_CHECKING:
    from engine.hosts.adapted import Adapted
    from engine.hosts.program import Path


def gated(layer: "Adapted", stack: LiveStack, name: str) -> "Path":
    """The path of the router ``name``: ``y + strength · Σₑ gateₑ(x) · scaleₑ · Bₑ Aₑ x``, an expert's bias with its gate."""
    tenant, host, base = layer.tenants[name], layer.host, layer.base_layer
    p, cfg = layer.all_tensors(name), tenant.config
    beside = {n: t for n, t in layer.tenants.items() if n != name}
    watched = [t for n in (name, *beside) for t in layer.all_tensors(n).values()]
    known: list = [None, None, None]       # (versions of the tensors, experts, gate)

    def routes() -> tuple[dict[str, Factors], Gate]:
        factors = {n: t.method.factors(layer.all_tensors(n), t.config, t.site) for n, t in beside.items()}
        return tenant.method.route(p, cfg, tenant.site, {n: f for n, f in factors.items() if f is not None})

    def path(x: Tensor, y: Tensor, origin: Tensor | None) -> Tensor:
        stamp = versions(watched)
        if known[0] != stamp or any(t.requires_grad for t in watched):
            known[:] = [stamp, *routes()]
        experts, gate = known[1], known[2]
        if not experts:
            return y
        dtype, ids = y.dtype, layer.site.kind == "embedding"
        strengths = gate(x, Run(layer.training, stack.arguments(layer.training or torch.is_grad_enabled())))
        if strengths is None:
            return y
        strengths = strengths.to(dtype)
        shares = [layer.tenants[n].method.dropout(layer.tenants[n].config) if layer.training and not ids else 0.0 for n in experts]
        A, B = [f.A.to(dtype) for f in experts.values()], [(f.scale * f.B).to(dtype) for f in experts.values()]
        seen = x if ids else x.to(dtype)
        h = (torch.cat([host.project(base, F.dropout(seen, share), a) for a, share in zip(A, shares)], -1) if any(shares)
             else host.project(base, seen, torch.cat(A)))
        ranks = torch.tensor([len(a) for a in A], device=y.device)
        added = host.expand(base, h * strengths.repeat_interleave(ranks, -1, output_size=h.shape[-1]), torch.cat(B, 1))
        if any(f.bias is not None for f in experts.values()):
            biases = torch.stack([(B[0].new_zeros(len(B[0])) if f.bias is None else (f.scale * f.bias).to(dtype)) for f in experts.values()])
            added = added + strengths @ biases
        return y + stack.strength(name) * F.dropout(added, tenant.method.dropout(cfg), layer.training)

    return path
