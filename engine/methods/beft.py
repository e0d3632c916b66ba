"""BEFT: nothing but a learned bias: ``y = W0·x + b0 + b``.

Huang et al. 2025 (arXiv 2509.15974). PEFT class ``BeftConfig``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import Method, Site, TargetedConfig, Tensors, TensorSpec
from engine.specs.fields import knob

# by model family: what gives the values, where it is named apart from the rest; as PEFT chooses
_VALUES = {**dict.fromkeys(["opt", "gptj", "gpt_neo", "bart", "llama", "llama4", "mistral", "mixtral", "phi", "gemma", "gemma2", "gemma3_text",
                            "qwen2", "qwen3"], ["v_proj"]),
           "t5": ["v"], "mt5": ["v"], "roberta": ["value"], "bert": ["value"], "deberta-v2": ["value_proj"]}


@dataclass
class BeftConfig(TargetedConfig):
    """Settings of BEFT, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "BEFT"

    init_weights: bool = knob(True, label="Standard start", term="init_weights", advanced=True,
                              help="Start without effect; off, the adapter starts with a random one.")


class Beft(Method):
    """Bias-efficient fine-tuning. A layer without a bias gets one when the adapter is baked in."""

    title = "BEFT"
    help = "A few numbers a layer. Good for a tone with very few examples; it cannot learn facts."
    config = BeftConfig
    prefix = "beft_"
    layers = _VALUES
    only_bias = True

    def refuses(self, cfg: BeftConfig, site: Site) -> str:
        return "" if site.kind in ("linear", "conv") else "BEFT learns a bias, which this kind of layer does not have."

    def tensors(self, cfg: BeftConfig, site: Site) -> dict[str, TensorSpec]:
        def start(bias: Tensor) -> None:
            torch.nn.init.normal_(bias)    # drawn in either case: the same seed must give the same adapter as in PEFT
            if cfg.init_weights:
                bias.zero_()

        return {"beft_bias": TensorSpec((1, site.out), start)}

    def delta(self, p: Tensors, cfg: BeftConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        return p["beft_bias"].new_zeros(site.out, site.columns)

    def bias_delta(self, p: Tensors, cfg: BeftConfig, site: Site, b0: Tensor | None = None, W0: Tensor | None = None) -> Tensor:
        return p["beft_bias"].flatten()


METHOD = Beft()
