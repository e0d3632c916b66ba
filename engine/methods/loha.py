"""LoHa: ``ΔW = s · (B1·A1) ∘ (B2·A2)``, the entrywise product of two low-rank matrices: rank up to r² from 2r rows and columns.

Hyeon-Woo et al. 2022 (FedPara, arXiv 2108.06098), LyCORIS (arXiv 2309.14859). PEFT class ``LoHaConfig``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import Factors, Method, Site, TargetedConfig, Tensors, TensorSpec, by_pattern, kaiming_uniform
from engine.specs.fields import knob


@dataclass
class LoHaConfig(TargetedConfig):
    """Settings of LoHa, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "LOHA"
    positive = ("r", "rank_pattern")

    r: int = knob(8, label="Capacity", term="r", low=1, high=1024, help="How much the skill can hold; LoHa makes r times more of it than LoRA.")
    alpha: float = knob(8, label="Loudness", term="alpha", low=0, high=4096, advanced=True,
                        help="Scales the whole adapter; usually once or twice the capacity.")
    rank_dropout: float = knob(0.0, label="Forgetful outputs", term="rank_dropout", low=0, high=0.9, advanced=True,
                               help="Share of the adapter's outputs dropped while training.")
    module_dropout: float = knob(0.0, label="Forgetful layers", term="module_dropout", low=0, high=0.9, advanced=True,
                                 help="How often a layer's adapter is left out for a step while training.")
    use_effective_conv2d: bool = knob(False, label="Small convolutions", term="use_effective_conv2d", advanced=True,
                                      help="Stores convolutions with larger kernels in fewer numbers.")
    rank_pattern: dict = knob(factory=dict, label="Capacity by layer", term="rank_pattern", advanced=True,
                              help="Layer name or pattern → capacity, where it differs.")
    alpha_pattern: dict = knob(factory=dict, label="Loudness by layer", term="alpha_pattern", advanced=True,
                               help="Layer name or pattern → loudness, where it differs.")
    init_weights: bool = knob(True, label="Standard start", term="init_weights", advanced=True,
                              help="Start without effect; off, the adapter starts with a random one.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rank_pattern, self.alpha_pattern = dict(self.rank_pattern or {}), dict(self.alpha_pattern or {})


class LoHa(Method):
    """Low-rank Hadamard product. A low-rank matrix of rank r² at most, so that it fuses and exports like LoRA."""

    title = "LoHa"
    help = "More room than LoRA in a file of the same size. Good for styles in picture models; slower to teach."
    config = LoHaConfig
    prefix = "hada_"

    def scale(self, cfg: LoHaConfig, site: Site) -> float:
        return by_pattern(site.path, cfg.alpha_pattern, cfg.alpha) / by_pattern(site.path, cfg.rank_pattern, cfg.r)

    def tensors(self, cfg: LoHaConfig, site: Site) -> dict[str, TensorSpec]:
        rank, last = by_pattern(site.path, cfg.rank_pattern, cfg.r), torch.nn.init.zeros_ if cfg.init_weights else kaiming_uniform
        if not (cfg.use_effective_conv2d and math.prod(site.kernel) > 1):
            left, right = (site.out, rank), (rank, site.columns)
            core = None
        else:                              # every axis of the kernel's tensor has its own factor (FedPara, proposition 3)
            left, right = (rank, site.out), (rank, site.columns // math.prod(site.kernel))
            core = TensorSpec((rank, rank, *site.kernel, *(1,) * (2 - len(site.kernel))), kaiming_uniform)
        table = {"hada_w1_a": TensorSpec(left, kaiming_uniform), "hada_w1_b": TensorSpec(right, kaiming_uniform),
                 "hada_w2_a": TensorSpec(left, kaiming_uniform), "hada_w2_b": TensorSpec(right, last)}
        return {**table, "hada_t1": core, "hada_t2": core} if core else table

    def half(self, p: Tensors, number: int) -> tuple[Tensor, Tensor]:
        """One of the two low-rank matrices, as B ``(out, r)`` and A ``(r, columns)``."""
        a, b, core = p[f"hada_w{number}_a"], p[f"hada_w{number}_b"], p.get(f"hada_t{number}")
        return (a, b) if core is None else (a.T, torch.einsum("ijk,jc->ick", core.flatten(2), b).flatten(1))

    def factors(self, p: Tensors, cfg: LoHaConfig, site: Site) -> Factors | None:
        (B1, A1), (B2, A2) = self.half(p, 1), self.half(p, 2)
        rank = B1.shape[1] * B2.shape[1]
        if site.groups > 1 or rank * (site.out + site.columns) >= site.out * site.columns:
            return None                    # the dense delta is no larger
        A = (A1[:, None] * A2[None]).flatten(0, 1)            # (u ∘ v)·(x ∘ y) row by row: all pairs of the ranks
        B = (B1[:, :, None] * B2[:, None]).flatten(1)
        return Factors(A, B, self.scale(cfg, site))

    def delta(self, p: Tensors, cfg: LoHaConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        (B1, A1), (B2, A2) = self.half(p, 1), self.half(p, 2)
        return self.scale(cfg, site) * (B1 @ A1) * (B2 @ A2)

    def kept_outputs(self, cfg: LoHaConfig, site: Site) -> Tensor | None:
        if not cfg.rank_dropout and not cfg.module_dropout:
            return None
        rows = (torch.rand(site.out) >= cfg.rank_dropout).float()
        return rows / rows.mean().clamp_min(1 / site.out) * (torch.rand(1) >= cfg.module_dropout)


METHOD = LoHa()
