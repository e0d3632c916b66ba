"""Uni-LoRA: ``ΔW = B · A``, every entry of A and B in all layers being one of the d numbers of a single learned vector θ, scaled.

Li et al. 2025 (arXiv 2506.00799). PEFT class ``UniLoraConfig``. Which number goes where is shuffled from a seed, each used equally often;
the scale is 1 / √(how often), so that the map from θ to all entries keeps lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from engine.law import Factors, Method, Site, TargetedConfig, Tensors, TensorSpec, check_places
from engine.specs.fields import knob


@dataclass
class UniLoraConfig(TargetedConfig):
    """Settings of Uni-LoRA, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "UNILORA"
    positive = ("r", "theta_d_length")

    r: int = knob(4, label="Rank", term="r", low=1, high=1024, help="The rank of each layer's change; it does not change the size of the file.")
    theta_d_length: int = knob(256, label="Capacity", term="theta_d_length", low=1, high=10_000_000,
                               help="How many numbers are learned for the whole model.")
    proj_seed: int = knob(42, label="Seed of the places", term="proj_seed", advanced=True,
                          help="Which number goes where; the same seed finds the places again.")
    unilora_dropout: float = knob(0.0, label="Forgetfulness", term="unilora_dropout", low=0, high=0.9, advanced=True,
                                  help="Share of inputs dropped while training; a little helps with very few examples.")
    init_theta_d_bound: float = knob(0.02, label="First size", term="init_theta_d_bound", advanced=True,
                                     help="The numbers start at random within these bounds; never at zero.")
    save_indices: bool = knob(False, label="Store the places", term="save_indices", advanced=True,
                              help="Writes the places into the file; without, they are found again from their seed.")
    init_weights: bool = True
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    bias: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.unilora_dropout <= 1.0:
            raise ValueError(f"`unilora_dropout` should be between 0.0 and 1.0, got {self.unilora_dropout}.")
        if self.init_theta_d_bound <= 0:
            raise ValueError(f"`init_theta_d_bound` should be a positive float, got {self.init_theta_d_bound}.")


class UniLora(Method):
    """One vector for the whole model."""

    title = "Uni-LoRA"
    help = "One short list of numbers for the whole model: the tiniest files. For styles rather than facts."
    config = UniLoraConfig
    prefix = "unilora_"
    dropped = "unilora_dropout"

    def refuses(self, cfg: UniLoraConfig, site: Site) -> str:
        return "Uni-LoRA mixes all channels, which a grouped convolution cannot." if site.groups > 1 else ""

    def shared(self, cfg: UniLoraConfig, sites: Sequence[Site]) -> dict[str, TensorSpec]:
        bound = cfg.init_theta_d_bound
        start = (lambda t: t.uniform_(-bound, bound)) if cfg.init_weights else torch.nn.init.normal_
        return {"unilora_theta_d": TensorSpec((cfg.theta_d_length,), start)}

    def tensors(self, cfg: UniLoraConfig, site: Site) -> dict[str, TensorSpec]:
        peers = site.peers or (site,)
        counts = [cfg.r * (peer.columns + peer.out) for peer in peers]        # A's entries and then B's, layer by layer
        first, total = sum(counts[:site.index]), sum(counts)

        def spec(shape: tuple[int, int], start: int, scaled: bool) -> TensorSpec:
            def fill(tensor: Tensor) -> None:
                places, scales = assignment(total, cfg.theta_d_length, cfg.proj_seed)
                mine = places[start:start + tensor.numel()].view(shape)
                tensor.copy_(scales[mine] if scaled else mine)

            return TensorSpec(shape, fill, trainable=False, saved=cfg.save_indices, dtype=torch.float32 if scaled else torch.int64)

        in_a, in_b = ((cfg.r, site.columns), first), ((site.out, cfg.r), first + cfg.r * site.columns)
        return {"unilora_indices_A": spec(*in_a, False), "unilora_indices_B": spec(*in_b, False),
                "unilora_scales_A": spec(*in_a, True), "unilora_scales_B": spec(*in_b, True)}

    def decode(self, found: Tensors, cfg: UniLoraConfig, site: Site) -> Tensors:
        tensors = super().decode(found, cfg, site)
        for name in ("unilora_indices_A", "unilora_indices_B"):
            if name in tensors:
                check_places(tensors[name], cfg.theta_d_length)
        return tensors

    def factors(self, p: Tensors, cfg: UniLoraConfig, site: Site) -> Factors:
        theta = p["unilora_theta_d"]
        return Factors(theta[p["unilora_indices_A"]] * p["unilora_scales_A"], theta[p["unilora_indices_B"]] * p["unilora_scales_B"], 1.0)

    def delta(self, p: Tensors, cfg: UniLoraConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        f = self.factors(p, cfg, site)
        return f.B @ f.A


@lru_cache(maxsize=1)                      # all layers of an adapter ask for their part of one shuffle
def assignment(total: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which of ``length`` numbers stands at each of ``total`` places (equally often, in NumPy's order), and the scale of each number."""
    rng = np.random.default_rng(seed)
    places = np.repeat(np.arange(length), total // length)
    if rest := total % length:
        places = np.concatenate([places, rng.choice(length, size=rest, replace=False)])
    rng.shuffle(places)
    counts = np.bincount(places, minlength=length)
    return torch.as_tensor(places), torch.as_tensor(np.maximum(counts, 1)).float().rsqrt()


METHOD = UniLora()
