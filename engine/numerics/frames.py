"""A frame that several matrices have in common, and places in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

AT_A_TIME = 1 << 22                        # numbers that are gathered in one piece


def off_diagonal(width: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` random places off the diagonal, as rows and columns ``(2, count)``."""
    if not count:
        return torch.empty(2, 0, dtype=torch.long)
    drawn = torch.randperm(width * (width - 1), generator=generator)[:count]
    rows, columns = drawn // (width - 1), drawn % (width - 1)
    return torch.stack([rows, columns + (columns >= rows)])


class Spread(torch.autograd.Function):
    """``S·z`` with S ``(width, width)`` that has ``values`` at ``places`` ``(2, count)`` and is zero elsewhere.

    z ``(width, n)`` is float32 or better. Of S only the values get a gradient, a few at a time.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(values, places, z)
        return torch.sparse.mm(_sparse(values, places, len(z)), z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        values, places, z = ctx.saved_tensors
        to_values = to_z = None
        if ctx.needs_input_grad[0]:
            parts = places.split(max(1, AT_A_TIME // z.shape[1]), dim=1)
            to_values = torch.cat([grad.index_select(0, r).mul_(z.index_select(0, c)).sum(1) for r, c in parts])
        if ctx.needs_input_grad[2]:
            to_z = torch.sparse.mm(_sparse(values, places.flip(0), len(z)), grad)
        return to_values, None, to_z


def _sparse(values: Tensor, places: Tensor, width: int) -> Tensor:
    return torch.sparse_coo_tensor(places, values, (width, width), check_invariants=False)


def common_frame(weights: Sequence[Tensor], ridge: float) -> Tensor:
    """V ``(in, in)`` of a higher-order generalised SVD of matrices ``(out, in)``, float32."""
    stacked = torch.cat(list(weights))
    if stacked.shape[0] < stacked.shape[1]:
        return torch.linalg.svd(stacked, full_matrices=True).Vh.T
    Q, R = torch.linalg.qr(stacked)
    I = torch.eye(R.shape[1])
    mean = sum(torch.linalg.inv(q.T @ q + ridge * I) for q in Q.split([len(w) for w in weights])) / len(weights)
    return R.T @ torch.linalg.eigh(mean).eigenvectors
