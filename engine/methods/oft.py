"""OFT: ``W ← W · Rᵀ`` with R block-diagonal and orthogonal, R = Cayley(Q) of skew-symmetric blocks Q; a word's vector is turned as well.

Qiu et al. 2023 (arXiv 2306.07280); Cayley-Neumann and the rotation of the input: Qiu et al. 2025 (arXiv 2506.19847). PEFT class ``OFTConfig``.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from engine.law import MapMethod, Site, TargetedConfig, Tensors, TensorSpec
from engine.specs.fields import knob


@dataclass
class OFTConfig(TargetedConfig):
    """Settings of OFT, by PEFT's names and defaults. Exactly one of ``r`` (number of blocks) and ``oft_block_size`` is not 0."""

    peft_type: ClassVar[str] = "OFT"

    r: int = knob(0, label="Blocks", term="r", low=0, advanced=True,
                  help="How many blocks each layer's input is cut into; 0 lets the block size decide.")
    oft_block_size: int = knob(32, label="Block size", term="oft_block_size", low=0, high=1024,
                               help="How many numbers are turned together: larger holds more and costs more. Rounded to what divides the layer.")
    module_dropout: float = knob(0.0, label="Blocks at rest", term="module_dropout", low=0, high=0.9, advanced=True,
                                 help="Share of the blocks that stay still in a training step.")
    coft: bool = knob(False, label="Small turns only", term="coft", advanced=True, help="Keeps every turn within the bound below.")
    eps: float = knob(6e-5, label="Bound of the turn", term="eps", low=0, advanced=True,
                      help="How far a block may turn if only small turns are allowed.")
    block_share: bool = knob(False, label="One turn for all blocks", term="block_share", advanced=True, help="Far smaller files that hold far less.")
    use_cayley_neumann: bool = knob(True, label="Turn by a series", term="use_cayley_neumann", advanced=True,
                                    help="Much faster; turns are exact only while they are small.")
    num_cayley_neumann_terms: int = knob(5, label="Length of the series", term="num_cayley_neumann_terms", low=1, high=64, advanced=True,
                                         help="More terms turn more exactly.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True, help="Off: starts at random (for tests).")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    bias: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r == 0 and self.oft_block_size == 0:
            raise ValueError(f"Either `r` or `oft_block_size` must be non-zero. Currently, r = {self.r} and oft_block_size = {self.oft_block_size}.")
        if self.r != 0 and self.oft_block_size != 0:
            raise ValueError(f"You can only specify either r ({self.r}) or oft_block_size ({self.oft_block_size}), but not both simultaneously: "
                             "one follows from the other and the layer's size.")
        if self.r < 0 or self.oft_block_size < 0 or self.num_cayley_neumann_terms < 1:
            raise ValueError("`r`, `oft_block_size` and `num_cayley_neumann_terms` cannot be negative.")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "OFTConfig":
        if "oft_block_size" not in data:
            raise ValueError("OFT has been updated since PEFT 0.14.0: this adapter's numbers mean something else. Train it again.")
        version = [int(n) for n in data.get("peft_version", "0").partition("@")[0].split(".")[:2] if n.isdigit()]
        if data.get("use_cayley_neumann") and version < [0, 18]:
            warnings.warn("The cayley-neumann parameterization has been slightly changed in PEFT 0.18.0; this older adapter may sound different.")
        return super().from_dict(data)


def nearest_divisor(n: int, wanted: int) -> int:
    """The divisor of ``n`` nearest to ``wanted``; of two equally near ones the smaller."""
    if wanted >= n:
        return n
    lower = next(d for d in range(wanted, 0, -1) if n % d == 0)
    higher = next(d for d in range(wanted, n + 1) if n % d == 0)
    return lower if wanted - lower <= higher - wanted else higher


def skew(upper: Tensor, size: int) -> Tensor:
    """Rows of upper triangles ``(blocks, size · (size − 1) / 2)`` → skew-symmetric matrices ``(blocks, size, size)``."""
    rows, columns = torch.triu_indices(size, size, 1, device=upper.device)
    Q = upper.new_zeros(upper.shape[0], size, size)
    Q[:, rows, columns] = upper
    return Q - Q.mT


def cayley(Q: Tensor) -> Tensor:
    """``(I − Q)(I + Q)⁻¹`` of each block."""
    I = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    return torch.linalg.solve(I + Q, I - Q, left=False)


def cayley_neumann(Q: Tensor, terms: int) -> Tensor:
    """``(I + Q)(I − Q)⁻¹`` by its series ``I + 2Q + 2Q² + … + Qⁿ``, n = terms − 1 but at least 3 from three terms on, as in PEFT."""
    I, n = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device), max(terms - 1, 3)
    if terms < 3:
        return torch.add(I, Q, alpha=2 * (terms - 1))
    square, pair = Q @ Q, torch.add(2 * I, Q, alpha=2)        # two powers at a time need half the products
    R = 2 * I + Q if n % 2 else pair + square
    for _ in range((n + n % 2) // 2 - 2):
        R = torch.baddbmm(pair, square, R)
    return torch.baddbmm(pair - I, square, R)


class Oft(MapMethod):
    """Orthogonal finetuning: what a layer sees is turned block by block; lengths and angles between inputs stay."""

    title = "OFT"
    help = "Turns what a layer sees instead of adding to it, which keeps more of what the model knew. Cannot fuse with others; slower to teach."
    config = OFTConfig
    prefix = "oft_"

    def acts_in(self, cfg: OFTConfig, site: Site) -> bool:
        return site.kind != "embedding"

    def acts_out(self, cfg: OFTConfig, site: Site) -> bool:
        return site.kind == "embedding"    # words have no angles, their vectors have

    def blocks(self, cfg: OFTConfig, site: Site) -> tuple[int, int]:
        """(how many, how large): the wanted number or size, rounded to a divisor."""
        turned = site.out if site.kind == "embedding" else site.columns
        if cfg.r:
            many = nearest_divisor(turned, cfg.r)
            return many, turned // many
        size = nearest_divisor(turned, cfg.oft_block_size)
        return turned // size, size

    def name(self, site: Site) -> str:
        return "oft_embedding_R.weight" if site.kind == "embedding" else "oft_R.weight"

    def tensors(self, cfg: OFTConfig, site: Site) -> dict[str, TensorSpec]:
        many, size = self.blocks(cfg, site)
        start = torch.nn.init.zeros_ if cfg.init_weights else lambda t: torch.nn.init.normal_(t, std=0.1)
        return {self.name(site): TensorSpec((1 if cfg.block_share else many, size * (size - 1) // 2), start)}

    def rotation(self, p: Tensors, cfg: OFTConfig, site: Site) -> Tensor:
        """R's blocks ``(blocks, size, size)``, in float32 or better; for row vectors, ``x · R``."""
        many, size = self.blocks(cfg, site)
        upper = p[self.name(site)]
        upper = upper.to(torch.promote_types(upper.dtype, torch.float32))
        if cfg.coft:
            upper = upper + (upper * shrink(upper, cfg.eps) - upper).detach()
        Q = skew(upper, size)
        R = cayley_neumann(Q, cfg.num_cayley_neumann_terms) if cfg.use_cayley_neumann else cayley(Q)
        return R.expand(many, size, size)

    def turn(self, R: Tensor, x: Tensor) -> Tensor:
        y = torch.einsum("...rk,rkc->...rc", x.to(R.dtype).unflatten(-1, R.shape[:2]), R)
        return y.flatten(-2).to(x.dtype)

    def turn_in(self, p: Tensors, cfg: OFTConfig, site: Site, x: Tensor, transposed: bool = False) -> Tensor:
        R = self.rotation(p, cfg, site)
        return self.turn(R.mT if transposed else R, x)

    def turn_out(self, p: Tensors, cfg: OFTConfig, site: Site, y: Tensor) -> Tensor:
        return self.turn(self.rotation(p, cfg, site), y)

    @torch.no_grad()
    def in_training(self, p: Tensors, cfg: OFTConfig, site: Site) -> Tensors:
        """Bring the angles back within the bound, in place as PEFT does; let a share of the blocks rest (angles 0 are no turn)."""
        name = self.name(site)
        if cfg.coft:
            p[name].mul_(shrink(p[name], cfg.eps))
        many = len(p[name])
        if cfg.module_dropout == 0 or many == 1:
            return p
        keep = (torch.randperm(many) >= int(cfg.module_dropout * many)).to(p[name])
        with torch.enable_grad():
            return {**p, name: p[name] * keep[:, None]}


def shrink(upper: Tensor, eps: float) -> Tensor:
    """What each row of angles is multiplied with so that its skew matrix has a Frobenius norm of at most eps / √rows."""
    limit = eps / math.sqrt(upper.shape[0])
    return (limit / (math.sqrt(2) * upper.norm(dim=1, keepdim=True)).clamp_min(1e-30)).clamp_max(1)


METHOD = Oft()
