"""GraLoRA: the weight as a k × k grid of blocks, each with a LoRA of rank r / k; as many numbers as LoRA, k times its rank.

Jung et al. 2025 (arXiv 2505.20355). PEFT class ``GraloraConfig``; ``hybrid_r`` adds an ordinary LoRA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import Factors, Method, Run, Site, TargetedConfig, Tensors, TensorSpec, kaiming_uniform
from engine.specs.fields import knob


@dataclass
class GraloraConfig(TargetedConfig):
    """Settings of GraLoRA, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "GRALORA"
    positive = ("r", "gralora_k")

    r: int = knob(32, label="Capacity", term="r", low=1, high=1024, help="How much the skill can hold; a multiple of the grid size.")
    hybrid_r: int = knob(0, label="Capacity beside the grid", term="hybrid_r", low=0, high=1024, advanced=True,
                         help="Capacity of an ordinary LoRA added to the grid; 0: none.")
    alpha: float = knob(64, label="Loudness", term="alpha", low=0, high=4096, advanced=True,
                        help="Scales the whole adapter; usually once or twice the capacity.")
    gralora_dropout: float = knob(0.0, label="Forgetfulness", term="gralora_dropout", low=0, high=0.9, advanced=True,
                                  help="Share of inputs dropped while training; a little helps with very few examples.")
    gralora_k: int = knob(2, label="Grid size", term="gralora_k", low=1, high=64, advanced=True,
                          help="Blocks a side: 2 for capacities up to 32, 4 from 64 on.")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    bias: str = "none"
    init_weights: bool = knob(True, label="Standard start", term="init_weights", advanced=True,
                              help="Start without effect; off, the adapter starts with a random one.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.hybrid_r, int) or self.hybrid_r < 0:
            raise ValueError(f"`hybrid_r` should be a non-negative integer value but the value passed is {self.hybrid_r}")
        if self.r % self.gralora_k:
            raise ValueError(f"r should be divisible by gralora_k, but got {self.r} and {self.gralora_k}")


class Gralora(Method):
    """Granular low-rank adaptation. Block (j, n) of ΔW is ``B[j, n]ᵀ · A[n, j]ᵀ`` of rank r / k; all of it has rank k · r at most."""

    title = "GraLoRA"
    help = "LoRA cut into a grid: holds more at large capacities in a file of the same size. Can be mixed and baked in."
    config = GraloraConfig
    prefix = "gralora_"
    dropped = "gralora_dropout"
    thrifty = True

    def refuses(self, cfg: GraloraConfig, site: Site) -> str:
        for side, size in (("in_features", site.columns), ("out_features", site.out)):
            if size % cfg.gralora_k:
                return f"{side} should be divisible by gralora_k, but got {size} and {cfg.gralora_k}."
        return ""

    def tensors(self, cfg: GraloraConfig, site: Site) -> dict[str, TensorSpec]:
        k, r, hybrid = cfg.gralora_k, cfg.r, cfg.hybrid_r
        last = torch.nn.init.zeros_ if cfg.init_weights else kaiming_uniform
        drawn: list[Tensor] = []           # PEFT draws A and B of each block in turn

        def start_a(A: Tensor) -> None:
            for block in A:
                kaiming_uniform(part := torch.empty(r, site.columns // k))
                block.copy_(part.T)
                last(part := torch.empty(site.out // k, r))
                drawn.append(part.T)

        def start_b(B: Tensor) -> None:
            if not drawn:                  # A came from a file
                start_a(torch.empty(k, site.columns // k, r))
            B.copy_(torch.stack(drawn))

        table = {"gralora_A": TensorSpec((k, site.columns // k, r), start_a), "gralora_B": TensorSpec((k, r, site.out // k), start_b)}
        if hybrid:
            def start_general(A: Tensor) -> None:             # PEFT draws both once before it draws A for good
                kaiming_uniform(A), kaiming_uniform(torch.empty(site.out, hybrid)), kaiming_uniform(A)

            table["gralora_A_general.weight"] = TensorSpec((hybrid, site.columns), start_general)
            table["gralora_B_general.weight"] = TensorSpec((site.out, hybrid), last)
        return table

    def scale(self, cfg: GraloraConfig, site: Site) -> float:
        return cfg.alpha / (cfg.r + cfg.hybrid_r)

    def factors(self, p: Tensors, cfg: GraloraConfig, site: Site) -> Factors | None:
        if site.groups > 1:
            return None
        k = cfg.gralora_k
        A = torch.block_diag(*p["gralora_A"].transpose(1, 2))                                    # rows: (input block n, output block j, rank)
        B = p["gralora_B"].unflatten(1, (k, -1))                                                 # (j, n, rank, out / k)
        B = torch.einsum("jnso,ij->ionjs", B, torch.eye(k, dtype=B.dtype, device=B.device)).reshape(site.out, -1)
        if cfg.hybrid_r:
            A, B = torch.cat([A, p["gralora_A_general.weight"]]), torch.cat([B, p["gralora_B_general.weight"]], 1)
        return Factors(A, B, self.scale(cfg, site))

    def delta(self, p: Tensors, cfg: GraloraConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        k = cfg.gralora_k
        delta = torch.einsum("njcs,jnso->jonc", p["gralora_A"].unflatten(2, (k, -1)).transpose(1, 2), p["gralora_B"].unflatten(1, (k, -1)))
        delta = delta.reshape(site.out, site.columns)
        if cfg.hybrid_r:
            delta = delta + p["gralora_B_general.weight"] @ p["gralora_A_general.weight"]
        return self.scale(cfg, site) * delta

    def apply(self, p: Tensors, cfg: GraloraConfig, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor | None:
        if site.kind != "linear":
            return None
        k, p = cfg.gralora_k, {name: tensor.to(x.dtype) for name, tensor in p.items()}
        h = self.scale(cfg, site) * torch.einsum("...nc,ncr->...nr", x.unflatten(-1, (k, -1)), p["gralora_A"])
        h = h.unflatten(-1, (k, -1)).transpose(-2, -3).flatten(-2)                               # every output block hears all input blocks
        y = torch.einsum("...jr,jro->...jo", h, p["gralora_B"]).flatten(-2)
        if cfg.hybrid_r:
            y = y + self.scale(cfg, site) * (x @ p["gralora_A_general.weight"].T) @ p["gralora_B_general.weight"].T
        return y


METHOD = Gralora()
