"""LoRA: ``ΔW = s · B · A``, s = alpha / r, or alpha / √r with rank stabilisation.

Hu et al. 2021 (arXiv 2106.09685); rsLoRA: Kalajdzievski 2023 (arXiv 2312.03732). PEFT class ``LoraConfig``.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.law import Factors, Method, Site, TargetedConfig, Tensors, TensorSpec, by_pattern, kaiming_uniform
from engine.methods.lora_settings import (
    ArrowConfig, BdLoraConfig, CordaConfig, EvaConfig, KasaConfig, LoftQConfig, LoraGAConfig, LoraRuntimeConfig, MontecloraConfig,
    VeloraConfig, settings)
from engine.specs.fields import knob


@dataclass
class LoraConfig(TargetedConfig):
    """Settings of LoRA, by PEFT's names and defaults. Fields whose effect is not built yet are refused, never ignored."""

    peft_type: ClassVar[str] = "LORA"
    positive = ("r", "rank_pattern")
    runtime_only: ClassVar[frozenset[str]] = frozenset({"runtime_config", "calibration"})

    r: int = knob(8, label="Capacity", term="r", low=1, high=1024,
                  help="How much the skill can hold: 8 is plenty for a style, 16–64 for facts. Larger files, slower.")
    lora_alpha: float = knob(8, label="Loudness", term="lora_alpha", low=0, high=4096, advanced=True,
                             help="Scales the whole adapter; usually once or twice the capacity.")
    lora_dropout: float = knob(0.0, label="Forgetfulness", term="lora_dropout", low=0, high=0.9, advanced=True,
                               help="Share of inputs dropped while training; a little helps with very few examples.")
    use_rslora: bool = knob(False, label="Even loudness", term="use_rslora", advanced=True,
                            help="Divides by the root of the capacity, which suits large capacities.")
    lora_bias: bool = knob(False, label="Learn a bias", term="lora_bias", advanced=True, help="Also adds a learned constant; layers need a bias.")
    init_lora_weights: bool | str = knob(True, label="Start", term="init_lora_weights", advanced=True,
                                         help="How the adapter starts: standard (true), “gaussian”, “orthogonal”, or from the model’s own weights: "
                                              "“pissa”, “olora”, “mica”. All start without effect.")
    rank_pattern: dict = knob(factory=dict, label="Capacity by layer", term="rank_pattern", advanced=True,
                              help="Layer name or pattern → capacity, where it differs.")
    alpha_pattern: dict = knob(factory=dict, label="Loudness by layer", term="alpha_pattern", advanced=True,
                               help="Layer name or pattern → loudness, where it differs.")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    bias: str = "none"
    megatron_config: dict | None = None
    megatron_core: str | None = "megatron.core"
    trainable_token_indices: Any = None
    loftq_config: Any = None
    eva_config: Any = None
    corda_config: Any = None
    lora_ga_config: Any = None
    use_dora: bool = knob(False, label="Separate size and direction", term="use_dora", advanced=True,
                          help="DoRA: learns the size of each output apart from its direction; a little better, a little slower.")
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
    calibration: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)    # module path → what data said of that layer

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rank_pattern, self.alpha_pattern = dict(self.rank_pattern or {}), dict(self.alpha_pattern or {})
        self.loftq_config = self.loftq_config or None
        for name, kind in _SETTINGS.items():
            setattr(self, name, settings(getattr(self, name), kind))
        if isinstance(self.target_parameters, str):
            raise TypeError("`target_parameters` must be a list of strings or None.")
        if self.target_parameters is not None:
            self.target_parameters = sorted(set(self.target_parameters))
        if unsupported := [name for name in _NOT_YET if getattr(self, name)]:
            raise ValueError(f"LoRA with {', '.join(unsupported)} cannot be used by this version.")
        self._check_start()
        self._check_combination()
        self.loftq_config = asdict(self.loftq_config) if self.loftq_config else {}           # a dict, as in PEFT's files

    def _check_start(self) -> None:
        """``init_lora_weights`` and the settings that belong to it."""
        start = self.init_lora_weights = self.init_lora_weights.lower() if isinstance(self.init_lora_weights, str) else self.init_lora_weights
        if start not in _STARTS and not re.fullmatch(r"pissa_niter_\d+", str(start)):
            raise ValueError(f"Unknown initialization init_lora_weights={start!r}; known are {', '.join(map(repr, _STARTS))} and 'pissa_niter_N'.")
        for name, owner in _STARTS_WITH_SETTINGS.items():
            if getattr(self, name) is None and start == owner and name in ("eva_config", "corda_config"):
                setattr(self, name, _SETTINGS[name]())
            elif getattr(self, name) is None and start == owner:
                raise ValueError(f"`{name}` must be specified when `init_lora_weights` is {owner!r}: {name}={_SETTINGS[name].__name__}().")
            elif getattr(self, name) is not None and start != owner:
                warnings.warn(f"`{name}` specified but will be ignored when `init_lora_weights` is not {owner!r}.", stacklevel=3)
        if start == "orthogonal" and any(r % 2 for r in (self.r, *self.rank_pattern.values())):
            raise ValueError(f"Orthogonal initialization requires the LoRA rank to be even, got {self.r} {self.rank_pattern or ''} instead.")

    def _check_combination(self) -> None:
        """Which variants go together: DoRA goes round whatever has a fixed low-rank form, any other one stands alone."""
        reshaped, rerun = ([name for name in names if getattr(self, name)] for names in (_RESHAPED, _RERUN))
        plain = (True, False, "gaussian") if reshaped else (True, False, "gaussian", "orthogonal", "eva")
        together = [*reshaped, *rerun, *["use_dora"] * (self.use_dora and bool(rerun)),
                    *[f"init_lora_weights={self.init_lora_weights}"] * (bool(reshaped + rerun) and self.init_lora_weights not in plain),
                    *["lora_bias"] * (self.lora_bias and bool(reshaped + rerun))]
        if len(together) > 1:
            raise ValueError(f"Invalid or unsupported variant combination: {', '.join(together)}. Choose one of them.")
        if self.lora_bias and self.init_lora_weights not in (True, False):
            raise ValueError(f"lora_bias=True is only supported with init_lora_weights=True or False, not {self.init_lora_weights!r}.")
        if self.use_dora and self.init_lora_weights == "loftq":
            raise ValueError("Invalid or unsupported variant combination: use_dora and init_lora_weights=loftq. Choose one of them.")
        if self.use_dora and self.lora_bias:
            raise ValueError("`lora_bias=True` is not supported for DoRA, please set use_dora to False.")


_NOT_YET = ("megatron_config",)
_STARTS = (True, False, "gaussian", "orthogonal", "pissa", "olora", "mica", "eva", "corda", "lora_ga", "loftq")
_SETTINGS = {"loftq_config": LoftQConfig, "eva_config": EvaConfig, "corda_config": CordaConfig, "lora_ga_config": LoraGAConfig,
             "use_bdlora": BdLoraConfig, "velora_config": VeloraConfig, "monteclora_config": MontecloraConfig, "kasa_config": KasaConfig,
             "arrow_config": ArrowConfig, "runtime_config": LoraRuntimeConfig}
_STARTS_WITH_SETTINGS = {"loftq_config": "loftq", "eva_config": "eva", "corda_config": "corda", "lora_ga_config": "lora_ga"}
_RESHAPED = ("use_bdlora", "use_qalora")                      # variants that give A or B another shape
_RERUN = ("alora_invocation_tokens", "velora_config", "monteclora_config", "kasa_config", "arrow_config")     # that run otherwise than LoRA


class Lora(Method):
    """Low-Rank Adaptation (Hu et al. 2021): ``ΔW = s·B·A`` with a rank far below the layer's."""

    title = "LoRA"
    help = "Small files, quick to teach, can be mixed and baked in. Right for almost everything."
    config = LoraConfig
    prefix = "lora_"
    dropped = "lora_dropout"

    def rank(self, cfg: LoraConfig, site: Site) -> int:
        return by_pattern(site.path, cfg.rank_pattern, cfg.r)

    def scale(self, cfg: LoraConfig, site: Site) -> float:
        rank = self.rank(cfg, site)
        return by_pattern(site.path, cfg.alpha_pattern, cfg.lora_alpha) / (math.sqrt(rank) if cfg.use_rslora else rank)

    def refuses(self, cfg: LoraConfig, site: Site) -> str:
        if site.kind == "parameter" and (found := _needs_layer(cfg)):
            return f"On a parameter, lora.ParamWrapper does not work with {found}."
        if self.rank(cfg, site) % site.groups:
            return (f"It has {site.groups} groups and the rank is {self.rank(cfg, site)}: "
                    "support is limited to conv layers where the rank is divisible by groups.")
        if site.groups > 1 and cfg.init_lora_weights not in (True, False, "gaussian"):
            return "On a convolution with groups LoRA mixes all channels, so no start from the weight is defined."
        if cfg.lora_bias and site.kind == "embedding":
            return "`lora_bias` needs a layer that can have a bias."
        return ""

    def tensors(self, cfg: LoraConfig, site: Site) -> dict[str, TensorSpec]:
        rank = self.rank(cfg, site)
        if site.kind == "embedding":       # here B starts random and A at zero
            def start_embedding_a(A: Tensor) -> None:
                torch.nn.init.normal_(A)
                if cfg.init_lora_weights is not False:
                    torch.empty(site.out, rank).normal_()     # drawn once in vain, as below
                    torch.nn.init.zeros_(A)

            return {"lora_embedding_A": TensorSpec((rank, site.columns), start_embedding_a),
                    "lora_embedding_B": TensorSpec((site.out, rank), torch.nn.init.normal_)}
        channels, ones = site.columns // math.prod(site.kernel) * site.groups, (1,) * len(site.kernel)     # A sees all groups, B stays in one
        shape_a, shape_b = (rank * site.experts, channels, *site.kernel), (site.out // site.experts, rank * site.experts // site.groups, *ones)

        def start_a(A: Tensor) -> None:
            # PEFT draws A and B (and its bias) once before it draws A for good: the same seed must give the same adapter
            again = cfg.init_lora_weights in (True, "gaussian")
            if not again:
                kaiming_uniform(A)
            if cfg.init_lora_weights is not False:
                torch.rand(A.numel() * again + math.prod(shape_b) + site.out * cfg.lora_bias)
            if cfg.init_lora_weights == "gaussian":
                torch.nn.init.normal_(A, std=1 / rank)
            elif cfg.init_lora_weights is True:
                kaiming_uniform(A)

        table = {"lora_A.weight": TensorSpec(shape_a, start_a),
                 "lora_B.weight": TensorSpec(shape_b, kaiming_uniform if cfg.init_lora_weights is False else Tensor.zero_)}
        if cfg.lora_bias:
            table["lora_B.bias"] = TensorSpec((site.out,), torch.nn.init.zeros_)
        return table

    def factors(self, p: Tensors, cfg: LoraConfig, site: Site) -> Factors | None:
        if site.kind == "embedding":
            return Factors(p["lora_embedding_A"], p["lora_embedding_B"], self.scale(cfg, site))
        if site.experts > 1:               # each expert has its own
            return None
        A, B = p["lora_A.weight"].flatten(1), p["lora_B.weight"].flatten(1)
        return Factors(A, torch.block_diag(*B.chunk(site.groups)) if site.groups > 1 else B, self.scale(cfg, site), p.get("lora_B.bias"))

    def from_factors(self, f: Factors, site: Site) -> Tensors:
        """The inverse of `factors`, for a config whose scale is 1 and a site without groups."""
        return self.from_blocks(f.A[None], f.B[None], f.bias, site)

    def from_blocks(self, A: Tensor, B: Tensor, bias: Tensor | None, site: Site) -> Tensors:
        """Tensors, at scale 1, for the rows of ΔW cut into a convolution's groups or into experts: A ``(blocks, rank, columns)``,
        B ``(blocks, out / blocks, rank)``. The columns may be those of all groups, or of each one's own."""
        if site.kind == "embedding":
            return {"lora_embedding_A": A[0], "lora_embedding_B": B[0]}
        if site.groups > 1 and A.shape[2] == site.columns:
            A = torch.stack([F.pad(block, (i * site.columns, (site.groups - 1 - i) * site.columns)) for i, block in enumerate(A)])
        A = A.reshape(A.shape[0] * A.shape[1], -1, *site.kernel)
        B = B.permute(1, 2, 0).flatten(1) if site.experts > 1 else B.reshape(site.out, -1, *(1,) * len(site.kernel))
        return {"lora_A.weight": A, "lora_B.weight": B} if bias is None else {"lora_A.weight": A, "lora_B.weight": B, "lora_B.bias": bias}

    def delta(self, p: Tensors, cfg: LoraConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        if site.experts > 1:               # in the file, A's rows go expert by expert, B's columns rank by rank
            A, B = p["lora_A.weight"].unflatten(0, (site.experts, -1)), p["lora_B.weight"].unflatten(1, (-1, site.experts)).permute(2, 0, 1)
            return self.scale(cfg, site) * (B @ A).flatten(0, 1)
        f = self.factors(p, cfg, site)
        return f.scale * (f.B @ f.A)

    def bias_delta(self, p: Tensors, cfg: LoraConfig, site: Site, b0: Tensor | None = None,
                   W0: Tensor | None = None) -> Tensor | None:
        bias = p.get("lora_B.bias")
        return None if bias is None else bias * self.scale(cfg, site)


def _needs_layer(cfg: LoraConfig) -> str:
    """The first setting that asks for a layer's input or output, which a parameter does not have."""
    asked = {"lora_dropout != 0": cfg.lora_dropout, "fan_in_fan_out": cfg.fan_in_fan_out, "lora_bias=True": cfg.lora_bias,
             "use_dora=True": cfg.use_dora, f"init_lora_weights={cfg.init_lora_weights!r}": cfg.init_lora_weights not in (True, False, "gaussian"),
             **{f"`{name}`": getattr(cfg, name) for name in (*_RESHAPED, *_RERUN, "kasa_config")}}
    return next((name for name, wanted in asked.items() if wanted), "")


METHOD = Lora()
