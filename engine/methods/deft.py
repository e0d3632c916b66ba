"""DEFT: ``W ← W − Q · f(P)ᵀ · W + s · Q · R``: a subspace of the outputs is emptied and filled anew.

Two projections: Q = P with f = relu (oblique), or Q = f(P) = the orthonormal basis of P (QR). With ``para`` nothing is filled in
(PaRa, Chen et al. 2025, ICLR). PEFT class ``DeftConfig``.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import Factors, Method, Site, TargetedConfig, Tensors, TensorSpec
from engine.specs.fields import knob


@dataclass
class DeftConfig(TargetedConfig):
    """Settings of DEFT, by PEFT's names and defaults.

    Raises:
        ValueError: an unknown ``decomposition_method``, or a rank below one.
    """

    peft_type: ClassVar[str] = "DEFT"
    positive = ("r",)

    r: int = knob(8, label="Capacity", term="r", low=1, high=1024, help="How many directions are taken out and learned anew.")
    decomposition_method: str = knob("relu", label="Projection", term="decomposition_method", choices=("relu", "qr"), advanced=True,
                                     help="“relu” is quick; “qr” takes exactly the chosen directions out, no more.")
    init_scale: float = knob(1.0, label="Size of a random start", term="init_scale", low=0, high=100, advanced=True,
                             help="Only used when the adapter does not start without effect.")
    alpha: int | None = knob(None, label="Loudness", term="alpha", low=0, high=4096, advanced=True,
                             help="Scales what is filled in, by loudness / capacity; empty means as it is.")
    para: bool = knob(False, label="Only take out", term="para", advanced=True,
                      help="PaRa: directions are removed and nothing is put in their place; changes the model from the start.")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    deft_dropout: float = knob(0.0, label="Forgetfulness", term="deft_dropout", low=0, high=0.9, advanced=True,
                               help="Share of inputs dropped while training; a little helps with very few examples.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True, help="Otherwise it starts at random.")
    bias: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decomposition_method not in ("qr", "relu"):
            raise ValueError(f"Unknown decomposition_method '{self.decomposition_method}', must be one of ['qr', 'relu'].")


class Deft(Method):
    """Decompositional fine-tuning: with the projection's right side known, ``ΔW = Q · (s·R − f(P)ᵀ·W0)`` is of low rank."""

    title = "DEFT"
    help = "Replaces a few directions of what a layer says. Good for new facts and for unlearning; small files."
    config = DeftConfig
    prefix = "deft_"
    dropped = "deft_dropout"
    needs_base = True

    def starts_from_base(self, cfg: DeftConfig) -> bool:
        return cfg.init_weights and not cfg.para

    def rank(self, cfg: DeftConfig, site: Site) -> int:
        return min(cfg.r, site.out)

    def scale(self, cfg: DeftConfig, site: Site) -> float:
        return cfg.alpha / self.rank(cfg, site) if cfg.alpha else 1.0

    def tensors(self, cfg: DeftConfig, site: Site) -> dict[str, TensorSpec]:
        rank = self.rank(cfg, site)
        table = {"deft_P": TensorSpec((site.out, rank), lambda P: torch.nn.init.normal_(P, std=0.02))}
        if not cfg.para:
            def start(R: Tensor) -> None:
                R.zero_() if cfg.init_weights else torch.nn.init.normal_(R, std=0.02 * cfg.init_scale)
            table["deft_R"] = TensorSpec((rank, site.columns), start)
        return table

    def start(self, p: Tensors, cfg: DeftConfig, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        """R puts back exactly what is taken out."""
        if "deft_R" in fresh:
            right = projection(p["deft_P"].to(W0), cfg.decomposition_method)[1]
            p["deft_R"].copy_(right.T @ W0 / self.scale(cfg, site))

    def low_rank(self, p: Tensors, cfg: DeftConfig, site: Site, W0: Tensor) -> Factors:
        Q, right = projection(p["deft_P"], cfg.decomposition_method)
        taken = right.T @ W0.to(right.dtype)
        return Factors(-taken if cfg.para else self.scale(cfg, site) * p["deft_R"].to(taken.dtype) - taken, Q, 1.0)

    def gain(self, p: Tensors, cfg: DeftConfig, site: Site, W0: Tensor) -> tuple[Tensor, Factors] | None:
        if site.groups > 1:
            return None
        factors = self.low_rank(p, cfg, site, W0)
        return factors.B.new_ones(site.out), factors

    def delta(self, p: Tensors, cfg: DeftConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        factors = self.low_rank(p, cfg, site, W0)
        return factors.B @ factors.A


def projection(P: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """(Q, right), each ``(out, r)`` in float32 or better, such that what is taken out of W is ``Q · rightᵀ · W``."""
    P = P.to(torch.promote_types(P.dtype, torch.float32))
    if kind == "relu":
        return P, torch.relu(P)
    Q = torch.linalg.qr(P).Q
    return Q, Q


METHOD = Deft()
