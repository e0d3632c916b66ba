"""X-LoRA: a small network looks at what the model makes of a text, and says for every word how strongly each of several LoRAs is heard.

Buehler & Buehler 2024 (arXiv 2402.07148). PEFT class ``XLoraConfig``. The model is run twice (`engine.model.xlora`): without the experts, or
with all of them equally loud, for what the network looks at, its last hidden states; and with them as the network says.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.law import Factors, Gate, PeftConfig, Router, Run, Site, Tensors, TensorSpec, kaiming_uniform
from engine.specs.fields import knob

CLASSIFIER, SCALINGS = "internal_xlora_classifier.layers", "xlora_scalings"


@dataclass
class XLoraConfig(PeftConfig):
    """Settings of X-LoRA, by PEFT's names and defaults. ``adapters``: a name → folder or Hub address of each expert, in order."""

    peft_type: ClassVar[str] = "XLORA"

    hidden_size: int | None = knob(None, label="Width of the model", term="hidden_size", low=1, advanced=True, help="That of its hidden states.")
    adapters: dict[str, str] | None = field(default=None)
    enable_softmax: bool = knob(True, label="Shares", term="enable_softmax", advanced=True, help="The strengths of all experts add up to one.")
    enable_softmax_topk: bool = knob(False, label="Shares of the best", term="enable_softmax_topk", advanced=True,
                                     help="Those of the best experts add up to one; needs a number of best ones.")
    layerwise_scalings: bool = knob(False, label="By layer", term="layerwise_scalings", advanced=True, help="Each layer has strengths of its own.")
    xlora_depth: int = knob(1, label="Depth of the network", term="xlora_depth", low=1, high=16, help="Layers of the network that decides.")
    xlora_size: int = knob(2048, label="Width of the network", term="xlora_size", low=1, help="Of its inner layers, where there are any.")
    xlora_dropout_p: float = knob(0.2, label="Forgetfulness", term="xlora_dropout_p", low=0, high=0.9, advanced=True,
                                  help="Share of its inner values that training drops.")
    use_trainable_adapters: bool = knob(False, label="Teach the experts too", term="use_trainable_adapters", advanced=True,
                                        help="Otherwise only the network that decides is taught.")
    softmax_temperature: float = knob(1.0, label="Softness", term="softmax_temperature", low=0, advanced=True,
                                      help="Low: one expert speaks alone; high: all alike.")
    top_k_lora: int | None = knob(None, label="Best experts", term="top_k_lora", low=1, advanced=True, help="Only so many are heard for each word.")
    scaling_pass_value: float = knob(0.0, label="Strength while looking", term="scaling_pass_value", advanced=True,
                                     help="How strongly all experts are heard in the run that the network looks at.")
    global_scaling_weight: float = knob(1.0, label="Loudness", term="global_scaling_weight", advanced=True, help="Scales all experts.")

    def __post_init__(self) -> None:
        if self.hidden_size is None:
            warnings.warn("No value was provided for `hidden_size`. This will be set to 4096 by default, please ensure that this is correct.",
                          stacklevel=3)
            self.hidden_size = 4096
        if self.adapters is None:
            warnings.warn("No value was provided for `adapters`. This will be set to empty, please ensure that this is correct.", stacklevel=3)
            self.adapters = {}
        if self.enable_softmax_topk and self.top_k_lora is None:
            warnings.warn("`enable_softmax_topk` enabled `top_k_lora` is not set", stacklevel=3)
        if self.enable_softmax_topk and self.enable_softmax:
            warnings.warn("`enable_softmax_topk` and `enable_softmax` are both enabled. This will result in worse performance.", stacklevel=3)
        if self.top_k_lora is not None and self.top_k_lora < 1:
            warnings.warn("`top_k_lora` value must be at least 1.", stacklevel=3)
        if self.xlora_depth < 1:
            raise ValueError("X-LoRA depth must be strictly positive.")


class XLora(Router):
    """The router of every layer that has an expert. Its tensors are those of the one network, which all layers share."""

    title = "X-LoRA"
    help = "Several finished skills at once, and a small network that learns which of them a word needs. Every answer takes two passes."
    config = XLoraConfig
    prefix = "internal_xlora_classifier"
    why_unmerged = "How strongly each expert is heard depends on the text."

    def refuses(self, cfg: XLoraConfig, site: Site) -> str:
        return "" if site.kind in ("linear", "embedding") else "X-LoRA's experts sit on linear layers and embeddings only."

    def tensors(self, cfg: XLoraConfig, site: Site) -> dict[str, TensorSpec]:
        return {}

    def shared(self, cfg: XLoraConfig, sites: Sequence[Site]) -> dict[str, TensorSpec]:
        widths = [cfg.hidden_size, *[cfg.xlora_size] * (cfg.xlora_depth - 1), len(cfg.adapters) * (len(sites) if cfg.layerwise_scalings else 1)]
        between = 3 if cfg.xlora_dropout_p > 0 else 2         # places in PEFT's list of layers: one each for ReLU and dropout
        table: dict[str, TensorSpec] = {}
        for i, (columns, out) in enumerate(zip(widths, widths[1:])):
            bound = 1 / math.sqrt(columns)
            table[f"{CLASSIFIER}.{i * between}.weight"] = TensorSpec((out, columns), kaiming_uniform)
            table[f"{CLASSIFIER}.{i * between}.bias"] = TensorSpec((out,), lambda b, bound=bound: torch.nn.init.uniform_(b, -bound, bound))
        return table

    def scalings(self, p: Tensors, cfg: XLoraConfig, hidden: Tensor, layers: int, training: bool) -> Tensor:
        """Strengths ``(batch, seq, layers, experts)`` that the network gives to hidden states ``(batch, seq, hidden_size)``."""
        names = [f"{CLASSIFIER}.{i}" for i in sorted({int(name.split(".")[2]) for name in p})]
        x = hidden.to(p[f"{names[0]}.weight"].dtype)
        for i, name in enumerate(names):
            x = F.linear(x if i == 0 else F.dropout(F.relu(x), cfg.xlora_dropout_p, training), p[f"{name}.weight"], p[f"{name}.bias"])
        x = x.unflatten(-1, (layers, -1)) if cfg.layerwise_scalings else x.unsqueeze(2).expand(-1, -1, layers, -1)
        return torch.softmax(x / cfg.softmax_temperature, -1) if cfg.enable_softmax else x

    def route(self, p: Tensors, cfg: XLoraConfig, site: Site, beside: Mapping[str, Factors]) -> tuple[dict[str, Factors], Gate]:
        """The experts are called by their numbers."""
        experts = {name: f for name, f in beside.items() if name.isdigit()}
        numbers = [int(name) for name in experts]

        def gate(x: Tensor, run: Run) -> Tensor | None:
            if SCALINGS not in run.extras:
                return None
            return best(run.extras[SCALINGS][:, :, site.index], cfg)[..., numbers] * cfg.global_scaling_weight

        return experts, gate


def best(strengths: Tensor, cfg: XLoraConfig) -> Tensor:
    """Strengths ``(batch, seq, experts)`` with those of all but the best experts at zero, if the config asks for that."""
    if cfg.top_k_lora is not None:
        top = strengths.topk(min(cfg.top_k_lora, strengths.shape[-1]), -1).indices
        strengths = torch.zeros_like(strengths).scatter(-1, top, strengths.gather(-1, top))
    if cfg.enable_softmax_topk:
        strengths = strengths.masked_fill(strengths == 0, -torch.inf).softmax(-1).nan_to_num(0.0)
    return strengths


METHOD = XLora()
