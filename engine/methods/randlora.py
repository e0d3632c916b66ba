"""RandLoRA: ``ΔW = s · Σᵢ Bᵢ · diag(λᵢ) · A · diag(γᵢ)``, s = alpha / r: random bases, together of full rank; only their scales learn.

Albert et al. 2025 (arXiv 2502.00987). PEFT class ``RandLoraConfig``. The bases A ``(r, 1, short side)`` and B ``(long side, bases, r)`` are the
same for all layers, each of which uses a corner. In files that PEFT wrote each layer has a copy of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.init import kaiming_uniform_

from engine.law import Method, Run, Site, TargetedConfig, Tensors, TensorSpec, seeded
from engine.specs.fields import knob


@dataclass
class RandLoraConfig(TargetedConfig):
    """Settings of RandLoRA, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "RANDLORA"
    positive = ("r",)

    r: int = knob(32, label="Rank of each basis", term="r", low=1, high=1024,
                  help="The smaller, the more is learned: a layer learns (its shorter side) ÷ (this number) scales for each input.")
    projection_prng_key: int = knob(0, label="Seed of the bases", term="projection_prng_key", advanced=True,
                                    help="Which random bases all layers share; the same number makes them again.")
    save_projection: bool = knob(True, label="Store the bases", term="save_projection", advanced=True,
                                 help="Writes the random bases into the file; without, they are made again from their seed.")
    sparse: bool = knob(False, label="Sparse bases", term="sparse", advanced=True, help="Two thirds of the bases' entries are zero.")
    very_sparse: bool = knob(False, label="Very sparse bases", term="very_sparse", advanced=True,
                             help="Nearly all entries of the bases are zero: less learned by heart, and less learned.")
    randlora_dropout: float = knob(0.0, label="Forgetfulness", term="randlora_dropout", low=0, high=0.9, advanced=True,
                                   help="Share of inputs dropped while training; a little helps with very few examples.")
    randlora_alpha: float = knob(640, label="Loudness", term="randlora_alpha", low=0, high=100_000, advanced=True,
                                 help="Scales the whole adapter; about twenty times the rank.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True,
                              help="Off: the adapter starts with a random effect.")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    bias: str = "none"


class RandLora(Method):
    """Full-rank updates from random bases. Trains in thin products; when nothing learns it runs as one weight, as its rank is full."""

    title = "RandLoRA"
    help = "As thorough as teaching the whole layer, in a small file. Slow to teach."
    config = RandLoraConfig
    prefix = "randlora_"
    dropped = "randlora_dropout"

    def shared(self, cfg: RandLoraConfig, sites: Sequence[Site]) -> dict[str, TensorSpec]:
        short, long = sorted((max(s.out for s in sites), max(s.columns for s in sites)))
        odds = math.sqrt(short) if cfg.very_sparse else 3 if cfg.sparse else None
        shapes = {"randlora_A": (cfg.r, 1, short), "randlora_B": (long, math.ceil(short / cfg.r), cfg.r)}
        return seeded(shapes, cfg.projection_prng_key, lambda t, generator: random_basis(t, generator, odds), cfg.save_projection)

    def tensors(self, cfg: RandLoraConfig, site: Site) -> dict[str, TensorSpec]:
        short, long = sorted((site.out, site.columns))
        bases = math.ceil(short / cfg.r)
        gamma = 1 / max(bases, short) if cfg.init_weights else 1 / long
        return {"randlora_lambda": TensorSpec((cfg.r, bases), torch.nn.init.zeros_ if cfg.init_weights else torch.nn.init.normal_),
                "randlora_gamma": TensorSpec((bases, short), lambda t: t.fill_(gamma))}

    def decode(self, found: Tensors, cfg: RandLoraConfig, site: Site) -> Tensors:
        for copied in ("randlora_A", "randlora_B"):
            found.pop(copied, None)
        return super().decode(found, cfg, site)

    def bases(self, p: Tensors, cfg: RandLoraConfig, site: Site) -> tuple[Tensor, Tensor]:
        """(inner ``(k, columns)``, outer ``(out, k)``) with k = r · bases; the scales are in the one on the shorter side."""
        short, long = sorted((site.out, site.columns))
        scale = p["randlora_lambda"] * (cfg.randlora_alpha / cfg.r)
        scaled = Scaled.apply(p["randlora_A"][..., :short], scale, p["randlora_gamma"]).flatten(0, 1)
        plain = p["randlora_B"][:long, :p["randlora_lambda"].shape[1]].flatten(1).to(scaled.dtype)
        return (scaled, plain) if short == site.columns else (plain.T, scaled.T)

    def delta(self, p: Tensors, cfg: RandLoraConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        inner, outer = self.bases(p, cfg, site)
        return outer @ inner

    def apply(self, p: Tensors, cfg: RandLoraConfig, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor | None:
        if site.kind != "linear":
            return None
        inner, outer = self.bases(p, cfg, site)
        return F.linear(F.linear(x, inner.to(x.dtype)), outer.to(x.dtype))


class Scaled(torch.autograd.Function):
    """``λ[k, b] · A[k, 0, j] · γ[b, j]`` of shape (r, bases, side), keeping nothing of that size for the gradient; A gets none."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, scale: Tensor, gamma: Tensor) -> Tensor:
        ctx.save_for_backward(A, scale, gamma)
        return scale[:, :, None] * A * gamma

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        A, scale, gamma = ctx.saved_tensors
        seen = grad * A
        return None, torch.einsum("kbj,bj->kb", seen, gamma), torch.einsum("kbj,kb->bj", seen, scale)


def random_basis(basis: Tensor, generator: torch.Generator, odds: float | None) -> None:
    """Fill ``(side, bases, other side)`` with entries of deviation 1: dense, or −1, 0 and 1 of which one in ``odds`` is not zero."""
    if odds is None:                       # drawn in bfloat16, one basis after the other, as PEFT does
        pieces = [torch.empty(len(basis), 1, basis.shape[-1], dtype=torch.bfloat16) for _ in range(basis.shape[1])]
        drawn = torch.cat([kaiming_uniform_(piece, a=math.sqrt(5), generator=generator) for piece in pieces], dim=1)
    else:
        chance = torch.rand(basis.shape, generator=generator)
        drawn = (chance > 1 - 1 / (2 * odds)).float() - (chance < 1 / (2 * odds)).float()
    basis.copy_(drawn / drawn.std())


METHOD = RandLora()
