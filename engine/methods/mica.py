"""MiCA: LoRA whose B is frozen at the weakest left singular directions of W0; A learns from zero.

Minor Component Adaptation, 2026 (arXiv 2604.01694). PEFT: ``LoraConfig(init_lora_weights="mica")``.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor

from engine.law import Site, Tensors, TensorSpec, Variant


class Mica(Variant):
    """A law round LoRA: half as much to learn, in the directions that the model uses least."""

    title = "MiCA"
    help = "LoRA that learns only where the model's own weights are weakest: disturbs least what the model knows."

    def refuses(self, cfg: Any, site: Site) -> str:
        if (rank := self.inner.rank(cfg, site)) > min(site.out, site.columns):
            return f"MiCA takes {rank} directions from the layer's own weight, which has {min(site.out, site.columns)}: choose a smaller `r`."
        return self.inner.refuses(cfg, site)

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        table = self.inner.tensors(cfg, site)
        a, b = table

        def start_a(tensor: Tensor) -> None:
            table[a].init(tensor)                             # drawn in vain, as in PEFT
            torch.nn.init.zeros_(tensor)

        return {a: table[a]._replace(init=start_a), b: table[b]._replace(init=torch.nn.init.zeros_, trainable=False)}

    def starts_from_base(self, cfg: Any) -> bool:
        return True

    def start(self, p: Tensors, cfg: Any, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        _, b = self.inner.tensors(cfg, site)
        if b in fresh:
            U, _, _ = torch.linalg.svd(W0, full_matrices=False)
            p[b].copy_(U[:, -self.inner.rank(cfg, site):].reshape(p[b].shape))


def wanted(cfg: Any) -> bool:
    return cfg.init_lora_weights == "mica"


VARIANT = Mica
