"""TinyLoRA: ``ΔW = B · (Σᵢ vᵢ Pᵢ) · A``: A and B are the largest singular directions of W0, P random; only the short vector v learns.

arXiv 2602.04118. PEFT class ``TinyLoraConfig``. Layers may share a v (`TinyLoraConfig.weight_tying`).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import Factors, Method, Site, TargetedConfig, Tensors, TensorSpec, seeded
from engine.specs.fields import knob


@dataclass
class TinyLoraConfig(TargetedConfig):
    """Settings of TinyLoRA, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "TINYLORA"
    positive = ("r", "u")

    r: int = knob(2, label="Rank", term="r", low=1, high=1024, advanced=True,
                  help="How many directions of each weight are used; as many numbers are learned as before.")
    u: int = knob(64, label="Capacity", term="u", low=1, high=100_000, help="How many numbers each layer learns; 1 to 13 can be enough.")
    weight_tying: float = knob(0.0, label="Sharing", term="weight_tying", low=0, high=1, advanced=True,
                               help="0: each layer learns by itself; 1: all layers share the same numbers.")
    projection_seed: int = knob(42, label="Seed of the projections", term="projection_seed", advanced=True,
                                help="Which random projections are used; the same number makes them again.")
    save_projection: bool = knob(True, label="Store the projections", term="save_projection", advanced=True,
                                 help="Writes the random projections into the file; without, they are made again from their seed.")
    init_v_bound: float = knob(0.02, label="First size", term="init_v_bound", advanced=True,
                               help="Bounds of a random start (see “Start”).")
    tinylora_dropout: float = knob(0.0, label="Forgetfulness", term="tinylora_dropout", low=0, high=0.9, advanced=True,
                                   help="Share of inputs dropped while training; a little helps with very few examples.")
    init_weights: bool | str = knob(True, label="Start", term="init_weights", advanced=True,
                                    help="True: without effect. “uniform” or false: at random.")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    bias: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.weight_tying <= 1.0:
            raise ValueError(f"`weight_tying` should be a float between 0.0 and 1.0 but the value passed is {self.weight_tying}")
        if self.init_weights not in (True, False, "uniform"):
            raise ValueError(f"Unknown initialization init_weights={self.init_weights!r}; known are True, False and 'uniform'.")


class TinyLora(Method):
    """A handful of learned numbers a layer, or for the whole model."""

    title = "TinyLoRA"
    help = "Learns as little as a dozen numbers. For sharpening what a model almost knows; the first start takes a while."
    config = TinyLoraConfig
    prefix = "tinylora_"
    begins_at_base = True
    dropped = "tinylora_dropout"

    def refuses(self, cfg: TinyLoraConfig, site: Site) -> str:
        return "TinyLoRA mixes all channels, which a grouped convolution cannot." if site.groups > 1 else ""

    def group(self, cfg: TinyLoraConfig, site: Site) -> int:
        """Which of the shared vectors the site uses."""
        groups, size = self._groups(cfg, len(site.peers or (site,)))
        return min(site.index // size, groups - 1)

    @staticmethod
    def _groups(cfg: TinyLoraConfig, sites: int) -> tuple[int, int]:
        """(how many vectors, how many neighbouring sites share one)"""
        groups = max(1, round(sites * (1.0 - cfg.weight_tying)))
        return groups, max(1, sites // groups)

    def shared(self, cfg: TinyLoraConfig, sites: Sequence[Site]) -> dict[str, TensorSpec]:
        bound = cfg.init_v_bound                              # init_weights=False, too: PEFT leaves v uninitialised, which may be anything
        start = torch.nn.init.zeros_ if cfg.init_weights is True else lambda t: t.uniform_(-bound, bound)
        return {f"tinylora_v.{i}": TensorSpec((cfg.u,), start) for i in range(self._groups(cfg, len(sites))[0])}

    def tensors(self, cfg: TinyLoraConfig, site: Site) -> dict[str, TensorSpec]:
        rank, zeros = min(cfg.r, site.out, site.columns), torch.nn.init.zeros_
        first, last = (site.out, site.columns) if site.kind == "embedding" else (site.columns, site.out)    # PEFT sees a table as it is stored
        projection = seeded({"tinylora_P": (cfg.u, rank, rank)}, cfg.projection_seed + site.index,
                            lambda t, generator: t.normal_(0, rank**-0.5, generator=generator), cfg.save_projection)
        return {"tinylora_A": TensorSpec((rank, first), zeros, trainable=False), "tinylora_B": TensorSpec((last, rank), zeros, trainable=False),
                **projection}

    def start(self, p: Tensors, cfg: TinyLoraConfig, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        if not fresh & {"tinylora_A", "tinylora_B"}:
            return
        U, S, Vh = torch.linalg.svd((W0.T if site.kind == "embedding" else W0).float(), full_matrices=False)
        rank = min(cfg.r, *W0.shape)
        root = S[:rank].sqrt()
        p["tinylora_A"].copy_(root[:, None] * Vh[:rank])
        p["tinylora_B"].copy_(U[:, :rank] * root)

    def factors(self, p: Tensors, cfg: TinyLoraConfig, site: Site) -> Factors:
        v = p[f"tinylora_v.{self.group(cfg, site)}"]
        A, B, P = (p[f"tinylora_{name}"].to(v.dtype) for name in "ABP")
        R = torch.tensordot(v, P, 1)
        return Factors(B.T, (R @ A).T, 1.0) if site.kind == "embedding" else Factors(A, B @ R, 1.0)

    def delta(self, p: Tensors, cfg: TinyLoraConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        f = self.factors(p, cfg, site)
        return f.B @ f.A


METHOD = TinyLora()
