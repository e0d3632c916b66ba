"""Settings within `LoraConfig`: one small dataclass for each start or variant that has its own, by PEFT's names and defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def settings(value: Any, kind: type[T]) -> T | None:
    """``value`` as an instance of ``kind``: files hold a dict. Raises `TypeError` for anything else but None."""
    if value is None or isinstance(value, kind):
        return value
    if isinstance(value, dict):
        names = {f.name for f in dataclasses.fields(kind)}
        return kind(**{k: v for k, v in value.items() if k in names})
    raise TypeError(f"`{kind.__name__}` must be a `{kind.__name__}`, a dict, or None.")


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) <= 0:
            raise ValueError(f"`{name}` must be greater than 0, not {getattr(config, name)}.")


def _one_of(config: Any, name: str, *choices: str) -> None:
    if getattr(config, name) not in choices:
        raise ValueError(f"Unsupported `{name}` {getattr(config, name)!r}. Supported values are {', '.join(map(repr, choices))}.")


@dataclass
class LoraRuntimeConfig:
    """What PEFT lets one choose about a start's computation; never written to a file. Here a start runs where the layer lies."""

    ephemeral_gpu_offload: bool = False

    def __post_init__(self) -> None:
        if self.ephemeral_gpu_offload:
            raise ValueError("`ephemeral_gpu_offload` cannot be used by this version: leave it False.")


@dataclass
class LoftQConfig:
    """LoftQ (Li et al. 2023, arXiv 2310.08659): bits of the quantization (4: nf4, 8: int8) and rounds of quantizing and decomposing."""

    loftq_bits: int = 4
    loftq_iter: int = 1

    def __post_init__(self) -> None:
        if self.loftq_bits not in (4, 8):
            raise ValueError(f"Only nf4 and int8 quantization is supported: `loftq_bits` must be 4 or 8, not {self.loftq_bits}.")
        if self.loftq_iter <= 0:
            raise ValueError("Number of iterations must be greater than 0")


@dataclass
class EvaConfig:
    """EVA (Paischer et al. 2024, arXiv 2410.07170): how ranks are spread (``rho`` ≥ 1: at most that many times r in one layer), when a
    layer's directions count as found (``tau``: cosine between two rounds), which tokens are looked at, and scaling."""

    rho: float = 2.0
    tau: float = 0.99
    use_label_mask: bool = True
    label_mask_value: int = -100
    whiten: bool = False
    adjust_scaling_factors: bool = True

    def __post_init__(self) -> None:
        if self.rho < 1.0:
            raise ValueError("`rho` must be >= 1.0")
        if not 0.0 <= self.tau <= 1.0:
            raise ValueError("`tau` must be between 0.0 and 1.0.")


@dataclass
class CordaConfig:
    """CorDA (Yang et al. 2024, arXiv 2406.05223): ``ipm`` starts from the directions that the data uses most, ``kpm`` from the least."""

    cache_file: str | None = None
    covariance_file: str | None = None
    corda_method: str = "ipm"
    verbose: bool = False
    use_float16_for_covariance: bool = False
    prune_temporary_fields: bool = True    # nothing temporary is ever left on the model; kept for the file format

    def __post_init__(self) -> None:
        if self.corda_method not in ("ipm", "kpm"):
            raise ValueError(f"Invalid corda_method found: {self.corda_method}, it should be 'ipm' or 'kpm'.")


@dataclass
class LoraGAConfig:
    """LoRA-GA (Wang et al. 2024, arXiv 2407.05000): which singular directions of the gradient A and B begin at, and how large."""

    direction: str = "ArB2r"
    scale: str = "stable"
    stable_gamma: int = 16

    def __post_init__(self) -> None:
        _one_of(self, "direction", "ArBr", "A2rBr", "ArB2r", "random")
        _one_of(self, "scale", "stable", "weight_svd", "gd_scale", "unit")


@dataclass
class ArrowConfig:
    """Arrow (Ostapenko et al. 2024, arXiv 2405.11157): to how many experts an input goes, how sharply they are weighed, and whether general
    knowledge is taken out of them first (GenKnowSub). `engine.model.arrow.create_arrow_model` writes the names."""

    top_k: int = 3
    router_temperature: float = 1.0
    use_gks: bool = False
    task_adapter_names: list[str] | None = None
    gks_adapter_names: list[str] | None = None
    rng_seed: int | None = None            # kept for the file format: directions are computed, not searched for

    def __post_init__(self) -> None:
        _positive(self, "top_k", "router_temperature")


@dataclass
class BdLoraConfig:
    """BD-LoRA (PEFT's class): A is block-diagonal where a layer's path holds one of ``target_modules_bd_a``, B where it holds one of ``…_bd_b``."""

    target_modules_bd_a: list[str] | None = None
    target_modules_bd_b: list[str] | None = None
    nblocks: int = 1
    match_strict: bool = True

    def __post_init__(self) -> None:
        if both := set(self.target_modules_bd_a or []) & set(self.target_modules_bd_b or []):
            raise ValueError(f"Found overlapping modules in target_modules_bd lists: {', '.join(sorted(both))} cannot be in both.")
        _positive(self, "nblocks")


@dataclass
class VeloraConfig:
    """VeLoRA (Miles et al. 2024, arXiv 2405.17991): groups that inputs are cut into, scale and origin of the direction kept of each."""

    num_groups: int = 64
    scale: float = 1.0
    init_type: str = "batch_average"

    def __post_init__(self) -> None:
        for name in ("num_groups", "scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` should be positive, got {getattr(self, name)}.")
        _one_of(self, "init_type", "batch_average_once", "batch_average", "random")


@dataclass
class MontecloraConfig:
    """MonteCLoRA (PEFT's class): samples a step, their spread, and the weight of the loss that keeps their distribution near its prior."""

    num_samples: int = 8
    use_entropy: bool = False
    dirichlet_prior: float = 0.1
    sample_scaler: float = 1e-4
    kl_loss_weight: float = 1e-5
    buffer_size: int = 150                 # kept for the file format: noise is drawn when it is needed, nothing is stored ahead

    def __post_init__(self) -> None:
        _positive(self, "num_samples", "dirichlet_prior", "buffer_size")


@dataclass
class KasaConfig:
    """KaSA (Wang et al. 2024, arXiv 2412.06071): weights of what it adds to the loss, on the diagonal and on the shape of A and B
    (see `engine.methods.kasa.regularization`)."""

    beta: float = 1e-4
    gamma: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("beta", "gamma"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be non-negative, got {getattr(self, name)}.")
