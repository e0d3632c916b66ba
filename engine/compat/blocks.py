"""PEFT's layer for a factor in blocks (BD-LoRA), alone and as what stands on a layer's shelf."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.compat.kinds import Told
from engine.hosts.adapted import Adapted
from engine.hosts.shelves import Slot
from engine.methods.bdlora import BlockDiagonal


class _Blocks:
    """A weight ``(out, in / nblocks)`` that stands for one block after the other along a diagonal."""

    weight: Tensor
    nblocks: int

    def weight_as_blockdiagonal_matrix(self) -> Tensor:
        """The whole matrix ``(out, in)``."""
        return torch.block_diag(*self.weight.chunk(self.nblocks))


class BlockSlot(_Blocks, Slot):
    """The place of such a factor on a shelf."""


class BlockDiagonalLinear(_Blocks, nn.Module, metaclass=Told):
    """A linear layer in blocks.

    Args:
        in_features, out_features: of the whole; both can be divided by ``nblocks``. Raises `ValueError` otherwise.
    """

    holds = staticmethod(lambda thing: isinstance(thing, BlockSlot))

    def __init__(self, in_features: int, out_features: int, nblocks: int, bias: bool = False):
        super().__init__()
        if in_features % nblocks or out_features % nblocks:
            raise ValueError(f"{in_features} inputs and {out_features} outputs cannot be cut into {nblocks} blocks.")
        self.in_features, self.out_features, self.nblocks = in_features, out_features, nblocks
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(out_features, in_features // nblocks)))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_as_blockdiagonal_matrix(), self.bias)


def show(layer: Adapted, name: str) -> None:
    """Let the factors in blocks of an adapter that has come in be seen as such."""
    tenant = layer.tenants[name]
    if isinstance(tenant.method, BlockDiagonal):
        for key in tenant.method.blocked(tenant.config, tenant.site):
            slot = layer._modules[key.partition(".")[0]][name]
            slot.__class__, slot.nblocks = BlockSlot, tenant.config.use_bdlora.nblocks
