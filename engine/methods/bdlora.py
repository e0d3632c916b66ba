"""BD-LoRA: LoRA with A or B block-diagonal, so that a server can split it over graphics cards without talk between them.

PEFT: ``LoraConfig(use_bdlora=BdLoraConfig(…))``. Only the blocks are stored: A as ``(rank, columns / n)``, B as ``(out, rank / n)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.law import Factors, Site, Tensors, TensorSpec, Variant

A, B = "lora_A.weight", "lora_B.weight"


class BlockDiagonal(Variant):
    """A law round LoRA: which factor is block-diagonal is said by the layer's path."""

    title = "BD-LoRA"
    help = "LoRA in blocks, for serving many adapters on several graphics cards at once."

    def blocked(self, cfg: Any, site: Site) -> list[str]:
        """Which of the two factors is in blocks."""
        patterns = {A: cfg.use_bdlora.target_modules_bd_a, B: cfg.use_bdlora.target_modules_bd_b}
        return [name for name, found in patterns.items() if any(pattern in site.path for pattern in found or [])]

    def refuses(self, cfg: Any, site: Site) -> str:
        blocked, n, rank = self.blocked(cfg, site), cfg.use_bdlora.nblocks, self.inner.rank(cfg, site)
        if site.kind != "linear":
            return "BD-LoRA sits on linear layers only."
        if len(blocked) == 2:
            return f"Target {site.path} matches both A and B block-diagonal patterns: name it in one of the two lists."
        if not blocked and cfg.use_bdlora.match_strict:
            return f"Target {site.path} matches neither A nor B block-diagonal patterns: name it in one of them, or set match_strict=False."
        if blocked and (rank % n or (site.columns if blocked == [A] else site.out) % n):
            return f"Its {site.columns if blocked == [A] else site.out} channels and rank {rank} must both be divisible by {n} blocks."
        return self.inner.refuses(cfg, site)

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        table, blocked, n = self.inner.tensors(cfg, site), self.blocked(cfg, site), cfg.use_bdlora.nblocks
        for name in blocked:
            table[name] = self._block(table[name], n, torch.nn.init.kaiming_uniform_ if name == A else torch.nn.init.zeros_)
        return table

    @staticmethod
    def _block(whole: TensorSpec, n: int, init: Any) -> TensorSpec:
        def start(tensor: Tensor) -> None:
            whole.init(torch.empty(whole.shape))              # drawn in vain, as in PEFT
            init(tensor)

        return whole._replace(shape=(whole.shape[0], whole.shape[1] // n), init=start)

    def factors(self, p: Tensors, cfg: Any, site: Site) -> Factors:
        whole = {name: torch.block_diag(*p[name].chunk(cfg.use_bdlora.nblocks)) for name in self.blocked(cfg, site)}
        return self.inner.factors({**p, **whole}, cfg, site)


def wanted(cfg: Any) -> bool:
    return cfg.use_bdlora is not None


VARIANT = BlockDiagonal
