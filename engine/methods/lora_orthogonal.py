"""LoRA that starts orthogonally: A and B lie in subspaces orthogonal to each other, so that B·A = 0 though neither is zero.

PEFT: ``init_lora_weights="orthogonal"`` (datta0.github.io/posts/rethink-lora-init).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.law import Site, TensorSpec, Variant

A, B = "lora_A.weight", "lora_B.weight"


class Orthogonal(Variant):
    """LoRA with another start. Embeddings start as they always do, as in PEFT."""

    title = "LoRA"
    help = "LoRA of which both halves learn from the first step."

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        table = self.inner.tensors(cfg, site)
        if site.kind == "embedding":
            return table
        rank, basis = self.inner.rank(cfg, site), {}

        def start_a(tensor: Tensor) -> None:
            table[A].init(tensor)                             # drawn first in vain, as in PEFT
            basis["Q"], _ = torch.linalg.qr(torch.randn(rank, rank))
            tensor.copy_((torch.randn(site.columns, rank // 2) @ basis["Q"][0::2]).T.reshape(tensor.shape) / 10)

        def start_b(tensor: Tensor) -> None:
            Q = basis.get("Q", torch.eye(rank))               # none if A came from a file that lacks B
            tensor.copy_((torch.randn(rank // 2, site.out).T @ Q[1::2]).reshape(tensor.shape) / 10)

        return {**table, A: TensorSpec(table[A].shape, start_a), B: TensorSpec(table[B].shape, start_b)}


def wanted(cfg: Any) -> bool:
    return cfg.init_lora_weights == "orthogonal"


VARIANT = Orthogonal
