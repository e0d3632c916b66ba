"""SHiRA: ΔW is zero but for ``r · (out + in)`` learned numbers at random places: as many as a LoRA of rank r has, but of high rank.

Bhardwaj et al. 2024 (arXiv 2406.13175). PEFT class ``ShiraConfig``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.methods.base import Method, Site, TargetedConfig, Tensors, TensorSpec, check_places, random_places
from engine.specs.fields import knob


@dataclass
class ShiraConfig(TargetedConfig):
    """Settings of SHiRA, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "SHIRA"

    r: int = knob(32, label="Capacity", term="r", low=1, high=1024,
                  help="Each layer learns as many numbers as a LoRA of this capacity.")
    mask_type: str = knob("random", label="Choice of places", term="mask_type", choices=("random",), advanced=True,
                          help="Which entries of a weight are learned.")
    random_seed: int | None = knob(None, label="Seed of the places", term="random_seed", advanced=True,
                                   help="Which places are drawn; the same number draws the same ones.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True,
                              help="Off: the adapter starts with a random effect.")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r <= 0:
            raise ValueError(f"`r` should be a positive integer value but the value passed is {self.r}")
        if self.mask_type != "random" and not self.inference_mode:            # a file brings its places along
            raise ValueError(f"`mask_type` {self.mask_type!r} is not recognized: only 'random' is offered.")


class Shira(Method):
    """Sparse High Rank Adapter. The places are stored, as a file may come from another choice of them."""

    title = "SHiRA"
    help = "Changes a few entries of each weight. Quick to switch, mixes with little interference; runs as one weight."
    config = ShiraConfig
    prefix = "shira_"

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

    def decode(self, found: Tensors, cfg: ShiraConfig, site: Site) -> Tensors:
        tensors = super().decode(found, cfg, site)
        if "shira_indices" in tensors and len(places := tensors["shira_indices"]) == 2:
            check_places(places[0], site.out), check_places(places[1], site.columns)
        return tensors

    def delta(self, p: Tensors, cfg: ShiraConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        rows, columns = p["shira_indices"].long()
        flat = p["shira_weight"].new_zeros(site.out * site.columns)
        return flat.index_add(0, rows * site.columns + columns, p["shira_weight"]).view(site.out, site.columns)


METHOD = Shira()
