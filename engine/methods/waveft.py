"""WaveFT: ``ΔW = s · idwt2(C)``, one level of an inverse wavelet transform of C, which is zero but for n learned numbers at random places.

arXiv 2505.12532. PEFT class ``WaveFTConfig``. The transform acts on rows and columns apart, ``ΔW = s · S_out · C · S_inᵀ``, so that an
input goes through S_inᵀ, the few learned numbers and S_out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.configs import MLP_OUT
from engine.law import Method, Run, Site, TargetedConfig, Tensors, TensorSpec, by_pattern, random_places
from engine.numerics.wavelets import FAMILIES, analysis, low_pass, synthesis
from engine.specs.fields import knob


@dataclass
class WaveFTConfig(TargetedConfig):
    """Settings of WaveFT, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "WAVEFT"
    positive = ("n_frequency", "n_frequency_pattern")

    n_frequency: int = knob(2592, label="Capacity", term="n_frequency", low=1, high=10_000_000, help="How many numbers each layer learns.")
    scaling: float = knob(25.0, label="Loudness", term="scaling", low=0, high=10_000, advanced=True, help="Scales the whole adapter.")
    wavelet_family: str = knob("db1", label="Wavelet", term="wavelet_family", choices=FAMILIES, advanced=True,
                               help="The shape of what each number adds; longer ones are smoother and slower.")
    use_idwt: bool = knob(True, label="Wavelets", term="use_idwt", advanced=True, help="Off: each number changes one entry of the weight only.")
    random_loc_seed: int = knob(777, label="Seed of the places", term="random_loc_seed", advanced=True,
                                help="Which numbers are learned; the same seed finds them again.")
    n_frequency_pattern: dict = knob(factory=dict, label="Capacity by layer", term="n_frequency_pattern", advanced=True,
                                     help="Layer name or pattern → capacity, where it differs.")
    proportional_parameters: bool = knob(False, label="By size of the layer", term="proportional_parameters", advanced=True,
                                         help="Large layers learn more numbers than small ones; as many in all.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True,
                              help="Off: the adapter starts with a small random effect.")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    bias: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.n_frequency_pattern = dict(self.n_frequency_pattern or {})
        if self.use_idwt and self.wavelet_family not in FAMILIES:             # PEFT's numbers for coif4 and coif5 are not those of wavelets
            raise ValueError(f"Unknown wavelet name '{self.wavelet_family}'. Offered are db1 to db10, sym2 to sym10 and coif1 to coif3.")


class WaveFT(Method):
    """Learns a few wavelet coefficients of the change; their places are found again from the seed and never stored."""

    title = "WaveFT"
    help = "Small files; each learned number touches a small patch of the weight. For styles rather than facts."
    config = WaveFTConfig
    prefix = "waveft_"
    layers = MLP_OUT
    thrifty = True

    def number(self, cfg: WaveFTConfig, site: Site) -> int:
        if not cfg.proportional_parameters:
            return by_pattern(site.path, cfg.n_frequency_pattern, cfg.n_frequency)
        peers = site.peers or (site,)
        share = site.columns * site.out / sum(peer.columns * peer.out for peer in peers)
        number = max(1, round(share * (cfg.n_frequency * len(peers))))
        if problem := self._too_many(number, site):           # only now that all sites are known
            raise ValueError(f"{site.path}: {problem}")
        return number

    @staticmethod
    def _too_many(number: int, site: Site) -> str:
        most = site.out * site.columns
        return "" if number <= most else ("`n_frequency` should be less than or equal to the product of the input and output dimensions: "
                                          f"it is {number}, and the layer has {most}.")

    def refuses(self, cfg: WaveFTConfig, site: Site) -> str:
        return "" if cfg.proportional_parameters else self._too_many(self.number(cfg, site), site)

    def grid(self, cfg: WaveFTConfig, site: Site) -> tuple[int, int]:
        """The sides of C: those of the weight, and what the transform loses at the borders."""
        if not cfg.use_idwt:
            return site.out, site.columns
        lost = len(low_pass(cfg.wavelet_family)) - 2
        return site.out + site.out % 2 + lost, site.columns + site.columns % 2 + lost

    def tensors(self, cfg: WaveFTConfig, site: Site) -> dict[str, TensorSpec]:
        number = self.number(cfg, site)

        def places(indices: Tensor) -> None:
            chosen = random_places(site.out * site.columns, number, cfg.random_loc_seed)
            rows, columns = chosen // site.columns, chosen % site.columns
            high, wide = self.grid(cfg, site)
            if cfg.use_idwt:               # PEFT centres the weight in C, and crosses over the quarters at the top right and bottom left
                rows, columns = rows + (high - site.out) // 2, columns + (wide - site.columns) // 2
                below, right = rows >= high // 2, columns >= wide // 2
                rows, columns = rows % (high // 2) + right * (high // 2), columns % (wide // 2) + below * (wide // 2)
            indices.copy_(rows * wide + columns)

        return {"waveft_spectrum": TensorSpec((number,), torch.nn.init.zeros_ if cfg.init_weights else lambda t: t.normal_().mul_(0.01)),
                "waveft_indices": TensorSpec((number,), places, trainable=False, dtype=torch.int64, saved=False)}

    def delta(self, p: Tensors, cfg: WaveFTConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        high, wide = self.grid(cfg, site)
        values = p["waveft_spectrum"] * cfg.scaling
        C = values.new_zeros(high * wide).index_put((p["waveft_indices"],), values).view(high, wide)
        return synthesis(synthesis(C, cfg.wavelet_family, site.columns).T, cfg.wavelet_family, site.out).T if cfg.use_idwt else C

    def apply(self, p: Tensors, cfg: WaveFTConfig, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor | None:
        if site.kind != "linear":
            return None
        high, wide = self.grid(cfg, site)
        places, values = p["waveft_indices"], (p["waveft_spectrum"] * cfg.scaling).to(x.dtype)
        x = analysis(x, cfg.wavelet_family, wide) if cfg.use_idwt else x
        y = x.new_zeros(*x.shape[:-1], high).index_add(-1, places // wide, x[..., places % wide] * values)
        return synthesis(y, cfg.wavelet_family, site.out) if cfg.use_idwt else y


METHOD = WaveFT()
