"""KaSA: ``ΔW = s · B · diag(d) · A − (the r smallest singular components of W0)``: what the weight hardly uses makes room for the adapter.

Wang et al. 2024 (arXiv 2412.06071). PEFT: ``LoraConfig(kasa_config=…)``, which cuts the components out of the base for good; here the
base stays as it is and the cut is a part of the adapter, so that it can be switched off, mixed and exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor

from engine.law import Factors, Site, Tensors, TensorSpec, Variant

DIAGONAL, CUT_U, CUT_V = "lora_diag", "lora_cut_U", "lora_cut_V"


class Kasa(Variant):
    """A law round the low-rank law ``inner``."""

    title = "KaSA"
    help = "LoRA that first clears out what the weight hardly uses. Needs the very same base model; files as small as LoRA's."

    def refuses(self, cfg: Any, site: Site) -> str:
        rank, most = self.rank(cfg, site), min(site.out, site.columns)
        if rank >= most:
            return (f"KaSA requires `r` ({rank}) to be smaller than min(in_features, out_features) ({most}), "
                    "so that something of the weight is left.")
        return self.inner.refuses(cfg, site)

    def rank(self, cfg: Any, site: Site) -> int:
        return next(iter(self.inner.tensors(cfg, site).values())).shape[0]

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        rank, zeros = self.rank(cfg, site), torch.nn.init.zeros_
        return {**self.inner.tensors(cfg, site), DIAGONAL: TensorSpec((rank,), torch.nn.init.normal_),
                CUT_U: TensorSpec((site.out, rank), zeros, trainable=False, saved=False),
                CUT_V: TensorSpec((rank, site.columns), zeros, trainable=False, saved=False)}

    def starts_from_base(self, cfg: Any) -> bool:
        return True

    def start(self, p: Tensors, cfg: Any, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        self.inner.start(p, cfg, site, W0, fresh)
        rank = self.rank(cfg, site)
        U, S, V = torch.linalg.svd(W0, full_matrices=False)
        p[CUT_U].copy_(U[:, -rank:] * S[-rank:])
        p[CUT_V].copy_(V[-rank:])

    def parts(self, p: Tensors, cfg: Any, site: Site) -> tuple[Factors, Factors]:
        f = self.inner.factors(p, cfg, site)
        return Factors(f.A, f.B * (f.scale * p[DIAGONAL].to(f.B.dtype)), 1.0), Factors(p[CUT_V], p[CUT_U], -1.0)

    def factors(self, p: Tensors, cfg: Any, site: Site) -> Factors:
        return Factors.of(*self.parts(p, cfg, site))

    def extra_loss(self, cfg: Any, layers: Mapping[str, Tensors]) -> Tensor:
        return sum(regularization(p, cfg.kasa_config.beta, cfg.kasa_config.gamma) for p in layers.values())


def regularization(p: Tensors, beta: float, gamma: float) -> Tensor:
    """What KaSA adds to the loss for one layer (equations 9–11): ``β ‖d‖² + γ (‖BᵀB − I‖ + ‖AAᵀ − I‖)``, a float32 number."""
    A, B, d = (p[name].float().flatten(1) if name != DIAGONAL else p[name].float() for name in ("lora_A.weight", "lora_B.weight", DIAGONAL))
    I = torch.eye(len(d), device=d.device)
    return beta * d.square().sum() + gamma * (torch.linalg.norm(B.T @ B - I) + torch.linalg.norm(A @ A.T - I))


def wanted(cfg: Any) -> bool:
    return cfg.kasa_config is not None


VARIANT = Kasa
