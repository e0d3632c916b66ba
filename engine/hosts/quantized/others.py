"""Formats whose packages can run a layer and do nothing else with it: EETQ, AQLM (Egiazarian et al. 2024, arXiv 2401.06118)."""

from __future__ import annotations

import torch
from torch import nn

from engine.hosts.quantized.protocol import Backend


class Eetq(Backend):
    """``EetqLinear``, 8 bits, of the package ``eetq`` or of ``kernels`` through transformers."""

    name = "eetq"
    layers = frozenset({("eetq", "EetqLinear"), ("transformers", "EetqLinear")})

    def size(self, layer: nn.Module) -> tuple[int, int]:
        columns, out = layer.weight.shape
        return out, columns

    def dtype(self, layer: nn.Module) -> torch.dtype:
        return layer.weight_scales.dtype


class Aqlm(Backend):
    """``QuantizedLinear``: sums of entries of learned codebooks."""

    name = "aqlm"
    layers = frozenset({("aqlm", "QuantizedLinear")})

    def dtype(self, layer: nn.Module) -> torch.dtype:
        return layer.scales.dtype


BACKENDS = (Eetq(), Aqlm())
