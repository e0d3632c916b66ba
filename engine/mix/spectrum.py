"""Singular values of a matrix, and the best low-rank form that they give: what a change of a weight costs to be made smaller.

From factors in thin products (two QRs and the SVD of a small core); from a dense matrix by its SVD or, where few directions of very many are
wanted, by a randomised search (Halko, Martinsson and Tropp 2009, arXiv 0909.4061) whose loss is measured and not estimated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SEARCHED = 256                             # a matrix with fewer rows or columns is decomposed as a whole
FEW = 8                                    # … and so is one of which more than its eighth part of directions is wanted
SPARE, ROUNDS = 10, 4                      # directions beyond those that are wanted, and how often the search goes through the matrix


@dataclass(frozen=True)
class Spectrum:
    """``U · diag(S) · Vh`` with U ``(out, k)``, S ``(k,)`` falling, Vh ``(k, columns)``; ``beyond``: sum of squares of what it lacks."""

    U: Tensor
    S: Tensor
    Vh: Tensor
    beyond: float = 0.0

    @property
    def lost(self) -> Tensor:
        """Sum of squares of what is lost at rank 0, 1 … k: ``(k + 1,)``, float64."""
        squares = torch.cat([self.S.double().square(), self.S.new_zeros(1, dtype=torch.float64)])
        return squares.flip(0).cumsum(0).flip(0) + self.beyond

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """(A ``(rank, columns)`` with rows of length 1, B ``(out, rank)``), filled up with zeros where there are not so many directions."""
        A, B = self.Vh[:rank], self.U[:, :rank] * self.S[:rank]
        lack = rank - A.shape[0]
        return (torch.cat([A, A.new_zeros(lack, A.shape[1])]), torch.cat([B, B.new_zeros(B.shape[0], lack)], dim=1)) if lack > 0 else (A, B)


def thin(A: Tensor, B: Tensor, rank: int | None = None) -> Spectrum:
    """Of B·A with A ``(R, columns)``, B ``(out, R)``, up to this ``rank``; cost grows with out + columns, not with their product."""
    if A.shape[0] >= min(A.shape[1], B.shape[0]):
        return dense(B @ A)
    Qb, Rb = torch.linalg.qr(B)
    Qa, Ra = torch.linalg.qr(A.T)
    U, S, Vh = torch.linalg.svd(Rb @ Ra.T)
    beyond = 0.0 if rank is None else S[rank:].double().square().sum().item()
    return Spectrum(Qb @ U[:, :rank], S[:rank], Vh[:rank] @ Qa.T, beyond)


def dense(matrix: Tensor, rank: int | None = None, error: float | None = None) -> Spectrum:
    """Of a dense ``(out, columns)``: whole or, as far as it is needed, at least of this ``rank`` or down to this ``error`` (see `to_lora`)."""
    most = min(matrix.shape) // FEW if min(matrix.shape) >= SEARCHED else 0
    if rank is not None and rank <= most:
        return _search(matrix, rank)
    count = 16
    while error and count <= most:
        if (found := _search(matrix, count)).lost[-1] <= error**2 * found.lost[0]:
            return found
        count *= 2
    return Spectrum(*torch.linalg.svd(matrix, full_matrices=False))


def _search(matrix: Tensor, count: int) -> Spectrum:
    start = torch.randn(matrix.shape[1], count + SPARE, generator=torch.Generator().manual_seed(0))
    Q = torch.linalg.qr(matrix @ start.to(matrix))[0]
    for _ in range(ROUNDS):
        Q = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ Q)[0])[0]
    seen = Q.T @ matrix
    U, S, Vh = torch.linalg.svd(seen, full_matrices=False)
    return Spectrum(Q @ U, S, Vh, (matrix - Q @ seen).double().square().sum().item())
