"""Poly: several small LoRAs, the skills, of which each task learns its own mixture, layer by layer and (Multi-Head Routing) slice by slice.

``y + x · A(task) · B(task) / r`` with A and B mixtures of the skills'. Ponti et al. 2022 (arXiv 2202.13914), Caccia et al. 2022
(arXiv 2211.03831). PEFT class ``PolyConfig``. The call says which task each sample is of: ``task_ids`` ``(batch,)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import RelaxedBernoulli

from engine.law import Routed, Run, Site, TargetedConfig, Tensors, TensorSpec, kaiming_uniform
from engine.specs.fields import knob

A, B, LOGITS = "poly_lora_A", "poly_lora_B", "poly_router.module_logits"


@dataclass
class PolyConfig(TargetedConfig):
    """Settings of Poly, by PEFT's names and defaults. Raises `ValueError` for impossible ones."""

    peft_type: ClassVar[str] = "POLY"
    positive = ("r", "n_tasks", "n_skills", "n_splits")

    r: int = knob(8, label="Capacity", term="r", low=1, high=1024, help="How much each skill can hold.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True, help="Otherwise it starts at random.")
    poly_type: str = "poly"
    n_tasks: int = knob(1, label="Tasks", term="n_tasks", low=1, help="How many kinds of examples there are; each call names one a sample.")
    n_skills: int = knob(4, label="Skills", term="n_skills", low=1, high=256, help="How many small adapters the tasks share.")
    n_splits: int = knob(1, label="Slices", term="n_splits", low=1, advanced=True, help="Slices of each layer that are mixed apart from one another.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.poly_type != "poly":
            raise ValueError(f"Unsupported poly_type: {self.poly_type}. Currently, only `poly` is supported.")


class Poly(Routed):
    """Polytropon. In training the mixtures are drawn (relaxed Bernoulli), so that skills are also tried alone."""

    title = "Poly"
    help = "For many related tasks at once: they share a few skills, and each learns which it needs. Every call must name the task."
    config = PolyConfig
    prefix = "poly_"
    hears = ("task_ids",)
    why_unmerged = "What it does depends on the task of each sample."

    def refuses(self, cfg: PolyConfig, site: Site) -> str:
        if site.kind != "linear":
            return "Poly sits on linear layers only."
        if site.out % cfg.n_splits or site.columns % cfg.n_splits:
            return f"Its sizes ({site.columns} → {site.out}) cannot be cut into {cfg.n_splits} equal slices (`n_splits`)."
        return ""

    def tensors(self, cfg: PolyConfig, site: Site) -> dict[str, TensorSpec]:
        def start(stack: Tensor) -> None:
            for skill in range(cfg.n_skills):                 # the order in which PEFT draws
                for split in range(cfg.n_splits):
                    matrix = torch.empty_like(stack[split, skill].T, memory_format=torch.contiguous_format)
                    kaiming_uniform(matrix)
                    stack[split, skill].copy_(matrix.T)

        table, splits = (cfg.n_splits, cfg.n_skills), cfg.n_splits
        return {A: TensorSpec((*table, site.columns // splits, cfg.r), start),
                B: TensorSpec((*table, cfg.r, site.out // splits), torch.nn.init.zeros_ if cfg.init_weights else start),
                LOGITS: TensorSpec((cfg.n_tasks, splits * cfg.n_skills), lambda t: torch.nn.init.uniform_(t, -1e-3, 1e-3))}

    def mixtures(self, p: Tensors, cfg: PolyConfig, task_ids: Tensor | None, training: bool) -> Tensor:
        """How much of each skill goes into each slice: ``(batch, splits, skills)``, sums are 1. Raises `ValueError` for unknown tasks."""
        if task_ids is None:
            raise ValueError("task_ids should not be None: Poly needs the task of each sample, e.g. model(**batch, task_ids=…).")
        if strange := [i for i in task_ids.tolist() if not 0 <= i < cfg.n_tasks]:
            raise ValueError(f"Only {cfg.n_tasks} tasks available. Found task id = {strange[0]}")
        logits = p[LOGITS][task_ids.to(p[LOGITS].device)].view(-1, cfg.n_splits, cfg.n_skills)
        drawn = RelaxedBernoulli(temperature=1.0, logits=logits).rsample() if training else logits.sigmoid()
        return drawn / (drawn.sum(-1, keepdim=True) + 1e-12)

    def apply(self, p: Tensors, cfg: PolyConfig, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor:
        mixed = self.mixtures(p, cfg, run.extras.get("task_ids"), run.training)
        if copies := len(x) // max(len(mixed), 1) if len(x) != len(mixed) else 0:
            mixed = mixed.repeat_interleave(copies, 0)        # generating, a sample may stand there several times
        mixed = mixed.transpose(0, 1)      # (splits, batch, skills)
        a, b = ((weights @ p[name].flatten(2)).unflatten(-1, p[name].shape[2:]) for name, weights in ((A, mixed), (B, mixed / cfg.r)))
        rows = x.reshape(len(x), -1, site.columns).to(a.dtype)
        y = rows @ a.transpose(0, 1).flatten(1, 2) @ b.permute(1, 2, 0, 3).flatten(2)
        return y.view(*x.shape[:-1], site.out)


METHOD = Poly()
