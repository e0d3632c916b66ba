"""Linear layers: `torch.nn.Linear`, and GPT-2's transposed ``Conv1D``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engine.hosts.host import Host
from engine.law import Site


class LinearHost(Host):
    """``nn.Linear``, which stores ``(out, in)``: the layout that all methods think in."""

    layers = (nn.Linear,)

    def site(self, path: str, layer: nn.Module) -> Site:
        out, columns = self.canonical(layer.weight).shape
        return Site(path, "linear", out, columns, has_bias=layer.bias is not None)

    def canonical(self, weight: Tensor) -> Tensor:
        return weight

    def native(self, matrix: Tensor, like: Tensor) -> Tensor:
        return matrix

    def project(self, layer: nn.Module, x: Tensor, A: Tensor) -> Tensor:
        return F.linear(x, A)

    def expand(self, layer: nn.Module, h: Tensor, B: Tensor) -> Tensor:
        return F.linear(h, B)

    def run(self, layer: nn.Module, x: Tensor, matrix: Tensor) -> Tensor:
        return F.linear(x, matrix)


class TransposedLinearHost(LinearHost):
    """``Conv1D`` stores ``(in, out)``; nothing else differs."""

    layers = (Conv1D,)

    def canonical(self, weight: Tensor) -> Tensor:
        return weight.T

    def native(self, matrix: Tensor, like: Tensor) -> Tensor:
        return matrix.T.contiguous()
