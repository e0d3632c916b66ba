"""HQQ: half-quadratic quantization (Badri & Shaji 2023), package ``hqq``. Its layers are no ``nn.Linear``, and their bias is no parameter."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from engine.hosts.quantized.protocol import Backend


class Hqq(Backend):
    """``HQQLinear``. It writes by quantizing anew with the layer's own settings."""

    name = "hqq"
    layers = frozenset({("hqq", "HQQLinear")})

    def weight(self, layer: nn.Module) -> Tensor:
        return layer.dequantize().detach().float()

    def write(self, layer: nn.Module, W: Tensor) -> nn.Module:
        settings = copy.deepcopy(layer.quant_config)
        new = type(layer)(None, {**settings, "offload_meta": layer.offload_meta}, compute_dtype=layer.compute_dtype, device=layer.device)
        new.quantize(W.to(layer.compute_dtype), **settings)
        new.bias = layer.bias
        return new

    def size(self, layer: nn.Module) -> tuple[int, int]:
        return tuple(layer.meta["shape"])

    def dtype(self, layer: nn.Module) -> torch.dtype:
        return layer.compute_dtype

    def device(self, layer: nn.Module) -> torch.device:
        return layer.W_q.device


BACKENDS = (Hqq(),)
