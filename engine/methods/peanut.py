"""PEANuT: ``ΔW = s · B · f(W0)``, where f is a small network that reads the weight itself.

Zhong et al. 2024 (arXiv 2410.01870). PEFT class ``PeanutConfig``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import Factors, Method, Site, TargetedConfig, Tensors, TensorSpec, kaiming_uniform
from engine.specs.fields import knob


@dataclass
class PeanutConfig(TargetedConfig):
    """Settings of PEANuT, by PEFT's names and defaults.

    Raises:
        ValueError: a rank below one, a negative depth, or an activation that transformers does not know.
    """

    peft_type: ClassVar[str] = "PEANUT"

    r: int = knob(32, label="Capacity", term="r", low=1, high=1024, help="Width of the small network. Larger files, slower.")
    depth: int = knob(0, label="Depth", term="depth", low=0, high=16, advanced=True, help="Further layers of the network on each side.")
    act_fn: str = knob("relu", label="Bend", term="act_fn", advanced=True, help="Non-linearity of the network, by its name in transformers.")
    scaling: float = knob(1.0, label="Loudness", term="scaling", low=0, high=1000, advanced=True, help="Scales the whole adapter.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True, help="Otherwise it starts at random.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r <= 0:
            raise ValueError("`r` must be a positive integer.")
        if self.depth < 0:
            raise ValueError("`depth` can only be a non-negative integer.")
        activation(self.act_fn)


class Peanut(Method):
    """Parameter-efficient adaptation with weight-aware neural tweakers."""

    title = "PEANuT"
    help = "A small network makes the change out of the layer's own weight. Small files, bends more than LoRA; slower to teach."
    config = PeanutConfig
    prefix = "peanut_"
    begins_at_base = False
    needs_base = True

    def tensors(self, cfg: PeanutConfig, site: Site) -> dict[str, TensorSpec]:
        r, blocks = cfg.r, [f"peanut_{side}.{i}.weight" for side in ("encoders", "decoders") for i in range(cfg.depth)]

        def start_a(A: Tensor) -> None:
            for shape in ((r, site.out), *[(r, r)] * len(blocks), (site.out, r)):
                kaiming_uniform(torch.empty(shape))           # PEFT draws everything once before it draws for good
            kaiming_uniform(A)

        return {"peanut_A.weight": TensorSpec((r, site.out), start_a),
                **{name: TensorSpec((r, r), kaiming_uniform) for name in blocks},
                "peanut_B.weight": TensorSpec((site.out, r), torch.nn.init.zeros_ if cfg.init_weights else kaiming_uniform)}

    def low_rank(self, p: Tensors, cfg: PeanutConfig, site: Site, W0: Tensor) -> Factors:
        A, bend = p["peanut_A.weight"], activation(cfg.act_fn)
        h = bend(W0.T.to(A.dtype) @ A.T)                      # (columns, r)
        skipped = []
        for i in range(cfg.depth):
            skipped.append(h)
            h = bend(h @ p[f"peanut_encoders.{i}.weight"].T)
        for i in range(cfg.depth):
            h = bend(h @ p[f"peanut_decoders.{i}.weight"].T) + skipped.pop()
        return Factors(h.T, p["peanut_B.weight"], cfg.scaling)

    def gain(self, p: Tensors, cfg: PeanutConfig, site: Site, W0: Tensor) -> tuple[Tensor, Factors] | None:
        if site.groups > 1:
            return None
        factors = self.low_rank(p, cfg, site, W0)
        return factors.B.new_ones(site.out), factors

    def delta(self, p: Tensors, cfg: PeanutConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        f = self.low_rank(p, cfg, site, W0)
        return f.scale * (f.B @ f.A)


@cache
def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name in transformers. Raises `ValueError` if there is none."""
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise ValueError(f"Unsupported `act_fn`: {name}. Must be one of {sorted(ACT2FN)}.")
    return ACT2FN[name]


METHOD = Peanut()
