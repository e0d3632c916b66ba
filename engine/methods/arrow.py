"""Arrow: each input vector is sent to the LoRAs that were taught on such vectors. No training: a LoRA's own main direction tells what it knows.

Ostapenko et al. 2024 (arXiv 2405.11157): the prototype of an expert is the direction that its ΔW stretches most; an input goes to those
whose prototypes it points along. GenKnowSub (Bagherifard et al. 2025, ACL short 54) takes what general adapters know out of the experts
first. PEFT: ``LoraConfig(arrow_config=ArrowConfig(…))`` and `engine.model.arrow.create_arrow_model`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.law import Factors, Gate, Router, Run, Site, Tensors, Variant

GENERAL = re.compile(r"gks_\d+")           # names of general adapters, as PEFT gives them


class Arrow(Router, Variant):
    """A router round LoRA; the LoRA's own tensors stand in PEFT's file, and nothing hears them."""

    title = "Arrow"
    help = "Several finished skills at once: for every word those are heard that know about it. Nothing is trained."
    why_unmerged = "Which experts are heard depends on each input vector."

    def refuses(self, cfg: Any, site: Site) -> str:
        return "Arrow sits on linear layers only." if site.kind != "linear" else self.inner.refuses(cfg, site)

    def route(self, p: Tensors, cfg: Any, site: Site, beside: Mapping[str, Factors]) -> tuple[dict[str, Factors], Gate]:
        """All low-rank adapters of the layer are experts but the general ones, which are subtracted if ``use_gks`` is set."""
        settings, general = cfg.arrow_config, [f for name, f in beside.items() if GENERAL.fullmatch(name)]
        experts = {name: f for name, f in beside.items() if not GENERAL.fullmatch(name)}
        if settings.use_gks:
            if not general:
                raise ValueError("You should provide general LoRA paths if you want to use GenKnowSub: no adapter is named gks_0, gks_1 ….")
            A, B = (torch.stack(ts).mean(0) for ts in ([f.A for f in general], [f.B for f in general]))
            experts = {name: Factors(f.A - A, f.B - B, f.scale, f.bias) for name, f in experts.items()}
        if not experts:
            return {}, lambda x, run: x.new_zeros(*x.shape[:-1], 0)
        prototypes = torch.stack([main_direction(f).to(f.A.dtype) for f in experts.values()])
        kept = min(settings.top_k, len(experts))

        def gate(x: Tensor, run: Run) -> Tensor:
            likeness = (x.to(prototypes.dtype) @ prototypes.T).abs()
            best, which = likeness.topk(kept, dim=-1)
            return torch.full_like(likeness, -torch.inf).scatter(-1, which, best).div(settings.router_temperature).softmax(-1)

        return experts, gate


@torch.no_grad()
def main_direction(f: Factors) -> Tensor:
    """The first right singular vector of ``B·A``, ``(columns,)`` in float32, up to its sign: by thin QR of both, exact whatever the spectrum."""
    Q, R = torch.linalg.qr(f.A.float().T)
    _, _, V = torch.linalg.svd(torch.linalg.qr(f.B.float()).R @ R.T)
    return Q @ V[0]


def wanted(cfg: Any) -> bool:
    return cfg.arrow_config is not None


VARIANT = Arrow
