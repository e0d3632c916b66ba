"""BOFT: ``W ← s ∘ (W · Bᵀ)``, B a butterfly of orthogonal block-diagonal factors, so that few angles turn all inputs together.

Liu et al. 2023 (arXiv 2311.06243). PEFT class ``BOFTConfig``; without its CUDA kernel PEFT silently runs one factor, here all of them are run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import MapMethod, Site, TargetedConfig, Tensors, TensorSpec
from engine.specs.fields import knob


@dataclass
class BOFTConfig(TargetedConfig):
    """Settings of BOFT, by PEFT's names and defaults. Exactly one of ``boft_block_size`` and ``boft_block_num`` is not 0."""

    peft_type: ClassVar[str] = "BOFT"

    boft_block_size: int = knob(4, label="Block size", term="boft_block_size", low=0, high=1024,
                                help="How many numbers are turned together; must divide the layer's input. Larger holds more.")
    boft_block_num: int = knob(0, label="Blocks", term="boft_block_num", low=0, advanced=True,
                               help="How many blocks the input is cut into, instead of a size; the other one is then 0.")
    boft_n_butterfly_factor: int = knob(1, label="Butterfly factors", term="boft_n_butterfly_factor", low=1, high=12, advanced=True,
                                        help="Each factor lets twice as many inputs turn together. With 1 this is OFT.")
    boft_dropout: float = knob(0.0, label="Blocks at rest", term="boft_dropout", low=0, high=0.9, advanced=True,
                               help="Share of the blocks of one factor that stay still in a training step.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True, help="Off: starts at random (for tests).")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    bias: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        size, many = self.boft_block_size, self.boft_block_num
        if size == 0 and many == 0:
            raise ValueError("Either `boft_block_size` or `boft_block_num` must be non-zero: it says how the layer's input is cut.")
        if size != 0 and many != 0:
            raise ValueError(f"You can only specify either boft_block_size ({size}) or boft_block_num ({many}), but not both simultaneously: "
                             "one follows from the other and the layer's size.")
        if self.boft_n_butterfly_factor < 1:
            raise ValueError(f"You can only specify boft_n_butterfly_factor {self.boft_n_butterfly_factor} to be a positive integer number.")


@lru_cache(maxsize=256)
def butterfly(n: int, size: int, level: int) -> tuple[Tensor, Tensor]:
    """The permutation before the blocks of factor ``level`` and its inverse: halves of neighbouring blocks meet at twice the distance each time."""
    half, step = size // 2, 2 ** (level + 1)
    with torch.inference_mode(False):      # what is kept must serve training, too
        order = torch.arange(n) if level == 0 else torch.arange(n).view(-1, step, half)[:, [*range(0, step, 2), *range(1, step, 2)]].reshape(-1)
        return order.argsort(), order


class Boft(MapMethod):
    """Orthogonal butterfly finetuning."""

    title = "BOFT"
    help = "Turns what a layer sees by a butterfly of small turns: very small files. Cannot fuse with others; slow to teach."
    config = BOFTConfig
    prefix = "boft_"

    def acts_in(self, cfg: BOFTConfig, site: Site) -> bool:
        return True

    def acts_out(self, cfg: BOFTConfig, site: Site) -> bool:
        return True                        # the scale s, which leaves the bias alone

    def blocks(self, cfg: BOFTConfig, site: Site) -> tuple[int, int]:
        """(how many, how large)."""
        size = cfg.boft_block_size or site.columns // cfg.boft_block_num
        return cfg.boft_block_num or site.columns // size, size

    def refuses(self, cfg: BOFTConfig, site: Site) -> str:
        if site.kind == "embedding":
            return "BOFT turns a layer's input, and words cannot be turned."
        wanted, factors = cfg.boft_block_size or cfg.boft_block_num, cfg.boft_n_butterfly_factor
        if site.columns % wanted:
            return f"Its input of {site.columns} must be divisible by {'boft_block_size' if cfg.boft_block_size else 'boft_block_num'} ({wanted})!"
        many, size = self.blocks(cfg, site)
        if factors > 1 and (size % 2 or many % 2 ** (factors - 1)):
            return (f"Invalid combination of boft_n_butterfly_factor ({factors}) with {many} blocks of {size}: "
                    "the size must be even and the number of blocks divisible by two for each factor after the first.")
        return ""

    def tensors(self, cfg: BOFTConfig, site: Site) -> dict[str, TensorSpec]:
        many, size = self.blocks(cfg, site)
        start_r = torch.nn.init.zeros_ if cfg.init_weights else lambda t: torch.nn.init.normal_(t, std=0.1)
        start_s = torch.nn.init.ones_ if cfg.init_weights else lambda t: torch.nn.init.normal_(t, mean=1.0, std=0.1)
        return {"boft_R": TensorSpec((cfg.boft_n_butterfly_factor, many, size, size), start_r),
                "boft_s": TensorSpec((1, site.out) if site.kind == "conv" else (site.out, 1), start_s)}

    def turn_in(self, p: Tensors, cfg: BOFTConfig, site: Site, x: Tensor, transposed: bool = False) -> Tensor:
        """Through the factors one by one, ``x · B_m · … · B_1``: no matrix as wide as the layer is ever made."""
        R = p["boft_R"].to(torch.promote_types(p["boft_R"].dtype, torch.float32))
        I = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
        Q = (R - R.mT) / 2
        turns = torch.linalg.solve(I + Q, I - Q, left=False)
        levels = range(len(turns)) if transposed else reversed(range(len(turns)))
        y = x.to(R.dtype)
        for level in levels:
            there, back = (order.to(x.device) for order in butterfly(site.columns, R.shape[-1], level))
            blocks = y[..., there].unflatten(-1, R.shape[1:3])
            y = torch.einsum("...rk,rkc->...rc", blocks, turns[level].mT if transposed else turns[level]).flatten(-2)[..., back]
        return y.to(x.dtype)

    def turn_out(self, p: Tensors, cfg: BOFTConfig, site: Site, y: Tensor) -> Tensor:
        return (y * p["boft_s"].flatten()).to(y.dtype)

    def in_training(self, p: Tensors, cfg: BOFTConfig, site: Site) -> Tensors:
        """Let a share of the blocks of one factor, drawn anew each step, rest: numbers 0 are no turn."""
        if cfg.boft_dropout == 0:
            return p
        factors, many = p["boft_R"].shape[:2]
        keep = torch.ones(factors, many, 1, 1)
        keep[torch.randint(0, factors, (1,)), :, 0, 0] = (torch.randperm(many) >= int(cfg.boft_dropout * many)).float()
        return {**p, "boft_R": p["boft_R"] * keep.to(p["boft_R"])}


METHOD = Boft()
