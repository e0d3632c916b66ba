"""AdaLoRA: ``ΔW = s · B · diag(E) · A``, a singular value decomposition that learns, and a schedule that takes away the least important values.

Zhang et al. 2023 (arXiv 2303.10512). PEFT class ``AdaLoraConfig``; its ``RankAllocator`` is `engine.schedules.adalora.RankSchedule`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from engine.configs import MANY_LAYERS
from engine.law import Factors, Method, Site, TargetedConfig, Tensors, TensorSpec
from engine.schedules.adalora import RankSchedule, orthogonality
from engine.specs.fields import knob


@dataclass
class AdaLoraConfig(TargetedConfig):
    """Settings of AdaLoRA, by PEFT's names and defaults. ``rank_pattern`` is written by the schedule: ``<path>.lora_E`` → which ranks are left."""

    peft_type: ClassVar[str] = "ADALORA"
    positive = ("deltaT",)
    runtime_only: ClassVar[frozenset[str]] = frozenset({"runtime_config"})

    target_r: int = knob(8, label="Capacity at the end", term="target_r", low=1, high=1024,
                         help="Average over the layers when training is over; the important layers keep more.")
    init_r: int = knob(12, label="Capacity at the start", term="init_r", low=1, high=1024, help="Half as much again as at the end is usual.")
    tinit: int = knob(0, label="Steps before", term="tinit", low=0, advanced=True, help="Training steps before the first rank is taken away.")
    tfinal: int = knob(0, label="Steps after", term="tfinal", low=0, advanced=True, help="Training steps after the last rank was taken away.")
    deltaT: int = knob(1, label="Pace", term="deltaT", low=1, advanced=True, help="Ranks are taken away at every so many steps.")
    beta1: float = knob(0.85, label="Memory of importance", term="beta1", low=0, high=1, advanced=True,
                        help="How long earlier steps count for the importance of a rank.")
    beta2: float = knob(0.85, label="Memory of doubt", term="beta2", low=0, high=1, advanced=True,
                        help="How long earlier steps count for how unsure that importance is.")
    orth_reg_weight: float = knob(0.5, label="Keep directions apart", term="orth_reg_weight", low=0, advanced=True,
                                  help="How strongly training keeps the ranks at right angles to one another.")
    total_step: int | None = knob(None, label="Steps in all", term="total_step", low=1, help="How many training steps there will be; needed.")
    lora_alpha: float = knob(8, label="Loudness", term="lora_alpha", low=0, high=4096, advanced=True, help="Scales the whole adapter.")
    lora_dropout: float = knob(0.0, label="Forgetfulness", term="lora_dropout", low=0, high=0.9, advanced=True,
                               help="Share of inputs dropped while training; a little helps with very few examples.")
    init_lora_weights: bool = knob(True, label="Standard start", term="init_lora_weights", advanced=True,
                                   help="Start without effect; off, the adapter starts with a random one.")
    rank_pattern: dict | None = None
    r: int = 8                             # LoRA's fields, of which AdaLoRA has no use: kept for the file format
    fan_in_fan_out: bool = False
    bias: str = "none"
    use_rslora: bool = False
    lora_bias: bool = False
    alpha_pattern: dict | None = None
    megatron_config: dict | None = None
    megatron_core: str | None = "megatron.core"
    trainable_token_indices: Any = None
    loftq_config: Any = None
    eva_config: Any = None
    corda_config: Any = None
    lora_ga_config: Any = None
    use_dora: bool = False
    velora_config: Any = None
    alora_invocation_tokens: list[int] | None = None
    use_qalora: bool = False
    qalora_group_size: int = 16
    monteclora_config: Any = None
    layer_replication: list | None = None
    runtime_config: Any = None
    target_parameters: list[str] | None = None
    use_bdlora: Any = None
    arrow_config: Any = None
    kasa_config: Any = None
    ensure_weight_tying: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.alpha_pattern, self.loftq_config = self.alpha_pattern or {}, self.loftq_config or {}
        names = [f.name for f in fields(self)]
        for name in names[names.index("use_rslora"):]:
            if getattr(self, name) and name not in ("megatron_core", "qalora_group_size", "runtime_config"):
                raise ValueError(f"{self.peft_type} does not support {_SPOKEN.get(name, name)}: leave it at its default.")
        if self.r != 8:
            warnings.warn("Note that `r` is not used in AdaLora and will be ignored. Set `init_r` and `target_r` instead.", stacklevel=3)
        if not isinstance(self.init_r, int) or self.init_r < 0:
            raise ValueError(f"`r` should be a positive integer or 0, but the value passed is {self.init_r}")
        if self.total_step is None or self.total_step <= 0:
            raise ValueError("AdaLoRA does not work when `total_step` is None, supply a value > 0.")
        if self.orth_reg_weight < 0:
            raise ValueError(f"`orth_reg_weight` should be greater than or equal to 0, but the value passed is {self.orth_reg_weight}")
        if not (0 < self.beta1 < 1 and 0 < self.beta2 < 1):
            raise ValueError(f"`beta1` and `beta2` must lie between 0 and 1, but the values passed are {self.beta1} and {self.beta2}")
        if self.tinit >= self.total_step - self.tfinal:
            raise ValueError("The supplied schedule values don't allow for a budgeting phase. Decrease `tfinal`/`tinit` or increase `total_step`.")


_SPOKEN = {"use_dora": "DoRA", "loftq_config": "LOFTQ"}


class AdaLora(Method):
    """Adaptive budget allocation. The law is that of LoRA with a learned value for each rank; ranks fall away by `RankSchedule`."""

    title = "AdaLoRA"
    help = "LoRA that finds out by itself which layers need how much. Needs the number of training steps in advance."
    config = AdaLoraConfig
    prefix = "lora_"
    layers = {**MANY_LAYERS, "roberta": ["query", "key", "value", "dense"]}
    dropped = "lora_dropout"
    adds_to_loss = True

    def left(self, cfg: AdaLoraConfig, site: Site) -> list[bool] | None:
        """Which ranks the schedule has left at this site, if it has been there."""
        pattern = cfg.rank_pattern or {}
        return next((pattern[key] for key in (f"{site.path}.lora_E", site.path) if key in pattern), None)

    def tensors(self, cfg: AdaLoraConfig, site: Site) -> dict[str, TensorSpec]:
        left = self.left(cfg, site)
        rank, std = cfg.init_r if left is None else sum(left), 0.02

        def start_a(A: Tensor) -> None:
            torch.nn.init.normal_(A)
            if cfg.init_lora_weights:                         # PEFT draws all of it once before it draws A and B for good
                torch.randn(rank, 1), torch.randn(site.out, rank), torch.randn(1)
                torch.nn.init.normal_(A, std=std)

        def start_b(B: Tensor) -> None:
            torch.nn.init.normal_(B, std=std if cfg.init_lora_weights else 1.0)
            if not cfg.init_lora_weights:
                torch.randn(1)                                # PEFT draws the number of ranks, too

        return {"lora_A": TensorSpec((rank, site.columns), start_a),
                "lora_E": TensorSpec((rank, 1), torch.nn.init.zeros_ if cfg.init_lora_weights else torch.nn.init.normal_),
                "lora_B": TensorSpec((site.out, rank), start_b)}

    def encode(self, p: Tensors, cfg: AdaLoraConfig, site: Site) -> Tensors:
        """Only the ranks that are left are written."""
        left = self.left(cfg, site)
        if left is None or len(left) != len(p["lora_E"]):     # none has fallen, or those that fell are gone already
            return dict(p)
        kept = torch.tensor(left, dtype=torch.bool, device=p["lora_E"].device)
        return {"lora_A": p["lora_A"][kept], "lora_E": p["lora_E"][kept], "lora_B": p["lora_B"][:, kept]}

    def factors(self, p: Tensors, cfg: AdaLoraConfig, site: Site) -> Factors | None:
        if site.groups > 1:
            return None
        return Factors(p["lora_A"] * p["lora_E"], p["lora_B"], self.scale(cfg, site))

    def scale(self, cfg: AdaLoraConfig, site: Site) -> float:
        return (cfg.lora_alpha if cfg.lora_alpha > 0 else cfg.init_r) / (cfg.init_r + 1e-5)

    def delta(self, p: Tensors, cfg: AdaLoraConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        return self.scale(cfg, site) * (p["lora_B"] @ (p["lora_A"] * p["lora_E"]))

    def schedule(self, cfg: AdaLoraConfig, layers: Mapping[str, Tensors]) -> RankSchedule:
        return RankSchedule(cfg, layers)

    def extra_loss(self, cfg: AdaLoraConfig, layers: Mapping[str, Tensors]) -> Tensor:
        return cfg.orth_reg_weight * orthogonality(layers.values())


METHOD = AdaLora()
