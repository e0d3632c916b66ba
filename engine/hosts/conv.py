"""Convolutions in one, two and three dimensions, with stride, padding (and its mode), dilation and groups.

A grouped convolution's matrix has the columns of one group; a method that works on it stays within the groups. LoRA's file format does not:
its A sees all channels. Such a ΔW is as wide as an ungrouped kernel, and a layer that it is merged into has no groups any more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.hosts.host import Host
from engine.law import Site

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class ConvHost(Host):
    """Convolutions over one, two or three axes, of batches; seen as a matrix of output channels by everything one of them looks at."""

    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def site(self, path: str, layer: nn.Module) -> Site:
        return Site(path, "conv", layer.out_channels, layer.weight[0].numel(), tuple(layer.kernel_size), layer.groups, layer.bias is not None)

    def canonical(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def native(self, matrix: Tensor, like: Tensor) -> Tensor:
        return matrix.reshape(like.shape[0], -1, *like.shape[2:])

    def put(self, layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
        super().put(layer, weight, bias)
        layer.groups = layer.in_channels // weight.shape[1]

    def alike(self, W: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        width = max(W.shape[1], change.shape[1])
        return _widened(W, width), _widened(change, width)

    def project(self, layer: nn.Module, x: Tensor, A: Tensor) -> Tensor:
        groups = layer.in_channels // (A.shape[1] // layer.weight[0, 0].numel())
        return self.run(layer, x, A.repeat(groups, 1))        # within groups, each of them has rank channels of its own

    def expand(self, layer: nn.Module, h: Tensor, B: Tensor) -> Tensor:
        return _CONV[len(layer.kernel_size)](h, B.reshape(*B.shape, *(1,) * len(layer.kernel_size)), groups=h.shape[1] // B.shape[1])

    def run(self, layer: nn.Module, x: Tensor, matrix: Tensor) -> Tensor:
        weight = matrix.reshape(matrix.shape[0], -1, *layer.weight.shape[2:])
        if (groups := layer.in_channels // weight.shape[1]) != layer.groups:    # the matrix, or what is merged, is as wide as all groups
            layer = copy.copy(layer)
            layer.groups = groups
        return layer._conv_forward(x, weight, None)           # knows padding modes; honours stride, dilation and groups

    def per_output(self, y: Tensor, gains: Tensor) -> Tensor:
        many = y.shape[1] // len(gains)
        return y * gains.repeat(many).reshape(-1, *(1,) * self._spatial(y))

    def on_outputs(self, y: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        return change(y.movedim(1, -1)).movedim(-1, 1)

    def bias(self, y: Tensor, bias: Tensor) -> Tensor:
        return y + bias.reshape(-1, *(1,) * self._spatial(y))

    @staticmethod
    def _spatial(t: torch.Tensor) -> int:
        return t.dim() - 2


def _widened(matrix: Tensor, width: int) -> Tensor:
    """A grouped kernel's matrix as that of the same convolution without groups: blocks along the diagonal."""
    many = width // matrix.shape[1]
    return matrix if many == 1 else torch.block_diag(*matrix.chunk(many))
