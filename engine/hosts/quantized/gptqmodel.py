"""GPTQ (Frantar et al. 2023, arXiv 2210.17323) and AWQ (Lin et al. 2023, arXiv 2306.00978), both by the package ``gptqmodel``.

Their codes are made from data, so nothing can be written into them. Their kernels come in many classes, of which only some can say what their
weight is; all can be run.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.hosts.quantized.protocol import Backend


class Gptq(Backend):
    """Any ``BaseQuantLinear``."""

    name = "gptq"
    layers = frozenset({("gptqmodel", "BaseQuantLinear")})

    def weight(self, layer: nn.Module) -> Tensor:
        read = getattr(layer, "dequantize_weight", None)
        return super().weight(layer) if read is None else read().detach().T.float()

    def dtype(self, layer: nn.Module) -> torch.dtype:
        scales = getattr(layer, "scales", None)
        return scales.dtype if isinstance(scales, Tensor) and scales.dtype in (torch.float16, torch.bfloat16) else torch.float16


class Awq(Gptq):
    """Those of them that say so."""

    name = "awq"

    def knows(self, kind: type) -> bool:
        return super().knows(kind) and any(getattr(m, "value", m) == "awq" for m in getattr(kind, "SUPPORTS_METHODS", None) or ())


BACKENDS = (Awq(), Gptq())
