"""SHiRA: ΔW is zero but for ``r · (out + in)`` learned numbers at random places: as many as a LoRA of rank r has, but of high rank.

Bhardwaj et al. 2024 (arXiv 2406.13175). PEFT class ``ShiraConfig``.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor

from engine.configs import QV_OF_PHI
from engine.law import Method, Site, TargetedConfig, Tensors, TensorSpec, check_places, random_places, with_entries
from engine.specs.fields import knob


@dataclass
class ShiraConfig(TargetedConfig):
    """Settings of SHiRA, by PEFT's names and defaults.

    Attributes:
        mask_fn: set on a config whose ``mask_type`` is not “random”: ``mask_fn(layer, r)``, of which ``layer.weight`` ``(out, in)`` may be
            looked at, gives a mask of its shape with ``r · (out + in)`` places that are not zero. It is never stored: a file holds the places.
    """

    peft_type: ClassVar[str] = "SHIRA"
    positive = ("r",)
    mask_fn: ClassVar[Callable[..., Tensor] | None] = None

    r: int = knob(32, label="Capacity", term="r", low=1, high=1024,
                  help="Each layer learns as many numbers as a LoRA of this capacity.")
    mask_type: str = knob("random", label="Choice of places", term="mask_type", choices=("random",), advanced=True,
                          help="Which entries of a weight are learned.")
    random_seed: int | None = knob(None, label="Seed of the places", term="random_seed", advanced=True,
                                   help="Which places are drawn; the same number draws the same ones.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True,
                              help="Off: the adapter starts with a random effect.")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself


class Shira(Method):
    """Sparse High Rank Adapter. The places are stored, as a file may come from another choice of them."""

    title = "SHiRA"
    help = "Changes a few entries of each weight. Quick to switch, mixes with little interference; runs as one weight."
    config = ShiraConfig
    prefix = "shira_"
    layers = QV_OF_PHI

    def refuses(self, cfg: ShiraConfig, site: Site) -> str:
        if cfg.r * (site.out + site.columns) <= site.out * site.columns:
            return ""
        return (f"The set rank {cfg.r} results in more shira params than the total number of params in the base layer "
                f"{site.out * site.columns} and this is not allowed.")

    def tensors(self, cfg: ShiraConfig, site: Site) -> dict[str, TensorSpec]:
        number, total = cfg.r * (site.out + site.columns), site.out * site.columns

        def choose(indices: Tensor) -> None:
            places = random_places(total, number, cfg.random_seed).sort().values
            indices.copy_(torch.stack([places // site.columns, places % site.columns]))

        return {"shira_weight": TensorSpec((number,), torch.nn.init.zeros_ if cfg.init_weights else torch.nn.init.normal_),
                "shira_indices": TensorSpec((2, number), choose, trainable=False, dtype=torch.int32)}

    def starts_from_base(self, cfg: ShiraConfig) -> bool:
        return cfg.mask_type != "random"

    def start(self, p: Tensors, cfg: ShiraConfig, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        if "shira_indices" not in fresh:
            return
        if cfg.mask_fn is None:
            raise ValueError(f"`mask_type` {cfg.mask_type!r} is not known: choose “random”, or set `config.mask_fn` to a function of yours.")
        places = cfg.mask_fn(SimpleNamespace(weight=W0), cfg.r).reshape(W0.shape).nonzero()
        if len(places) != p["shira_indices"].shape[1]:
            raise ValueError(f"`mask_fn` marks {len(places)} places of {site.path}; it has to mark {p['shira_indices'].shape[1]}.")
        p["shira_indices"].copy_(places.T)

    def decode(self, found: Tensors, cfg: ShiraConfig, site: Site) -> Tensors:
        tensors = super().decode(found, cfg, site)
        if "shira_indices" in tensors and len(places := tensors["shira_indices"]) == 2:
            check_places(places[0], site.out), check_places(places[1], site.columns)
        return tensors

    def entries(self, p: Tensors, cfg: ShiraConfig, site: Site) -> tuple[Tensor, Tensor]:
        rows, columns = p["shira_indices"].long()
        return p["shira_weight"], rows * site.columns + columns

    def delta(self, p: Tensors, cfg: ShiraConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        return with_entries(*self.entries(p, cfg, site), site)


METHOD = Shira()
