"""A quantized linear layer as a host: its weight is made readable only where somebody asks for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.hosts.linear import LinearHost
from engine.hosts.quantized.protocol import Backend, backend_of
from engine.law import Site


class QuantizedLinearHost(LinearHost):
    """A linear layer whose weight a `Backend` reads; and `Widened`, which stands for it while something is merged."""

    layers = ()                            # found by `backend_of`, not by class
    packed = True

    def __init__(self, backend: Backend):
        self.backend = backend

    def site(self, path: str, layer: nn.Module) -> Site:
        return Site(path, "linear", *self.backend.size(layer), has_bias=self.bias_of(layer) is not None, quantized=True)

    def weight(self, layer: nn.Module) -> Tensor:
        return layer.weight if isinstance(layer, Widened) else self.backend.weight(layer)

    def like(self, layer: nn.Module) -> Tensor:
        return torch.empty(0, device=layer.weight.device if isinstance(layer, Widened) else self.backend.device(layer))

    def run(self, layer: nn.Module, x: Tensor, matrix: Tensor) -> Tensor:
        return F.linear(x, matrix.to(x.dtype))


class Widened(nn.Linear):
    """What stands in a quantized layer's place with something merged into it: an ordinary linear layer in the number format that the weight
    had before it was quantized, as indifferent to its input's as the quantized layer was."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        return F.linear(x.to(self.weight.dtype), self.weight, bias).to(x.dtype)


def quantized_host(layer: nn.Module) -> QuantizedLinearHost | None:
    """The host for this layer if it is quantized."""
    backend = backend_of(layer)
    return None if backend is None else QuantizedLinearHost(backend)
