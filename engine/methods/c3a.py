"""C3A: ``ΔW`` made of circulant blocks, each of which is one row of numbers and a circular convolution.

Chen et al. 2024 (arXiv 2407.19342). PEFT class ``C3AConfig``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.configs import MLP_OUT
from engine.law import Init, Method, Run, Site, TargetedConfig, Tensors, TensorSpec, by_pattern
from engine.specs.fields import knob

_STARTS = ("xavier_uniform", "kaiming_uniform", "gaussian")


@dataclass
class C3AConfig(TargetedConfig):
    """Settings of C3A, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "C3A"
    positive = ("block_size", "block_size_pattern")

    block_size: int = knob(256, label="Block size", term="block_size", low=1, high=65536,
                           help="Must divide the width of every layer. Larger blocks: smaller files that hold less.")
    bias: str = "none"
    block_size_pattern: dict = knob(factory=dict, label="Block size by layer", term="block_size_pattern", advanced=True,
                                    help="Layer name or pattern → block size, where it differs.")
    init_weights: bool | str | None = knob("xavier_uniform", label="Start", term="init_weights", advanced=True, choices=(*_STARTS, True),
                                           help="“xavier_uniform” (also false), “kaiming_uniform” or “gaussian”; true starts without effect.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.block_size_pattern = dict(self.block_size_pattern or {})
        if self.init_weights not in (True, False, *_STARTS):
            raise ValueError(f"Unknown init_weights: {self.init_weights}; known are True, False, {', '.join(map(repr, _STARTS))}.")


class C3A(Method):
    """Circular convolution adaptation; runs by fast Fourier transforms in float32 or better."""

    title = "C3A"
    help = "Small files that reach every direction of a layer. Quick; both widths of a layer must be multiples of the block size."
    config = C3AConfig
    prefix = "c3a_"
    layers = MLP_OUT
    thrifty = True

    def block(self, cfg: C3AConfig, site: Site) -> int:
        return by_pattern(site.path, cfg.block_size_pattern, cfg.block_size)

    def refuses(self, cfg: C3AConfig, site: Site) -> str:
        block = self.block(cfg, site)
        for side, size in (("input", site.columns), ("output", site.out)):
            if size % block:
                return f"The block size should be a factor of the {side} size, but {block} does not divide {size}."
        return ""

    def tensors(self, cfg: C3AConfig, site: Site) -> dict[str, TensorSpec]:
        block = self.block(cfg, site)
        return {"c3a_kernel": TensorSpec((site.out // block, site.columns // block, block), self.init(cfg, site))}

    def init(self, cfg: C3AConfig, site: Site) -> Init:
        if cfg.init_weights is True:
            return torch.nn.init.zeros_
        if cfg.init_weights == "gaussian":
            return torch.nn.init.normal_
        bound = math.sqrt(1 / site.columns if cfg.init_weights == "kaiming_uniform" else 6 / (site.columns + site.out))
        return lambda kernel: torch.nn.init.uniform_(kernel, -bound, bound)

    def delta(self, p: Tensors, cfg: C3AConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        kernel = p["c3a_kernel"]
        at = torch.arange(kernel.shape[-1], device=kernel.device)
        blocks = kernel[..., (at - at[:, None]) % len(at)]    # row i is the kernel, turned by i places
        return blocks.transpose(1, 2).reshape(site.out, site.columns) / site.columns

    def apply(self, p: Tensors, cfg: C3AConfig, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor | None:
        if site.kind != "linear":
            return None
        kernel = p["c3a_kernel"].to(torch.promote_types(p["c3a_kernel"].dtype, torch.float32))         # there is no transform in 16 bit
        block = kernel.shape[-1]
        waves = torch.fft.rfft(x.to(kernel.dtype).unflatten(-1, (-1, block)))
        mixed = torch.einsum("...nf,mnf->...mf", waves, torch.fft.rfft(kernel).conj())
        return torch.fft.irfft(mixed, block).flatten(-2) / site.columns


METHOD = C3A()
