"""Singular values of a matrix, and the best low-rank form that they give: what a change of a weight costs to be made smaller.

From factors in thin products; from a dense matrix by its SVD or, where few directions of very many are wanted, by a randomised search
(Halko, Martinsson and Tropp 2009, arXiv 0909.4061) whose loss is measured and not estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SEARCHED = 256                             # a matrix with fewer rows or columns is decomposed as a whole
FEW = 8                                    # … and so is one of which more than its eighth part of directions is wanted
SPARE, ROUNDS = 10, 4                      # directions beyond those that are wanted, and how often the search goes through the matrix
RIDGE = 1e-13                              # share by which squares of rows grow, which may be copies of one another; its root is nothing to float32


@dataclass(frozen=True)
class Spectrum:
    """``US · Vh`` with US ``(out, k)``, columns as long as S ``(k,)``, which falls, and Vh ``(k, columns)``, rows of length 1 where S is not 0.

    ``beyond``: sum of squares of what it lacks.
    """

    US: Tensor
    S: Tensor
    Vh: Tensor
    beyond: float = 0.0

    @property
    def lost(self) -> Tensor:
        """Sum of squares of what is lost at rank 0, 1 … k: ``(k + 1,)``, float64."""
        squares = torch.cat([self.S.double().square(), self.S.new_zeros(1, dtype=torch.float64)])
        return squares.flip(0).cumsum(0).flip(0) + self.beyond

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """(A ``(rank, columns)``, which is Vh, B ``(out, rank)``), filled up with zeros where there are not so many directions."""
        A, B = self.Vh[:rank], self.US[:, :rank]
        lack = rank - A.shape[0]
        return (torch.cat([A, A.new_zeros(lack, A.shape[1])]), torch.cat([B, B.new_zeros(B.shape[0], lack)], dim=1)) if lack > 0 else (A, B)


def thin(A: Tensor, B: Tensor, rank: int | None = None) -> Spectrum:
    """Of B·A with A ``(R, columns)``, B ``(out, R)``, up to this ``rank``; cost grows with out + columns, not with their product."""
    return thin_each([(A, B)], rank)[0]


def thin_each(pairs: Sequence[tuple[Tensor, Tensor]], rank: int | None = None) -> list[Spectrum]:
    """The same of each (A, B), in less time than one after the other."""
    found: list[Spectrum | None] = [None] * len(pairs)
    alike: dict[Any, list[int]] = {}
    for i, (A, B) in enumerate(pairs):
        if A.dtype is torch.float32 and A.shape[0] < min(A.shape[1], B.shape[0]):
            alike.setdefault((A.shape[0], A.device), []).append(i)
    for places in alike.values():
        for i, spectrum in zip(places, _by_squares([pairs[i] for i in places], rank), strict=True):
            found[i] = spectrum
    return [_alone(A, B, rank) if spectrum is None else spectrum for (A, B), spectrum in zip(pairs, found)]


def _alone(A: Tensor, B: Tensor, rank: int | None) -> Spectrum:
    """By two QRs and the SVD of a small core, or of the product where that is no larger."""
    if A.shape[0] >= min(A.shape[1], B.shape[0]):
        return dense(B @ A)
    Qb, Rb = torch.linalg.qr(B)
    Qa, Ra = torch.linalg.qr(A.T)
    U, S, Vh = torch.linalg.svd(Rb @ Ra.T)
    return Spectrum(Qb @ (U * S)[:, :rank], S[:rank], Vh[:rank] @ Qa.T, 0.0 if rank is None else S[rank:].double().square().sum().item())


def _by_squares(pairs: Sequence[tuple[Tensor, Tensor]], rank: int | None) -> list[Spectrum | None]:
    """Of pairs of one R in float32 by ``A·Aᵀ = L·Lᵀ`` and the eigenvectors of ``(B·L)ᵀ·(B·L)``, in half the time.

    In float64, which has more than twice float32's digits, so that its squares keep all that float32 knows, of rows that are nearly copies
    of one another too. None where there is no L: a row of A is zero, or holds what is no number.
    """
    inner, outer = (torch.stack([_square(each) for each in side]) for side in ([A for A, _ in pairs], [B.T for _, B in pairs]))
    inner.diagonal(dim1=1, dim2=2).mul_(1 + RIDGE)
    L, failed = torch.linalg.cholesky_ex(inner)
    L = torch.where(failed[:, None, None] == 0, L, torch.eye(L.shape[1]).to(L))
    energies, U = (found.flip(-1) for found in torch.linalg.eigh(L.mT @ outer @ L))
    energies, U = energies.clamp(min=0), U[..., :rank]
    onto, into = (L @ U).float(), torch.linalg.solve_triangular(L.mT, U, upper=True).mT.float()
    beyond = torch.zeros(len(pairs)) if rank is None else energies[:, rank:].sum(1)
    return [None if bad else Spectrum(B @ o, s, i @ A, lost) for (A, B), o, s, i, lost, bad in zip(
        pairs, onto, energies[:, :rank].sqrt().float(), into, beyond.tolist(), failed.tolist(), strict=True)]


def _square(rows: Tensor) -> Tensor:
    """``rows · rowsᵀ`` in float64."""
    rows = rows.double()
    return rows @ rows.T


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
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return Spectrum(U * S, S, Vh)


def _search(matrix: Tensor, count: int) -> Spectrum:
    start = torch.randn(matrix.shape[1], count + SPARE, generator=torch.Generator().manual_seed(0))
    Q = torch.linalg.qr(matrix @ start.to(matrix))[0]
    for _ in range(ROUNDS):
        Q = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ Q)[0])[0]
    seen = Q.T @ matrix
    U, S, Vh = torch.linalg.svd(seen, full_matrices=False)
    return Spectrum(Q @ (U * S), S, Vh, (matrix - Q @ seen).double().square().sum().item())
