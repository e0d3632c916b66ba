"""Activated LoRA: a LoRA that is silent until a given sequence of tokens calls it, and works from there on.

What came before is the base's own, so that its cached keys and values serve both. Greenewald et al. 2025 (arXiv 2504.12397).
PEFT: ``LoraConfig(alora_invocation_tokens=[…])``. The pass says where in ``extras["alora_offsets"]``: for each row of the batch how many
tokens from the end on are adapted, None for none; what a text has grown by since it had ``extras["alora_length"]`` tokens comes on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.law import PeftConfig, Routed, Run, Site, Tensors, Variant


class Activated(Routed, Variant):
    """A law round LoRA that depends on the position."""

    title = "aLoRA"
    help = "A skill that sleeps until its call sign stands in the text. Cannot be baked into the model."
    why_unmerged = "It changes only the tokens after its invocation, which a weight cannot."

    def refuses(self, cfg: Any, site: Site) -> str:
        return "aLoRA sits on linear layers only." if site.kind != "linear" else self.inner.refuses(cfg, site)

    def apply(self, p: Tensors, cfg: Any, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor:
        f = self.inner.factors(p, cfg, site)
        rows, length = x.shape[:-1] if x.dim() > 2 else (x.shape[0], 1)
        grown = max(0, length - (run.extras.get("alora_length") or length))
        offsets = [n and n + grown for n in run.extras.get("alora_offsets") or ()]
        called = positions(offsets, rows, length, x.device).view(x.shape[:-1])
        seen = F.linear(x, f.A.to(x.dtype)).masked_fill(~called[..., None], 0)        # of a few numbers a token: cheaper than picking tokens
        return F.linear(seen * f.scale, f.B.to(x.dtype))


def positions(offsets: Sequence[int | None] | None, rows: int, length: int, device: torch.device) -> Tensor:
    """Which tokens are adapted, a mask ``(rows, length)``: the last ``offsets[i]`` of row i, none where it is None."""
    counts = torch.tensor([min(n or 0, length) for n in offsets or [0] * rows], device=device)
    return torch.arange(length, device=device) >= length - counts[:, None]


def invocation_offset(tokens: Tensor, invocation: Sequence[int]) -> int | None:
    """How far from the end of ``tokens`` ``(seq,)`` the last occurrence of ``invocation`` begins; None if it does not occur."""
    if len(invocation) > len(tokens):
        return None
    hits = (tokens.unfold(0, len(invocation), 1) == torch.as_tensor(list(invocation), device=tokens.device)).all(1).nonzero()
    return len(tokens) - int(hits[-1]) if len(hits) else None


def calculate_alora_offsets(peft_config: Mapping[str, PeftConfig], active_adapter: str, input_ids: Tensor | None,
                            adapter_names: Sequence[str] | None = None) -> list[int | None]:
    """For each row of ``input_ids`` ``(batch, seq)`` where its adapter's invocation last begins (PEFT function of the same name).

    Rows of ``"__base__"``, of unknown adapters and of those that are no aLoRA get None.
    """
    names = adapter_names or [active_adapter] * (0 if input_ids is None else len(input_ids))
    calls = [getattr(peft_config.get(name), "alora_invocation_tokens", None) for name in names]
    return [invocation_offset(row, call) if call else None for row, call in zip(input_ids if input_ids is not None else [], calls)]


def wanted(cfg: Any) -> bool:
    return bool(cfg.alora_invocation_tokens)


VARIANT = Activated
