"""DoRA: ``W' = m ∘ (W0 + ΔV) / ‖W0 + ΔV‖`` row by row, where ΔV is another method's delta (LoRA's) and the norm is a constant.

Liu et al. 2024 (arXiv 2402.09353, section 4.3 for the detached norm). PEFT: ``LoraConfig(use_dora=True)``.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor

from engine.law import Factors, Method, Site, Tensors, TensorSpec

MAGNITUDE = "lora_magnitude_vector.weight"


class Dora(Method):
    """A law round the low-rank law ``inner``."""

    title = "DoRA"
    help = "LoRA that learns size and direction apart. A little better at the same file size, a little slower to teach."
    needs_base = True

    def __init__(self, inner: Method):
        self.inner, self.config, self.prefix = inner, inner.config, inner.prefix

    def refuses(self, cfg: Any, site: Site) -> str:
        return self.inner.refuses(cfg, site)

    def dropout(self, cfg: Any) -> float:
        return self.inner.dropout(cfg)

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        shape = (1, site.out, *(1,) * len(site.kernel)) if site.kind == "conv" else (site.out,)
        return {**self.inner.tensors(cfg, site), MAGNITUDE: TensorSpec(shape, torch.nn.init.ones_, file="lora_magnitude_vector")}

    def starts_from_base(self, cfg: Any) -> bool:
        return True

    def start(self, p: Tensors, cfg: Any, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        self.inner.start(p, cfg, site, W0, fresh)
        if MAGNITUDE in fresh:
            p[MAGNITUDE].copy_(row_norms(W0, self.inner.factors(p, cfg, site)).view_as(p[MAGNITUDE]))

    def gain(self, p: Tensors, cfg: Any, site: Site, W0: Tensor) -> tuple[Tensor, Factors]:
        factors = self.inner.factors(p, cfg, site)
        return p[MAGNITUDE].flatten() / row_norms(W0, factors).detach(), factors

    def delta(self, p: Tensors, cfg: Any, site: Site, W0: Tensor | None = None) -> Tensor:
        g, f = self.gain(p, cfg, site, W0)
        return (g - 1)[:, None] * _widened(W0, f.A.shape[1]) + g[:, None] * (f.scale * (f.B @ f.A))


def row_norms(W0: Tensor, f: Factors) -> Tensor:
    """‖W0 + scale·B·A‖ of each row ``(out,)``, without ever forming the sum: the cross terms are thin products."""
    A, B, W0 = f.A.detach(), f.B.detach() * f.scale, _widened(W0.to(f.A.dtype), f.A.shape[1])
    crossed = ((W0 @ A.T) * B).sum(1)
    own = ((B @ (A @ A.T)) * B).sum(1)
    return (W0.square().sum(1) + 2 * crossed + own).clamp_min(0).sqrt()


def _widened(W0: Tensor, columns: int) -> Tensor:
    """The matrix of a convolution with groups as wide as what LoRA adds to it, which mixes all channels."""
    return W0 if W0.shape[1] == columns else torch.block_diag(*W0.chunk(columns // W0.shape[1]))


def wanted(cfg: Any) -> bool:
    return cfg.use_dora


VARIANT = Dora
