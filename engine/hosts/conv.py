"""Convolutions in one, two and three dimensions, with stride, padding (and its mode), dilation and groups."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.hosts.host import Host
from engine.methods.base import Site

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class ConvHost(Host):
    """Convolutions over one, two or three axes; seen as a matrix of output channels by everything one of them looks at."""

    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def site(self, path: str, layer: nn.Module) -> Site:
        return Site(path, "conv", layer.out_channels, layer.weight[0].numel(), tuple(layer.kernel_size), layer.groups, layer.bias is not None)

    def canonical(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def native(self, matrix: Tensor, like: Tensor) -> Tensor:
        return matrix.reshape(like.shape)

    def project(self, layer: nn.Module, x: Tensor, A: Tensor) -> Tensor:
        return self.run(layer, x, A)

    def expand(self, layer: nn.Module, h: Tensor, B: Tensor) -> Tensor:
        return _CONV[len(layer.kernel_size)](h, B.reshape(*B.shape, *(1,) * len(layer.kernel_size)))

    def run(self, layer: nn.Module, x: Tensor, matrix: Tensor) -> Tensor:
        weight = matrix.reshape(matrix.shape[0], *layer.weight.shape[1:])
        return layer._conv_forward(x, weight, None)           # knows padding modes; honours stride, dilation and groups

    def per_output(self, y: Tensor, gains: Tensor) -> Tensor:
        return y * gains.reshape(-1, *(1,) * self._spatial(y))

    def on_outputs(self, y: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        channels = y.dim() - 1 - self._spatial(y)
        return change(y.movedim(channels, -1)).movedim(-1, channels)

    def bias(self, y: Tensor, bias: Tensor) -> Tensor:
        return y + bias.reshape(-1, *(1,) * self._spatial(y))

    @staticmethod
    def _spatial(t: torch.Tensor) -> int:
        return t.dim() - 2
