"""MiSS: the same ``r`` rows of numbers for every r inputs: ``ΔW = Dᵀ · [I I …]``; "bat": ``ΔW = W0·D + D`` block by block; "mini": D repeats too.

Kang et al. 2024 (arXiv 2409.15371, formerly Bone). PEFT class ``MissConfig``; folders that PEFT wrote as ``BONE`` are read as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.law import Factors, Method, Run, Site, TargetedConfig, Tensors, TensorSpec, kaiming_uniform
from engine.specs.fields import knob


@dataclass
class MissConfig(TargetedConfig):
    """Settings of MiSS, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "MISS"
    positive = ("r", "mini_r")

    r: int = knob(64, label="Capacity", term="r", low=1, high=4096, help="How much the skill can hold. Larger files.")
    miss_dropout: float = knob(0.0, label="Forgetfulness", term="miss_dropout", low=0, high=0.9, advanced=True,
                               help="Share of inputs dropped while training; a little helps with very few examples.")
    mini_r: int = knob(1, label="Width of “mini”", term="mini_r", low=1, high=65536, advanced=True,
                       help="With the kind “mini”: after how many outputs the numbers repeat.")
    init_weights: bool | str = knob(True, label="Kind", term="init_weights", advanced=True,
                                    help="Standard (true), “bat” (stronger, slower) or “mini” (smaller files), all without effect at first; "
                                         "false: standard with a random start.")
    bias: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_weights not in (True, False, "bat", "mini"):
            raise ValueError(f"Unknown initialization init_weights={self.init_weights!r}; known are True, False, 'bat' and 'mini'.")


class Miss(Method):
    """Matrix shard sharing. Its A would be rows of the identity: a linear layer adds up its inputs instead of multiplying."""

    title = "MiSS"
    help = "About as able as LoRA with one matrix instead of two; quick to teach. Can be mixed and baked in."
    config = MissConfig
    prefix = "miss_"
    thrifty = True

    def refuses(self, cfg: MissConfig, site: Site) -> str:
        if cfg.r > site.columns:
            return f"`r` ({cfg.r}) must be less than or equal to in_features ({site.columns})."
        if cfg.init_weights == "mini" and site.out % cfg.mini_r:
            return f"`mini_r` ({cfg.mini_r}) must divide the number of outputs ({site.out})."
        return ""

    def tensors(self, cfg: MissConfig, site: Site) -> dict[str, TensorSpec]:
        start = torch.nn.init.zeros_ if cfg.init_weights else kaiming_uniform
        return {"miss_block": TensorSpec((cfg.r, cfg.mini_r if cfg.init_weights == "mini" else site.out), start)}

    def decode(self, found: Tensors, cfg: MissConfig, site: Site) -> Tensors:
        block = found.pop("miss_block", None)
        block = found.pop("bone_block", None) if block is None else block          # its name before PEFT 0.17
        return {} if block is None else {"miss_block": block}

    def shards(self, p: Tensors, cfg: MissConfig, site: Site) -> Tensor:
        """D ``(r, out)``."""
        D = p["miss_block"]
        return D.repeat(1, site.out // cfg.mini_r) if cfg.init_weights == "mini" else D

    def factors(self, p: Tensors, cfg: MissConfig, site: Site) -> Factors | None:
        if site.groups > 1:
            return None
        D = self.shards(p, cfg, site)
        return Factors(torch.eye(cfg.r, dtype=D.dtype, device=D.device).repeat(1, -(-site.columns // cfg.r))[:, :site.columns], D.T, 1.0)

    def delta(self, p: Tensors, cfg: MissConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        return self.shards(p, cfg, site).T.repeat(1, -(-site.columns // cfg.r))[:, :site.columns]

    def apply(self, p: Tensors, cfg: MissConfig, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor | None:
        if site.kind != "linear":
            return None
        short = -site.columns % cfg.r
        x = (F.pad(x, (0, short)) if short else x).unflatten(-1, (-1, cfg.r)).sum(-2)
        return x @ self.shards(p, cfg, site).to(x.dtype)

    def dropout(self, cfg: MissConfig) -> float:
        return cfg.miss_dropout


class Bat(Miss):
    """The block affine kind: r × r blocks of W0 times a matrix each for every r outputs, plus that matrix."""

    title = "MiSS (bat)"
    needs_base = True
    apply = Method.apply                   # it has no way beside the weight

    def __init__(self, inner: Method):
        """``inner`` is replaced, not used: the two kinds have only config and names in common."""

    def refuses(self, cfg: MissConfig, site: Site) -> str:
        whole = site.columns % cfg.r == 0 and site.out % cfg.r == 0
        return "" if whole else f"The weight matrix must be fully divisible into [r, r] blocks; {site.out} × {site.columns} is not, with r = {cfg.r}."

    def starts_from_base(self, cfg: MissConfig) -> bool:
        return False

    def tensors(self, cfg: MissConfig, site: Site) -> dict[str, TensorSpec]:
        return {"miss_block": TensorSpec((site.out // cfg.r, cfg.r, cfg.r), torch.nn.init.zeros_)}

    def factors(self, p: Tensors, cfg: MissConfig, site: Site) -> None:
        return None

    def delta(self, p: Tensors, cfg: MissConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        D = p["miss_block"]
        blocks = W0.to(D.dtype).unflatten(1, (-1, cfg.r)).unflatten(0, (-1, cfg.r))              # (out / r, r, columns / r, r)
        return (torch.einsum("oicj,ojk->oick", blocks, D) + D[:, :, None]).reshape(site.out, site.columns)


def wanted(cfg: MissConfig) -> bool:
    return cfg.init_weights == "bat"


METHOD, VARIANT = Miss(), Bat
