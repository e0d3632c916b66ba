"""RoAd: a layer's outputs are turned and scaled in pairs, ``y ← R·y``, the bias with them.

Liao and Monz 2024 (arXiv 2409.00119). PEFT class ``RoadConfig``. A pair is an entry of the first half of a group and its partner in the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import MapMethod, Site, TargetedConfig, Tensors, TensorSpec
from engine.specs.fields import knob

_ANGLES = {"road_1": 1, "road_2": 2, "road_4": 4}             # of a pair: for both, for each one, for each entry of its matrix


@dataclass
class RoadConfig(TargetedConfig):
    """Settings of RoAd, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "ROAD"

    variant: str = knob("road_1", label="Freedom of a pair", term="variant", choices=tuple(_ANGLES),
                        help="road_1 turns and scales a pair; road_2 lets its two numbers differ; road_4 is any 2×2 matrix.")
    group_size: int = knob(64, label="Group", term="group_size", low=2, advanced=True,
                           help="Numbers among which pairs are made; even, and must divide the layer's output. Only matters for speed.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True, help="Off: starts at random (for tests).")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.variant = getattr(self.variant, "value", self.variant)
        if self.variant not in _ANGLES:
            raise ValueError(f"Invalid variant {self.variant} specified. Please choose from road_1, road_2 or road_4")
        if self.group_size <= 0 or self.group_size % 2:
            raise ValueError(f"The group_size must be divisible by 2 when using RoadLayer, but got {self.group_size}.")


class Road(MapMethod):
    """2-D rotary adaptation."""

    title = "RoAd"
    help = "Turns a layer's outputs in pairs: tiny files, nearly free to run. Holds little."
    config = RoadConfig
    prefix = "road_"

    def acts_out(self, cfg: RoadConfig, site: Site) -> bool:
        return True

    def turns_bias(self, cfg: RoadConfig, site: Site) -> bool:
        return True

    def refuses(self, cfg: RoadConfig, site: Site) -> str:
        if site.out // site.groups % cfg.group_size:           # a pair must not join two groups of a convolution
            return f"Its output of {site.out // site.groups} must be divisible by group_size ({cfg.group_size})."
        return ""

    def tensors(self, cfg: RoadConfig, site: Site) -> dict[str, TensorSpec]:
        def start(mean: float):
            return lambda t: torch.nn.init.constant_(t, mean) if cfg.init_weights else torch.nn.init.normal_(t, mean=mean, std=0.5)

        shape = (site.out // 2 * _ANGLES[cfg.variant],)
        return {"road_theta": TensorSpec(shape, start(0.0)), "road_alpha": TensorSpec(shape, start(1.0))}

    def columns(self, p: Tensors, cfg: RoadConfig) -> tuple[Tensor, Tensor]:
        """α·cos θ and α·sin θ for each output, by group and half: ``(groups, 2 or 1, group_size / 2)``."""
        theta, alpha = (p[name].view(-1, _ANGLES[cfg.variant], cfg.group_size // 2) for name in ("road_theta", "road_alpha"))
        return (alpha[:, :2] * theta[:, :2].cos()), (alpha[:, -2:] * theta[:, -2:].sin())

    def turn_out(self, p: Tensors, cfg: RoadConfig, site: Site, y: Tensor) -> Tensor:
        half = cfg.group_size // 2         # one number an output: gradients are then summed over rows alone, in one sweep
        straight, across = (each.expand(-1, 2, -1) for each in self.columns(p, cfg))
        across = (across * across.new_tensor([[-1.0], [1.0]])).flatten()
        swapped = y.unflatten(-1, (-1, 2, half)).flip(-2).flatten(-3)
        return torch.addcmul(swapped * across, y, straight.flatten()).to(y.dtype)                # (−second, first) · across + y · straight


METHOD = Road()
