"""Lily: ``y + s · h · Σₑ gₑ·Bₑ`` with ``h = x·A``: neighbouring layers share A, all layers of a kind share the experts B, a router weighs them.

Zhong et al. 2024 (arXiv 2407.09946). PEFT class ``LilyConfig``. The weights g are the router's softmax, averaged over all vectors of a pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.law import Routed, Run, Site, TargetedConfig, Tensors, TensorSpec, kaiming_uniform
from engine.specs.fields import knob

A, B, ROUTER = "lily_A.weight", "lily_B.weight", "lily_router.weight"


@dataclass
class LilyConfig(TargetedConfig):
    """Settings of Lily, by PEFT's names and defaults. Raises `ValueError` for impossible ones."""

    peft_type: ClassVar[str] = "LILY"

    r: int = knob(32, label="Capacity", term="r", low=1, high=4096, help="Two to four times that of a LoRA, as layers share it.")
    stride_A: int = knob(1, label="Layers to one A", term="stride_A", low=1, help="So many neighbouring layers of a kind share what they read.")
    num_B: int = knob(2, label="Experts", term="num_B", low=2, help="How many ways of writing all layers of a kind share.")
    scaling: float = knob(1.0, label="Loudness", term="scaling", advanced=True, help="Scales the whole adapter.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True, help="Otherwise it starts at random.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {"r": 1, "stride_A": 1, "num_B": 2}.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, not {getattr(self, name)}.")


class Lily(Routed):
    """Low-rank interconnected adaptation across layers."""

    title = "Lily"
    help = "All layers share a few experts, so that each can hold much. Cannot be baked into the model."
    config = LilyConfig
    prefix = "lily_"
    why_unmerged = "How its experts are mixed depends on the input."

    def refuses(self, cfg: LilyConfig, site: Site) -> str:
        return "" if site.kind == "linear" else "Lily sits on linear layers only."

    def kin(self, cfg: LilyConfig, site: Site) -> list[Site]:
        """The sites of the same name in ``target_modules`` and of the same shape, in the model's order."""
        def kind(peer: Site) -> tuple[str, int, int]:
            named = [] if isinstance(cfg.target_modules, str) else [n for n in cfg.target_modules or () if peer.path.endswith(n)]
            return max(named, key=lambda name: (len(name), name), default=""), peer.out, peer.columns

        return [peer for peer in site.peers if kind(peer) == kind(site)] or [site]

    def borrowed(self, cfg: LilyConfig, site: Site) -> dict[str, Site]:
        kin = self.kin(cfg, site)
        at = next((i for i, peer in enumerate(kin) if peer.path == site.path), 0)
        owners = {A: kin[at - at % cfg.stride_A], B: kin[0]}
        return {name: owner for name, owner in owners.items() if owner.path != site.path}

    def tensors(self, cfg: LilyConfig, site: Site) -> dict[str, TensorSpec]:
        shapes = {A: (cfg.r, site.columns), ROUTER: (cfg.num_B, cfg.r), B: (cfg.num_B * cfg.r, site.out)}
        lent = self.borrowed(cfg, site)

        def in_vain(*names: str) -> None:
            for name in names:
                kaiming_uniform(torch.empty(shapes[name]))

        def start_a(tensor: Tensor) -> None:                  # PEFT draws everything twice, and for every site, before it shares
            in_vain(A, B, ROUTER)
            kaiming_uniform(tensor)

        def start_router(tensor: Tensor) -> None:
            in_vain(*(A, B, ROUTER, A) if A in lent else ())
            kaiming_uniform(tensor)
            in_vain(*(B,) if B in lent and not cfg.init_weights else ())

        starts = {A: start_a, ROUTER: start_router, B: torch.nn.init.zeros_ if cfg.init_weights else kaiming_uniform}
        return {name: TensorSpec(shapes[name], starts[name]) for name in shapes if name not in lent}

    def decode(self, found: Tensors, cfg: LilyConfig, site: Site) -> Tensors:
        for name in self.borrowed(cfg, site):                 # a file holds it again at every site
            found.pop(name, None)
        return super().decode(found, cfg, site)

    def encode(self, p: Tensors, cfg: LilyConfig, site: Site) -> Tensors:
        lent = self.borrowed(cfg, site)
        return {name: p[name].clone() if name in lent else p[name] for name in (A, B, ROUTER)}

    def apply(self, p: Tensors, cfg: LilyConfig, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor:
        h = F.linear(x.to(p[A].dtype), p[A])
        weights = cfg.scaling * torch.softmax(F.linear(h, p[ROUTER]), -1).flatten(0, -2).mean(0)
        return h @ (weights @ p[B].view(cfg.num_B, -1)).view(-1, site.out)


METHOD = Lily()
