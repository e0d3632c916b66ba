"""Numbers of four and eight bits, and what a low-rank product makes good of what they lose (LoftQ, Li et al. 2023, arXiv 2310.08659)."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64                                 # values that share a scale in nf4
# the sixteen values of nf4: quantiles of a normal distribution (Dettmers et al. 2023, arXiv 2305.14314, appendix E)
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495,
       0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
       0.7229568362236023, 1.0)


def decompose(W: Tensor, rank: int, bits: int, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """(Q, left ``(out, rank)``, right ``(rank, columns)``) with Q = quantized(W − left·right) of the round before, and left·right nearest W − Q."""
    rest = W
    for _ in range(rounds):
        Q = quantized(rest, bits)
        left, right = nearest(W - Q, rank)
        rest = W - left @ right
    return Q, left, right


def nearest(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """left ``(out, rank)`` and right ``(rank, columns)`` whose product is the best approximation of W, the sizes shared evenly."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    root = S[:rank].sqrt()
    return U[:, :rank] * root, root[:, None] * Vh[:rank]


def quantized(W: Tensor, bits: int) -> Tensor:
    """W as it comes back from nf4 (blocks of 64 in row order, each with its largest value as scale) or int8 (a scale for each row)."""
    if bits == 8:
        scale = W.abs().amax(1, keepdim=True) / 127
        return (W / scale.clamp_min(torch.finfo(W.dtype).tiny)).round() * scale
    flat = torch.nn.functional.pad(W.flatten(), (0, -W.numel() % BLOCK)).view(-1, BLOCK)
    levels = torch.tensor(NF4, dtype=W.dtype, device=W.device)
    scale = flat.abs().amax(1, keepdim=True)
    code = torch.bucketize(flat / scale.clamp_min(torch.finfo(W.dtype).tiny), (levels[1:] + levels[:-1]) / 2)
    return (levels[code] * scale).flatten()[: W.numel()].view_as(W)
