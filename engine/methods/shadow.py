"""ShadowPEFT: a small network runs beside the model; before every block the two are compared, and the difference is fed back in.

With h what comes out of a block and s the shadow's state: ``h ← h + α · W_up W_down (h − s)`` before a block, and after it
``s ← (1 − g) ∘ s + g ∘ T(h)``, ``g = σ(G(h))``, with T and G small two-layer networks. PEFT class ``ShadowConfig``. The state begins at what
a backbone of its own makes of the input; building and running that is `engine.model.shadow`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.law import TargetedConfig, Tensors, TensorSpec, kaiming_uniform
from engine.specs.fields import knob

DOWN, UP, TRANSFORM, GATE = "shadow_down", "shadow_up", "shadow_update_transform", "shadow_update_gate"


@dataclass
class ShadowConfig(TargetedConfig):
    """Settings of ShadowPEFT, by PEFT's names and defaults; ``target_modules`` are whole blocks, all of them where it is left open."""

    peft_type: ClassVar[str] = "SHADOW"
    positive = ("r",)

    r: int = knob(8, label="Capacity", term="r", low=1, high=1024, help="Width of what is fed back into each block.")
    shadow_alpha: float = knob(0.1, label="Loudness", term="shadow_alpha", low=0, advanced=True, help="How strongly the difference is fed back.")
    shadow_dropout: float = knob(0.2, label="Forgetfulness", term="shadow_dropout", low=0, high=0.9, advanced=True,
                                 help="Share of the difference that training drops.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True, help="Otherwise it starts at random.")
    shadow_model: str = knob("mirror", label="Shadow", term="shadow_model", advanced=True,
                             help="“mirror”: a small one of the model's own kind, from scratch; or the folder of a finished small model.")
    shadow_num_hidden_layers: int | None = knob(None, label="Depth of the shadow", term="shadow_num_hidden_layers", low=1, help="Blocks; empty: one.")
    shadow_hidden_size: int | None = knob(None, label="Width of the shadow", term="shadow_hidden_size", low=1, advanced=True,
                                          help="Empty: the model's own.")
    shadow_num_attention_heads: int | None = knob(None, label="Heads of the shadow", term="shadow_num_attention_heads", low=1, advanced=True,
                                                  help="Empty: as many as the model has.")
    shadow_intermediate_size: int | None = knob(None, label="Inner width of the shadow", term="shadow_intermediate_size", low=1, advanced=True,
                                                help="Empty: the model's own.")
    share_embeddings: bool = knob(True, label="The model's words", term="share_embeddings", advanced=True, help="The shadow reads the model's own.")
    update_hidden_size: int | None = knob(None, label="Width of the update", term="update_hidden_size", low=1, advanced=True,
                                          help="Empty: as the capacity.")
    auxiliary_loss_weight: float = knob(0.05, label="Own error", term="auxiliary_loss_weight", low=0, advanced=True,
                                        help="How much the error of the shadow alone counts, so that it can also stand alone.")

    def __post_init__(self) -> None:
        super().__post_init__()
        own = ("shadow_num_hidden_layers", "shadow_hidden_size", "shadow_num_attention_heads", "shadow_intermediate_size")
        if self.shadow_model != "mirror" and (chosen := [name for name in own if getattr(self, name) is not None]):
            raise ValueError(f"Explicit `shadow_model` checkpoints define their architecture; leave out {', '.join(chosen)}.")


class Shadow:
    """The law at one block, whose hidden states are ``width`` wide."""

    title = "ShadowPEFT"
    help = "A small network learns beside the model and corrects it block by block; it can also be used alone. Cannot be baked in."
    config = ShadowConfig
    prefix = "shadow_"

    def tensors(self, cfg: ShadowConfig, width: int) -> dict[str, TensorSpec]:
        inner = cfg.update_hidden_size or cfg.r

        def start_up(tensor: Tensor) -> None:                 # drawn in any case, as in PEFT
            kaiming_uniform(tensor)
            if cfg.init_weights:
                torch.nn.init.zeros_(tensor)

        table = {f"{DOWN}.weight": TensorSpec((cfg.r, width), kaiming_uniform), f"{UP}.weight": TensorSpec((width, cfg.r), start_up)}
        for name in (TRANSFORM, GATE):
            for place, columns, out in ((0, width, inner), (2, inner, width)):
                bound = 1 / math.sqrt(columns)
                table[f"{name}.{place}.weight"] = TensorSpec((out, columns), kaiming_uniform)
                table[f"{name}.{place}.bias"] = TensorSpec((out,), lambda b, bound=bound: torch.nn.init.uniform_(b, -bound, bound))
        return table

    def feed_back(self, p: Tensors, cfg: ShadowConfig, hidden: Tensor, state: Tensor, strength: float, training: bool) -> Tensor:
        """What the block is to see ``(batch, seq, width)``, in the dtype of ``hidden``."""
        difference = F.dropout((hidden - state).to(p[f"{DOWN}.weight"].dtype), cfg.shadow_dropout, training)
        correction = F.linear(F.linear(difference, p[f"{DOWN}.weight"]) * (strength * cfg.shadow_alpha), p[f"{UP}.weight"])
        return hidden + correction.to(hidden.dtype)

    def update(self, p: Tensors, hidden: Tensor, state: Tensor) -> Tensor:
        """The state after the block, in the dtype of ``state``."""
        seen = hidden.to(p[f"{DOWN}.weight"].dtype)

        def small(name: str) -> Tensor:
            inner = F.gelu(F.linear(seen, p[f"{name}.0.weight"], p[f"{name}.0.bias"]))
            return F.linear(inner, p[f"{name}.2.weight"], p[f"{name}.2.bias"])

        return torch.lerp(state.to(seen.dtype), small(TRANSFORM), torch.sigmoid(small(GATE))).to(state.dtype)


METHOD = Shadow()
