"""HRA: ``W ← W · H₁ · … · H_r``, a chain of Householder reflections ``H = I − 2uuᵀ`` of the layer's input.

Yuan et al. 2024 (arXiv 2405.17484). PEFT class ``HRAConfig``. The chain is run in two thin products, ``I − U T Uᵀ`` (Joffrain et al. 2006).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import MapMethod, Site, TargetedConfig, Tensors, TensorSpec, kaiming_uniform
from engine.specs.fields import knob


@dataclass
class HRAConfig(TargetedConfig):
    """Settings of HRA, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "HRA"
    positive = ("r",)

    r: int = knob(8, label="Reflections", term="r", low=1, high=1024,
                  help="How much the skill can hold. An even number starts without effect, an odd one does not.")
    apply_GS: bool = knob(False, label="Reflections at right angles", term="apply_GS", advanced=True,
                          help="Makes the reflections independent of one another; then it always starts with an effect.")
    init_weights: bool = knob(True, label="Start in pairs", term="init_weights", advanced=True, help="Off: starts at random, with an effect.")
    bias: str = "none"


class Hra(MapMethod):
    """Householder reflection adaptation: the bridge between low-rank and orthogonal adaptation."""

    title = "HRA"
    help = "Mirrors what a layer sees: small files, and lengths and angles stay. Cannot fuse with others."
    config = HRAConfig
    prefix = "hra_"

    def acts_in(self, cfg: HRAConfig, site: Site) -> bool:
        return True

    def refuses(self, cfg: HRAConfig, site: Site) -> str:
        return "HRA mirrors a layer's input, and words cannot be mirrored." if site.kind == "embedding" else ""

    def tensors(self, cfg: HRAConfig, site: Site) -> dict[str, TensorSpec]:
        def in_pairs(u: Tensor) -> None:   # two equal reflections in a row are none
            half = torch.zeros(u.shape[0], u.shape[1] // 2)
            kaiming_uniform(half)
            u.copy_(half.repeat_interleave(2, dim=1))

        # at right angles a pair would leave its second direction to rounding errors (in PEFT it does)
        paired = cfg.init_weights and cfg.r % 2 == 0 and not cfg.apply_GS
        return {"hra_u": TensorSpec((site.columns, cfg.r), in_pairs if paired else kaiming_uniform)}

    def turn_in(self, p: Tensors, cfg: HRAConfig, site: Site, x: Tensor, transposed: bool = False) -> Tensor:
        U = p["hra_u"].to(torch.promote_types(p["hra_u"].dtype, torch.float32))
        U = U / U.norm(dim=0)
        crossed, I = U.T @ U, torch.eye(cfg.r, dtype=U.dtype, device=U.device)
        if cfg.apply_GS:                   # only the span counts: what Gram-Schmidt would find in it mirrors the same
            T = 2 * torch.linalg.pinv(crossed, hermitian=True)
        else:
            T = torch.linalg.solve_triangular(crossed.triu(1) + I / 2, I, upper=True)
        seen = x.to(U.dtype)
        return (seen - (seen @ U) @ (T if transposed else T.T) @ U.T).to(x.dtype)


METHOD = Hra()
