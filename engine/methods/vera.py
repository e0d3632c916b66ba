"""VeRA: ``ΔW = diag(b) · B · diag(d) · A``: only b and d learn; A and B are random and the same for all layers, each of which uses a corner.

Kopiczko et al. 2023 (arXiv 2310.11454). PEFT class ``VeraConfig``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.init import kaiming_uniform_

from engine.configs import QV_OF_PHI
from engine.law import Factors, Method, Run, Site, TargetedConfig, Tensors, TensorSpec, seeded
from engine.specs.fields import knob


@dataclass
class VeraConfig(TargetedConfig):
    """Settings of VeRA, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "VERA"
    positive = ("r",)

    r: int = knob(256, label="Capacity", term="r", low=1, high=4096,
                  help="How much the skill can hold; far larger than for LoRA, as each step costs one number only.")
    projection_prng_key: int = knob(0, label="Seed of the projections", term="projection_prng_key", advanced=True,
                                    help="Which random projections all layers share; the same number makes them again.")
    save_projection: bool = knob(True, label="Store the projections", term="save_projection", advanced=True,
                                 help="Writes the random projections into the file; without, they are made again from their seed.")
    vera_dropout: float = knob(0.0, label="Forgetfulness", term="vera_dropout", low=0, high=0.9, advanced=True,
                               help="Share of inputs dropped while training; a little helps with very few examples.")
    d_initial: float = knob(0.1, label="First size", term="d_initial", advanced=True, help="Where the inner scales begin; 0.1 or less.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True,
                              help="Off: the adapter starts with a random effect.")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    bias: str = "none"


class Vera(Method):
    """Vector-based Random matrix Adaptation: two vectors a layer."""

    title = "VeRA"
    help = "Tiny files: only two vectors a layer are learned. For styles rather than facts."
    config = VeraConfig
    prefix = "vera_"
    layers = QV_OF_PHI
    dropped = "vera_dropout"

    def refuses(self, cfg: VeraConfig, site: Site) -> str:
        return "VeRA mixes all channels, which a grouped convolution cannot." if site.groups > 1 else ""

    def shared(self, cfg: VeraConfig, sites: Sequence[Site]) -> dict[str, TensorSpec]:
        shapes = {"vera_A": (cfg.r, max(s.columns for s in sites)), "vera_B": (max(s.out for s in sites), cfg.r)}
        return seeded(shapes, cfg.projection_prng_key, lambda t, generator: kaiming_uniform_(t, generator=generator), cfg.save_projection)

    def tensors(self, cfg: VeraConfig, site: Site) -> dict[str, TensorSpec]:
        if not cfg.init_weights:
            return {"vera_lambda_b": TensorSpec((site.out,), torch.nn.init.ones_), "vera_lambda_d": TensorSpec((cfg.r,), torch.nn.init.normal_)}
        return {"vera_lambda_b": TensorSpec((site.out,), torch.nn.init.zeros_),
                "vera_lambda_d": TensorSpec((cfg.r,), lambda t: t.fill_(cfg.d_initial))}

    def factors(self, p: Tensors, cfg: VeraConfig, site: Site) -> Factors:
        return Factors(p["vera_lambda_d"][:, None] * p["vera_A"][:, :site.columns], p["vera_lambda_b"][:, None] * p["vera_B"][:site.out], 1.0)

    def delta(self, p: Tensors, cfg: VeraConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        f = self.factors(p, cfg, site)
        return f.B @ f.A

    def apply(self, p: Tensors, cfg: VeraConfig, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor | None:
        """Scales the activations, so that training needs no gradient of the projections."""
        if site.kind != "linear":
            return None
        A, d, B, b = (p[name].to(x.dtype) for name in ("vera_A", "vera_lambda_d", "vera_B", "vera_lambda_b"))
        return F.linear(F.linear(x, A[:, :site.columns]) * d, B[:site.out]) * b


METHOD = Vera()
