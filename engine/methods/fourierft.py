"""FourierFT: ``ΔW = s · Re ifft2(F)`` with F zero but for n learned numbers at random places, the same in all layers of a shape.

Gao et al. 2024 (arXiv 2405.03003). PEFT class ``FourierFTConfig``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.configs import MLP_OUT
from engine.law import Method, Run, Site, TargetedConfig, Tensors, TensorSpec, by_pattern, random_places
from engine.specs.fields import knob


@dataclass
class FourierFTConfig(TargetedConfig):
    """Settings of FourierFT, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "FOURIERFT"
    positive = ("n_frequency", "n_frequency_pattern")

    n_frequency: int = knob(1000, label="Capacity", term="n_frequency", low=1, high=1_000_000,
                            help="How many numbers each layer learns.")
    scaling: float = knob(150.0, label="Loudness", term="scaling", low=0, high=10_000, advanced=True, help="Scales the whole adapter; 100 to 300.")
    random_loc_seed: int | None = knob(777, label="Seed of the places", term="random_loc_seed", advanced=True,
                                       help="Which frequencies are learned; the same number finds them again.")
    n_frequency_pattern: dict = knob(factory=dict, label="Capacity by layer", term="n_frequency_pattern", advanced=True,
                                     help="Layer name or pattern → capacity, where it differs.")
    init_weights: bool = knob(False, label="Start without effect", term="init_weights", advanced=True,
                              help="Off: the adapter starts with a random effect.")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    bias: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.n_frequency_pattern = dict(self.n_frequency_pattern or {})
        if self.random_loc_seed is None:
            raise ValueError("`random_loc_seed` must be a number: without it the places could not be found again.")


class FourierFT(Method):
    """Learns a few frequencies of the change; the frequencies are found again from the seed and never stored."""

    title = "FourierFT"
    help = "Tiny files: a thousand numbers a layer by default. For styles rather than facts."
    config = FourierFTConfig
    prefix = "fourierft_"
    layers = MLP_OUT
    thrifty = True

    def refuses(self, cfg: FourierFTConfig, site: Site) -> str:
        number, most = by_pattern(site.path, cfg.n_frequency_pattern, cfg.n_frequency), site.out * site.columns
        return "" if number <= most else ("`n_frequency` should be less than or equal to the product of the input and output dimensions: "
                                          f"it is {number}, and the layer has {most}.")

    def tensors(self, cfg: FourierFTConfig, site: Site) -> dict[str, TensorSpec]:
        number, total = by_pattern(site.path, cfg.n_frequency_pattern, cfg.n_frequency), site.out * site.columns
        return {"fourierft_spectrum": TensorSpec((number,), torch.nn.init.zeros_ if cfg.init_weights else torch.nn.init.normal_),
                "fourierft_indices": TensorSpec((number,), lambda t: t.copy_(random_places(total, number, cfg.random_loc_seed)),
                                                trainable=False, dtype=torch.int64, saved=False)}

    def delta(self, p: Tensors, cfg: FourierFTConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        values = wide(p["fourierft_spectrum"])
        spectrum = values.new_zeros(site.out * site.columns).index_put((p["fourierft_indices"],), values)
        return (torch.fft.ifft2(spectrum.view(site.out, site.columns)).real * cfg.scaling).to(p["fourierft_spectrum"].dtype)

    def apply(self, p: Tensors, cfg: FourierFTConfig, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor | None:
        """A transform of the input, the few learned numbers, a transform to the output."""
        if site.kind != "linear":
            return None
        values, places = wide(p["fourierft_spectrum"]), p["fourierft_indices"]
        picked = torch.fft.ifft(wide(x))[..., places % site.columns] * values
        spread = picked.new_zeros(*x.shape[:-1], site.out).index_add(-1, places // site.columns, picked)
        return torch.fft.ifft(spread).real * cfg.scaling


def wide(t: Tensor) -> Tensor:
    """In float32 or better, as Fourier transforms need."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


METHOD = FourierFT()
