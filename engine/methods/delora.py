"""DeLoRA: ``ΔW = B · diag(λ / (r ‖A_i‖ ‖B_i‖)) · A · diag(‖W0 columns‖)``: directions are learned apart from a strength λ that bounds them.

Bini et al. 2025 (arXiv 2503.18225). PEFT class ``DeloraConfig``.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import Factors, Method, Site, TargetedConfig, Tensors, TensorSpec, by_pattern, kaiming_uniform
from engine.specs.fields import knob

SMALLEST = 1e-4                            # a shorter direction counts as this long


@dataclass
class DeloraConfig(TargetedConfig):
    """Settings of DeLoRA, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "DELORA"

    r: int = knob(8, label="Capacity", term="r", low=1, high=1024, help="How much the skill can hold. Larger files, slower.")
    delora_lambda: float = knob(15, label="First strength", term="delora_lambda", low=0, high=1000, advanced=True,
                                help="How far the adapter may move the model at first; learned from there.")
    module_dropout: float = knob(0.0, label="Forgetfulness", term="module_dropout", low=0, high=0.9, advanced=True,
                                 help="Share of inputs dropped while training; a little helps with very few examples.")
    bias: str = "none"
    init_weights: bool = knob(True, label="Standard start", term="init_weights", advanced=True,
                              help="Start without effect; off, the adapter starts with a random one.")
    rank_pattern: dict = knob(factory=dict, label="Capacity by layer", term="rank_pattern", advanced=True,
                              help="Layer name or pattern → capacity, where it differs.")
    lambda_pattern: dict = knob(factory=dict, label="First strength by layer", term="lambda_pattern", advanced=True,
                                help="Layer name or pattern → first strength, where it differs.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rank_pattern, self.lambda_pattern = dict(self.rank_pattern or {}), dict(self.lambda_pattern or {})
        for rank in (self.r, *self.rank_pattern.values()):
            if not isinstance(rank, int) or rank <= 0:
                raise ValueError(f"`r` must be a positive integer; got {rank}.")


class Delora(Method):
    """Decoupled low-rank adaptation. The column norms of W0 are kept in the file, so that the adapter means the same on any base."""

    title = "DeLoRA"
    help = "LoRA that cannot stray far from the model: robust to high learning speeds and long training. Can be mixed and baked in."
    config = DeloraConfig
    prefix = "delora_"
    begins_at_base = True
    dropped = "module_dropout"

    def tensors(self, cfg: DeloraConfig, site: Site) -> dict[str, TensorSpec]:
        rank, strength = by_pattern(site.path, cfg.rank_pattern, cfg.r), by_pattern(site.path, cfg.lambda_pattern, cfg.delora_lambda)
        return {"delora_A": TensorSpec((rank, site.columns), kaiming_uniform),
                "delora_B": TensorSpec((site.out, rank), torch.nn.init.zeros_ if cfg.init_weights else kaiming_uniform),
                "delora_lambda": TensorSpec((1,), lambda tensor: torch.nn.init.constant_(tensor, strength)),
                "delora_w_norm": TensorSpec((site.columns,), torch.nn.init.ones_, trainable=False)}

    def start(self, p: Tensors, cfg: DeloraConfig, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        if "delora_w_norm" in fresh:
            p["delora_w_norm"].copy_(W0.norm(dim=0))

    def factors(self, p: Tensors, cfg: DeloraConfig, site: Site) -> Factors | None:
        return None if site.groups > 1 else Factors(*self.product(p), 1.0)

    def product(self, p: Tensors) -> tuple[Tensor, Tensor]:
        """A and B of ΔW = B·A."""
        A, B = p["delora_A"], p["delora_B"]
        lengths = A.norm(dim=1).clamp_min(SMALLEST) * B.norm(dim=0).clamp_min(SMALLEST)
        return (p["delora_lambda"] / len(A) / lengths)[:, None] * A * p["delora_w_norm"], B

    def delta(self, p: Tensors, cfg: DeloraConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        A, B = self.product(p)
        return B @ A


METHOD = Delora()
