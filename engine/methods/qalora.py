"""QALoRA: LoRA that sees its inputs averaged over groups, so that it fits exactly into the zero points of a group-quantized base.

``ΔW = s · B · A · P``, P the average over each group of ``qalora_group_size`` inputs, times the number of groups.
Xu et al. 2023 (arXiv 2309.14717). PEFT has it for GPTQ layers, whose files these are; here it sits on any linear layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.law import Factors, Site, Tensors, TensorSpec, Variant, kaiming_uniform

A = "lora_A.weight"


class Pooled(Variant):
    """A law round LoRA: A is ``(rank, columns / group)``."""

    title = "QALoRA"
    help = "LoRA for a base that is quantized in groups; a smaller file."

    def refuses(self, cfg: Any, site: Site) -> str:
        if site.kind != "linear":
            return "QALoRA sits on linear layers only."
        if site.columns % cfg.qalora_group_size:
            return f"Its {site.columns} inputs must be divisible by 'qalora_group_size' ({cfg.qalora_group_size})."
        return self.inner.refuses(cfg, site)

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        table = self.inner.tensors(cfg, site)
        whole = table[A]

        def start(tensor: Tensor) -> None:
            whole.init(torch.empty(whole.shape))              # drawn in vain, as in PEFT
            kaiming_uniform(tensor)

        return {**table, A: whole._replace(shape=(whole.shape[0], site.columns // cfg.qalora_group_size), init=start)}

    def factors(self, p: Tensors, cfg: Any, site: Site) -> Factors:
        size = cfg.qalora_group_size
        return self.inner.factors({**p, A: p[A].repeat_interleave(size, 1) * (site.columns // size / size)}, cfg, site)


def wanted(cfg: Any) -> bool:
    return cfg.use_qalora


VARIANT = Pooled
