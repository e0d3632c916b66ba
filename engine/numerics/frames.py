"""A frame that several matrices have in common, and places in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def off_diagonal(width: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` random places off the diagonal, as rows and columns ``(2, count)``."""
    if not count:
        return torch.empty(2, 0, dtype=torch.long)
    drawn = torch.randperm(width * (width - 1), generator=generator)[:count]
    rows, columns = drawn // (width - 1), drawn % (width - 1)
    return torch.stack([rows, columns + (columns >= rows)])


def common_frame(weights: Sequence[Tensor], ridge: float) -> Tensor:
    """V ``(in, in)`` of a higher-order generalised SVD of matrices ``(out, in)``, float32."""
    stacked = torch.cat(list(weights))
    if stacked.shape[0] < stacked.shape[1]:
        return torch.linalg.svd(stacked, full_matrices=True).Vh.T
    Q, R = torch.linalg.qr(stacked)
    I = torch.eye(R.shape[1])
    mean = sum(torch.linalg.inv(q.T @ q + ridge * I) for q in Q.split([len(w) for w in weights])) / len(weights)
    return R.T @ torch.linalg.eigh(mean).eigenvectors
