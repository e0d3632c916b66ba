"""HiRA: ``ΔW = W0 ∘ (B · A)``: low rank inside, high rank outside, because it is multiplied into the weight entry by entry.

Huang et al. 2025 (ICLR, openreview TwJrTz9cRS). PEFT class ``HiraConfig``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import Method, Site, TargetedConfig, Tensors, TensorSpec, by_pattern, kaiming_uniform
from engine.specs.fields import knob


@dataclass
class HiraConfig(TargetedConfig):
    """Settings of HiRA, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "HIRA"
    positive = ("r", "rank_pattern")

    r: int = knob(32, label="Capacity", term="r", low=1, high=1024, help="How much the skill can hold. Larger files, slower.")
    hira_dropout: float = knob(0.0, label="Forgetfulness", term="hira_dropout", low=0, high=0.9, advanced=True,
                               help="Share of inputs dropped while training; a little helps with very few examples.")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    init_weights: bool | str | None = knob(True, label="Start", term="init_weights", advanced=True,
                                           help="How the adapter starts: standard (true) or “gaussian”; both start without effect.")
    rank_pattern: dict = knob(factory=dict, label="Capacity by layer", term="rank_pattern", advanced=True,
                              help="Layer name or pattern → capacity, where it differs.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rank_pattern = dict(self.rank_pattern or {})
        if self.init_weights not in (True, False, None) and str(self.init_weights).lower() != "gaussian":
            raise ValueError(f"Unknown initialization init_weights={self.init_weights!r}; known are True, False and 'gaussian'.")


class Hira(Method):
    """Hadamard high-rank adaptation: each entry of the weight is scaled by one plus that of a low-rank matrix."""

    title = "HiRA"
    help = "Small files like LoRA's, but the change reaches all of the weight. Good for facts; slower to teach, and where W is zero it stays so."
    config = HiraConfig
    prefix = "hira_"
    begins_at_base = False
    dropped = "hira_dropout"
    needs_base = True

    def tensors(self, cfg: HiraConfig, site: Site) -> dict[str, TensorSpec]:
        rank = by_pattern(site.path, cfg.rank_pattern, cfg.r)
        channels, ones = site.columns // math.prod(site.kernel), (1,) * len(site.kernel)
        shape_a, shape_b = (rank, channels, *site.kernel), (site.out, rank, *ones)
        if not cfg.init_weights:
            start_a = start_b = torch.nn.init.normal_
        elif site.kind == "embedding":     # here B starts random and A at zero
            def start_a(A: Tensor) -> None:
                torch.randn(shape_a), torch.randn(shape_b)    # drawn in vain by PEFT as well: the same seed must give the same adapter
                A.zero_()
            start_b = torch.nn.init.normal_
        else:
            def start_a(A: Tensor) -> None:
                torch.randn(shape_a), torch.randn(shape_b)
                kaiming_uniform(A) if cfg.init_weights is True else torch.nn.init.normal_(A, std=1 / rank)
            start_b = torch.nn.init.zeros_
        kind = "hira_embedding_" if site.kind == "embedding" else "hira_"
        return {kind + "A": TensorSpec(shape_a, start_a), kind + "B": TensorSpec(shape_b, start_b)}

    def delta(self, p: Tensors, cfg: HiraConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        kind = "hira_embedding_" if site.kind == "embedding" else "hira_"
        A, B = p[kind + "A"].flatten(1), p[kind + "B"].flatten(1)
        return W0.to(A.dtype) * (B @ A)


METHOD = Hira()
