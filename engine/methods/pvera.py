"""PVeRA: VeRA with noise inside: ``ΔW·x = b ∘ B·(μ + ε ∘ exp ν/2)`` with ``(μ, ν) = d ∘ A·x`` and ε normal. Its mean is what is merged.

arXiv 2512.07703. PEFT class ``PveraConfig``.
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
class PveraConfig(TargetedConfig):
    """Settings of PVeRA, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "PVERA"
    positive = ("r",)

    r: int = knob(256, label="Capacity", term="r", low=1, high=4096,
                  help="How much the skill can hold; far larger than for LoRA, as each step costs two numbers only.")
    projection_prng_key: int = knob(0, label="Seed of the projections", term="projection_prng_key", advanced=True,
                                    help="Which random projections all layers share; the same number makes them again.")
    save_projection: bool = knob(True, label="Store the projections", term="save_projection", advanced=True,
                                 help="Writes the random projections into the file; without, they are made again from their seed.")
    pvera_dropout: float = knob(0.0, label="Forgetfulness", term="pvera_dropout", low=0, high=0.9, advanced=True,
                                help="Share of inputs dropped while training; a little helps with very few examples.")
    d_initial: float = knob(0.1, label="First size", term="d_initial", advanced=True, help="Where the inner scales begin; 0.1 or less.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True,
                              help="Off: the adapter starts with a random effect.")
    sample_at_inference: bool = knob(False, label="Draw when answering, too", term="sample_at_inference", advanced=True,
                                     help="On: answers vary from one to the next. Off: always the learned mean.")
    generator_seed: int | None = knob(None, label="Seed of the draws", term="generator_seed", advanced=True,
                                      help="Makes the draws repeatable; empty: they follow the program's own chance.")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    bias: str = "none"


class Pvera(Method):
    """Probabilistic VeRA."""

    title = "PVeRA"
    help = "VeRA that trains with noise, which helps with few examples. Tiny files."
    config = PveraConfig
    prefix = "pvera_"
    layers = {**QV_OF_PHI, "dinov2": ["query", "value"]}
    dropped = "pvera_dropout"
    light = True                           # where it is asked to draw when answering; otherwise it runs by its factors

    def refuses(self, cfg: PveraConfig, site: Site) -> str:
        return "" if site.kind == "linear" else "PVeRA draws noise for each position, which is made for linear layers only."

    def shared(self, cfg: PveraConfig, sites: Sequence[Site]) -> dict[str, TensorSpec]:
        shapes = {"pvera_A": (2 * cfg.r, max(s.columns for s in sites)), "pvera_B": (max(s.out for s in sites), cfg.r)}
        return seeded(shapes, cfg.projection_prng_key, lambda t, generator: kaiming_uniform_(t, generator=generator), cfg.save_projection)

    def tensors(self, cfg: PveraConfig, site: Site) -> dict[str, TensorSpec]:
        ones, zeros, normal = torch.nn.init.ones_, torch.nn.init.zeros_, torch.nn.init.normal_
        table = {"pvera_lambda_b": TensorSpec((site.out,), zeros if cfg.init_weights else ones),
                 "pvera_lambda_d": TensorSpec((2 * cfg.r,), (lambda t: t.fill_(cfg.d_initial)) if cfg.init_weights else normal)}
        if cfg.generator_seed is not None:                    # where the draws have got to lives beside the weights, as the law has no state
            state = torch.Generator().manual_seed(cfg.generator_seed).get_state()
            table["pvera_generator"] = TensorSpec(tuple(state.shape), lambda t: t.copy_(state), trainable=False, dtype=torch.uint8, saved=False)
        return table

    def mean(self, p: Tensors, cfg: PveraConfig, site: Site) -> Factors:
        """The low-rank form of what is heard without noise."""
        A = p["pvera_lambda_d"][:cfg.r, None] * p["pvera_A"][:cfg.r, :site.columns]
        return Factors(A, p["pvera_lambda_b"][:, None] * p["pvera_B"][:site.out], 1.0)

    def factors(self, p: Tensors, cfg: PveraConfig, site: Site) -> Factors | None:
        return None if cfg.sample_at_inference else self.mean(p, cfg, site)

    def delta(self, p: Tensors, cfg: PveraConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        f = self.mean(p, cfg, site)
        return f.B @ f.A

    def apply(self, p: Tensors, cfg: PveraConfig, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor:
        A, d, B, b = (p[name].to(x.dtype) for name in ("pvera_A", "pvera_lambda_d", "pvera_B", "pvera_lambda_b"))
        mean, log_variance = (F.linear(x, A[:, :site.columns]) * d).chunk(2, dim=-1)
        if run.training or cfg.sample_at_inference:
            mean = mean + self._noise(p, mean) * torch.exp(0.5 * log_variance)
        return F.linear(mean, B[:site.out]) * b

    @staticmethod
    def _noise(p: Tensors, like: Tensor) -> Tensor:
        if "pvera_generator" not in p:
            return torch.randn_like(like)
        generator = torch.Generator()
        generator.set_state(p["pvera_generator"].detach().cpu())
        noise = torch.randn(like.shape, dtype=like.dtype, generator=generator).to(like.device)
        with torch.no_grad():
            p["pvera_generator"].copy_(generator.get_state())
        return noise


METHOD = Pvera()
