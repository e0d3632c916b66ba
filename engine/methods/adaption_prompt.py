"""LLaMA-Adapter: in the topmost layers, attention also looks at learned tokens, through a gate that begins closed.

Zhang et al. 2023 (arXiv 2303.16199). PEFT: ``AdaptionPromptConfig``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import PeftConfig, TensorSpec
from engine.specs.fields import knob

TOKENS, GATE = "adaption_prompt", "adaption_gate"


@dataclass
class AdaptionPromptConfig(PeftConfig):
    """Settings of adaption prompts (PEFT class of the same name)."""

    peft_type: ClassVar[str] = "ADAPTION_PROMPT"

    target_modules: str | None = knob(None, label="Layers", term="target_modules", advanced=True, help="Name of the attention within a block.")
    adapter_len: int | None = knob(None, label="Learned tokens", term="adapter_len", low=1, help="How many tokens each layer also looks at.")
    adapter_layers: int | None = knob(None, label="Layers that learn", term="adapter_layers", low=1, help="How many of the topmost layers learn.")

    def __post_init__(self) -> None:
        for name in ("adapter_len", "adapter_layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, not {value}.")

    @property
    def is_adaption_prompt(self) -> bool:
        return True


class AdaptionPrompt:
    """The law: ``attention + strength · gate · softmax(q Kᵀ / √d) V`` with K and V the base's own view of the learned tokens."""

    title = "LLaMA-Adapter"
    help = "Lets the topmost layers look at a few learned tokens. Small files, a gentle start; only for a few families of models."
    config = AdaptionPromptConfig

    def tensors(self, cfg: AdaptionPromptConfig, width: int) -> dict[str, TensorSpec]:
        """The tensors at one attention whose inputs are ``width`` wide."""
        return {TOKENS: TensorSpec((1, cfg.adapter_len, width), torch.nn.init.normal_), GATE: TensorSpec((1,), torch.nn.init.zeros_)}

    def looked_at(self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor) -> Tensor:
        """What is seen of the learned tokens.

        Args:
            query: ``(batch, heads, T, d)``. key, value: ``(1, heads or groups of heads, tokens, d)``.

        Returns:
            ``(batch, T, heads · d)`` in the query's dtype; the softmax is taken in float32.
        """
        groups = query.shape[1] // key.shape[1]
        key, value = (t.to(query.dtype).repeat_interleave(groups, dim=1) for t in (key, value))
        scores = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(query.shape[3]), dim=-1, dtype=torch.float32)
        return ((gate * scores.to(query.dtype)).to(query.dtype) @ value).transpose(1, 2).flatten(2)


METHOD = AdaptionPrompt()
