"""Super-tuning: learned numbers are added to the largest (or smallest) entries of W0; with ``r`` set, a LoRA as well (“Supra”).

arXiv 2607.09287. PEFT class ``SupertuningConfig``.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.law import Method, Run, Site, TargetedConfig, Tensors, TensorSpec, check_places, kaiming_uniform, with_entries
from engine.specs.fields import knob


@dataclass
class SupertuningConfig(TargetedConfig):
    """Settings of Super-tuning, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "SUPERTUNING"

    sparsity: float = knob(0.99, label="Left alone", term="sparsity", low=0, high=0.999999, help="Share of each weight's entries that never change.")
    select_top: bool = knob(True, label="The largest entries", term="select_top", advanced=True,
                            help="Off: the smallest entries are learned instead.")
    r: int | None = knob(None, label="Capacity of an added LoRA", term="r", low=1, high=1024, help="Empty: no LoRA is added.")
    lora_alpha: float | None = knob(None, label="Loudness of the LoRA", term="lora_alpha", low=0, high=4096, advanced=True,
                                    help="Empty: twice its capacity.")
    lora_dropout: float = knob(0.0, label="Forgetfulness", term="lora_dropout", low=0, high=0.9, advanced=True,
                               help="Share of the LoRA's inputs dropped while training.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True,
                              help="Off: the adapter starts with a random effect.")
    save_precomputed_indices: bool = knob(True, label="Store the places", term="save_precomputed_indices", advanced=True,
                                          help="Off: a smaller file; the places are found again from the very same base model.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.sparsity < 1.0:
            raise ValueError(f"sparsity must be in [0.0, 1.0), got {self.sparsity}")
        if self.r is None:
            if self.lora_alpha is not None:
                raise ValueError("lora_alpha is set but r is None: a LoRA is added only if `r` is given.")
        elif not isinstance(self.r, int) or self.r <= 0:
            raise ValueError(f"r must be a positive integer or None, got {self.r!r}")
        elif self.lora_alpha is None:
            self.lora_alpha = 2 * self.r
        if not 0.0 <= self.lora_dropout < 1.0:
            raise ValueError(f"lora_dropout must be in [0.0, 1.0), got {self.lora_dropout}")


class Supertuning(Method):
    """Sparse numbers where the base is largest."""

    title = "Super-tuning"
    help = "Changes the most important entries of each weight. Good for facts; mixes with little interference; runs as one weight."
    config = SupertuningConfig
    prefix = "supertuning_"
    begins_at_base = True

    def count(self, cfg: SupertuningConfig, site: Site) -> int:
        return int(site.out * site.columns * (1 - cfg.sparsity))

    def refuses(self, cfg: SupertuningConfig, site: Site) -> str:
        if self.count(cfg, site) < 1:
            return f"sparsity={cfg.sparsity} leaves no trainable entries for a weight with {site.out * site.columns} elements: lower it."
        if cfg.r is not None and cfg.lora_dropout and site.kind != "linear":
            return "`lora_dropout` is offered for linear layers only: set it to 0."
        return ""

    def tensors(self, cfg: SupertuningConfig, site: Site) -> dict[str, TensorSpec]:
        count = self.count(cfg, site)
        zeros, normal = torch.nn.init.zeros_, torch.nn.init.normal_
        table = {"supertuning_values": TensorSpec((count,), zeros if cfg.init_weights else normal),
                 "supertuning_indices": TensorSpec((count,), zeros, trainable=False, dtype=torch.int32, saved=cfg.save_precomputed_indices)}
        if cfg.r is not None:
            shape_a, shape_b = (cfg.r, site.columns), (site.out, cfg.r)

            def start_a(A: Tensor) -> None:
                kaiming_uniform(A)                            # PEFT draws A and B once before it draws A for good:
                kaiming_uniform(torch.empty(shape_b))         # the same seed must give the same adapter
                kaiming_uniform(A)

            table["supertuning_lora_A.weight"] = TensorSpec(shape_a, start_a)
            table["supertuning_lora_B.weight"] = TensorSpec(shape_b, zeros if cfg.init_weights else kaiming_uniform)
        return table

    def start(self, p: Tensors, cfg: SupertuningConfig, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        if "supertuning_indices" in fresh:
            p["supertuning_indices"].copy_(W0.abs().flatten().topk(self.count(cfg, site), largest=cfg.select_top).indices)

    def decode(self, found: Tensors, cfg: SupertuningConfig, site: Site) -> Tensors:
        tensors = super().decode(found, cfg, site)
        if "supertuning_indices" in tensors:
            check_places(tensors["supertuning_indices"], site.out * site.columns)
        return tensors

    def entries(self, p: Tensors, cfg: SupertuningConfig, site: Site) -> tuple[Tensor, Tensor] | None:
        return (p["supertuning_values"], p["supertuning_indices"]) if cfg.r is None else None

    def delta(self, p: Tensors, cfg: SupertuningConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        sparse = with_entries(p["supertuning_values"], p["supertuning_indices"], site)
        return sparse if cfg.r is None else sparse + (cfg.lora_alpha / cfg.r) * (p["supertuning_lora_B.weight"] @ p["supertuning_lora_A.weight"])

    def applies(self, cfg: SupertuningConfig, site: Site) -> bool:
        return cfg.r is not None and site.kind == "linear"

    def apply(self, p: Tensors, cfg: SupertuningConfig, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor | None:
        """With a LoRA in thin products, whose inputs alone are dropped in training."""
        if not self.applies(cfg, site):
            return None
        A, B = (p[f"supertuning_lora_{factor}.weight"].to(x.dtype) for factor in "AB")
        low_rank = F.linear(F.linear(F.dropout(x, cfg.lora_dropout, run.training), A), B)
        sparse = with_entries(p["supertuning_values"], p["supertuning_indices"], site)
        return F.linear(x, sparse.to(x.dtype)) + (cfg.lora_alpha / cfg.r) * low_rank


METHOD = Supertuning()
