"""IA³: a layer's outputs (bias and all), or a feed-forward layer's inputs, are multiplied one by one with a learned vector.

Liu et al. 2022 (arXiv 2205.05638). PEFT class ``IA3Config``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import MapMethod, Site, TargetedConfig, Tensors, TensorSpec
from engine.specs.fields import knob

# by model family: (target_modules, of these the feed-forward ones), as PEFT chooses where they are left open
_FAMILIES: dict[str, tuple[list[str], list[str]]] = {
    "t5": (["k", "v", "wo"], ["wo"]), "mt5": (["k", "v", "wi_1"], []), "mixtral": (["k_proj", "v_proj", "w2"], ["w2"]),
    "gptj": (["q_proj", "v_proj", "fc_out"], ["fc_out"]), "gpt_neo": (["q_proj", "v_proj", "c_proj"], ["c_proj"]),
    "opt": (["q_proj", "k_proj", "fc2"], ["fc2"]), "bart": (["q_proj", "v_proj", "fc2"], ["fc2"]), "phi": (["q_proj", "v_proj", "fc2"], ["fc2"]),
    "bloom": (["query_key_value", "mlp.dense_4h_to_h"], ["mlp.dense_4h_to_h"]),
    "deberta-v2": (["key_proj", "value_proj", "output.dense"], ["output.dense"]), "deberta": (["in_proj", "output.dense"], ["output.dense"]),
    **dict.fromkeys(["gpt2", "gpt_bigcode"], (["c_attn", "mlp.c_proj"], ["mlp.c_proj"])),
    **dict.fromkeys(["roberta", "bert"], (["key", "value", "output.dense"], ["output.dense"])),
    **dict.fromkeys(["gpt_neox", "falcon", "RefinedWeb", "RefinedWebModel"], (["query_key_value", "dense_4h_to_h"], ["dense_4h_to_h"])),
    **dict.fromkeys(["llama", "mistral"], (["k_proj", "v_proj", "down_proj"], ["down_proj"])),
    **dict.fromkeys(["llama4", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"], (["q_proj", "v_proj", "down_proj"], ["down_proj"])),
}


@dataclass
class IA3Config(TargetedConfig):
    """Settings of IA³, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "IA3"

    feedforward_modules: list[str] | str | None = knob(
        None, label="Feed-forward layers", term="feedforward_modules", advanced=True,
        help="Those of the layers whose inputs are scaled instead of their outputs: endings of names, or a regular expression.")
    init_ia3_weights: bool = knob(True, label="Start without effect", term="init_ia3_weights", advanced=True,
                                  help="Off: starts at random (for tests).")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.feedforward_modules, (list, tuple, set, frozenset)):
            self.feedforward_modules = sorted(set(self.feedforward_modules))
            if isinstance(self.target_modules, list) and not set(self.feedforward_modules) <= set(self.target_modules):
                raise ValueError("`feedforward_modules` should be a subset of `target_modules`")


class Ia3(MapMethod):
    """Infused adapter by inhibiting and amplifying inner activations."""

    title = "IA³"
    help = "Turns single channels up or down: the smallest files there are, free once baked in. Holds very little."
    config = IA3Config
    prefix = "ia3_"
    layers = {family: targets for family, (targets, _) in _FAMILIES.items()}

    def settle(self, cfg: IA3Config, model_type: str | None) -> None:
        super().settle(cfg, model_type)
        if cfg.feedforward_modules is None and model_type in _FAMILIES:
            cfg.feedforward_modules = sorted(_FAMILIES[model_type][1])
        if cfg.feedforward_modules is None:
            raise ValueError("Please specify `feedforward_modules` in `peft_config`")

    def acts_in(self, cfg: IA3Config, site: Site) -> bool:
        if isinstance(cfg.feedforward_modules, str):
            return re.fullmatch(cfg.feedforward_modules, site.path) is not None
        return any(site.path.endswith(name) for name in cfg.feedforward_modules or ())     # any ending, as in PEFT: files depend on it

    def acts_out(self, cfg: IA3Config, site: Site) -> bool:
        return not self.acts_in(cfg, site)

    def turns_bias(self, cfg: IA3Config, site: Site) -> bool:
        return True

    def refuses(self, cfg: IA3Config, site: Site) -> str:
        return "Words cannot be scaled; leave it out of `feedforward_modules`." if site.kind == "embedding" and self.acts_in(cfg, site) else ""

    def tensors(self, cfg: IA3Config, site: Site) -> dict[str, TensorSpec]:
        taps = math.prod(site.kernel)
        many, seen = (site.columns // taps * site.groups, True) if self.acts_in(cfg, site) else (site.out, False)
        shape = (1, many, *(1,) * len(site.kernel)) if site.kernel else (1, many) if seen else (many, 1)

        def start(scale: Tensor) -> None:
            torch.nn.init.normal_(scale)   # PEFT draws before it sets: the same seed must give the same adapter
            if cfg.init_ia3_weights:
                torch.nn.init.ones_(scale)

        return {"ia3_l": TensorSpec(shape, start)}

    def turn_in(self, p: Tensors, cfg: IA3Config, site: Site, x: Tensor, transposed: bool = False) -> Tensor:
        scale = p["ia3_l"].flatten()
        if not site.kernel:
            return (x * scale).to(x.dtype)
        by_channel = x.reshape(site.groups, -1, len(scale) // site.groups, math.prod(site.kernel))    # each group of rows sees its own channels
        return (by_channel * scale.view(site.groups, 1, -1, 1)).reshape(x.shape).to(x.dtype)

    def turn_out(self, p: Tensors, cfg: IA3Config, site: Site, y: Tensor) -> Tensor:
        return (y * p["ia3_l"].flatten()).to(y.dtype)


METHOD = Ia3()
