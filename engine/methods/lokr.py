"""LoKr: ``ΔW = s · W1 ⊗ W2``, a Kronecker product of two small matrices, either of which may itself be of low rank.

Edalati et al. 2022 (KronA, arXiv 2212.10650), LyCORIS (arXiv 2309.14859). PEFT class ``LoKrConfig``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import Method, Run, Site, TargetedConfig, Tensors, TensorSpec, by_pattern, kaiming_uniform
from engine.specs.fields import knob


@dataclass
class LoKrConfig(TargetedConfig):
    """Settings of LoKr, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "LOKR"
    positive = ("r", "rank_pattern")

    r: int = knob(8, label="Capacity", term="r", low=1, high=100000, help="How much the skill can hold; very large numbers store W1 and W2 whole.")
    alpha: float = knob(8, label="Loudness", term="alpha", low=0, high=100000, advanced=True,
                        help="Scales the whole adapter; usually once or twice the capacity.")
    rank_dropout: float = knob(0.0, label="Forgetful outputs", term="rank_dropout", low=0, high=0.9, advanced=True,
                               help="Share of the adapter's outputs dropped while training.")
    module_dropout: float = knob(0.0, label="Forgetful layers", term="module_dropout", low=0, high=0.9, advanced=True,
                                 help="How often a layer's adapter is left out for a step while training.")
    use_effective_conv2d: bool = knob(False, label="Small convolutions", term="use_effective_conv2d", advanced=True,
                                      help="Stores convolutions with larger kernels in fewer numbers.")
    decompose_both: bool = knob(False, label="Split both parts", term="decompose_both", advanced=True,
                                help="Also stores the first of the two matrices in parts, for the smallest files.")
    decompose_factor: int = knob(-1, label="Size of the first part", term="decompose_factor", advanced=True,
                                 help="Side of the first matrix; −1 makes both about equal, which gives the smallest files.")
    rank_dropout_scale: bool = knob(False, label="Even out dropped outputs", term="rank_dropout_scale", advanced=True,
                                    help="Makes the outputs that stay louder by as much as was dropped.")
    rank_pattern: dict = knob(factory=dict, label="Capacity by layer", term="rank_pattern", advanced=True,
                              help="Layer name or pattern → capacity, where it differs.")
    alpha_pattern: dict = knob(factory=dict, label="Loudness by layer", term="alpha_pattern", advanced=True,
                               help="Layer name or pattern → loudness, where it differs.")
    init_weights: bool | str = knob(True, label="Start", term="init_weights", advanced=True,
                                    help="How the adapter starts: standard (true) or “lycoris”, both without effect; false: with a random one.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rank_pattern, self.alpha_pattern = dict(self.rank_pattern or {}), dict(self.alpha_pattern or {})
        if self.init_weights not in (True, False, "lycoris"):
            raise ValueError(f"Unknown initialization init_weights={self.init_weights!r}; known are True, False and 'lycoris'.")


class LoKr(Method):
    """Low-rank Kronecker product. A linear layer runs it as two small products of the input seen as a matrix."""

    title = "LoKr"
    help = "The smallest files. Good for styles in picture models; it cannot be made into a small LoRA."
    config = LoKrConfig
    prefix = "lokr_"
    thrifty = True

    def scale(self, cfg: LoKrConfig, site: Site) -> float:
        return by_pattern(site.path, cfg.alpha_pattern, cfg.alpha) / by_pattern(site.path, cfg.rank_pattern, cfg.r)

    def tensors(self, cfg: LoKrConfig, site: Site) -> dict[str, TensorSpec]:
        rank, pixels = by_pattern(site.path, cfg.rank_pattern, cfg.r), math.prod(site.kernel)
        (out1, out2), (in1, in2) = (split(size, cfg.decompose_factor) for size in (site.out, site.columns // pixels))
        first = torch.nn.init.zeros_ if cfg.init_weights is True else kaiming_uniform
        last = torch.nn.init.zeros_ if cfg.init_weights == "lycoris" else kaiming_uniform
        if cfg.decompose_both and rank < max(out1, in1) / 2:
            table = {"lokr_w1_a": TensorSpec((out1, rank), first), "lokr_w1_b": TensorSpec((rank, in1), kaiming_uniform)}
        else:
            table = {"lokr_w1": TensorSpec((out1, in1), first)}
        if rank >= max(out2, in2) / 2:
            return {**table, "lokr_w2": TensorSpec((out2, in2, *site.kernel), last)}
        if not (cfg.use_effective_conv2d and pixels > 1):
            return {**table, "lokr_w2_a": TensorSpec((out2, rank), kaiming_uniform), "lokr_w2_b": TensorSpec((rank, in2 * pixels), last)}
        core = (rank, rank, *site.kernel, *(1,) * (2 - len(site.kernel)))
        return {**table, "lokr_w2_a": TensorSpec((rank, out2), kaiming_uniform), "lokr_w2_b": TensorSpec((rank, in2), last),
                "lokr_t2": TensorSpec(core, kaiming_uniform)}

    def first(self, p: Tensors) -> Tensor:
        """W1 ``(out1, in1)``."""
        return p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]

    def delta(self, p: Tensors, cfg: LoKrConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        if "lokr_t2" in p:
            W2 = torch.einsum("ijk,io,jc->ock", p["lokr_t2"].flatten(2), p["lokr_w2_a"], p["lokr_w2_b"])
        elif "lokr_w2" not in p:
            W2 = p["lokr_w2_a"] @ p["lokr_w2_b"]
        elif len(site.kernel) == 1:        # here PEFT pairs W1 with the last two axes, and its files mean that
            return self.scale(cfg, site) * torch.kron(self.first(p)[None], p["lokr_w2"]).reshape(site.out, site.columns)
        else:
            W2 = p["lokr_w2"]
        return self.scale(cfg, site) * torch.kron(self.first(p), W2.flatten(1))

    def apply(self, p: Tensors, cfg: LoKrConfig, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor | None:
        if site.kind != "linear":
            return None
        p = {name: tensor.to(x.dtype) for name, tensor in p.items()}
        W1 = self.first(p) * self.scale(cfg, site)
        x = x.unflatten(-1, (W1.shape[1], -1))                # (W1 ⊗ W2) x = W1 · X · W2ᵀ, with x cut into the rows of X
        h = x @ p["lokr_w2"].T if "lokr_w2" in p else x @ p["lokr_w2_b"].T @ p["lokr_w2_a"].T
        return (W1 @ h).flatten(-2)

    def kept_outputs(self, cfg: LoKrConfig, site: Site) -> Tensor | None:
        if not cfg.rank_dropout and not cfg.module_dropout:
            return None
        rows = (torch.rand(site.out) >= cfg.rank_dropout).float()
        rows = rows / rows.mean().clamp_min(1 / site.out) if cfg.rank_dropout_scale else rows
        return rows * (torch.rand(1) >= cfg.module_dropout)


def split(size: int, factor: int) -> tuple[int, int]:
    """``size`` as a product of two: the first is ``factor`` if that divides it, else its largest divisor up to ``factor`` and up to its root."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    largest = math.isqrt(size) if factor == -1 else min(factor, math.isqrt(size))
    first = next((d for d in range(largest, 1, -1) if size % d == 0), 1)
    return first, size // first


METHOD = LoKr()
