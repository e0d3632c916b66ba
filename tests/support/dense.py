"""An outsider's method, as somebody else's package would add it: ΔW and Δb as plain dense tensors, no factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from engine.law import Method, TargetedConfig, TensorSpec
from engine.methods.registry import register_method


@dataclass
class DenseConfig(TargetedConfig):
    peft_type: ClassVar[str] = "TEST_DENSE"
    start: float = 0.0


class Dense(Method):
    title = "Dense"
    help = "Learns the whole difference."
    config = DenseConfig
    prefix = "dense_"

    def refuses(self, cfg, site):
        return ""

    def tensors(self, cfg, site):
        def fill(tensor):
            torch.nn.init.constant_(tensor, cfg.start)

        table = {"dense_delta": TensorSpec((site.out, site.columns), fill)}
        return table | ({"dense_bias.weight": TensorSpec((site.out,), fill)} if site.has_bias else {})

    def delta(self, p, cfg, site, W0=None):
        return p["dense_delta"]

    def bias_delta(self, p, cfg, site, b0=None, W0=None):
        return p.get("dense_bias.weight")


register_method(Dense())
