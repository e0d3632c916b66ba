"""PSOFT: ``ΔW = B · (R − I) · A``: A and B span the weight's main directions and stay as they are, R turns within them.

Wu et al. 2025 (openreview FSHrinMArK). A and B come from the SVD of W0 and are never saved. PEFT class ``PsoftConfig``.
"""

from __future__ import annotations

import warnings
from collections.abc import Set
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import Factors, Method, Site, TargetedConfig, Tensors, TensorSpec
from engine.specs.fields import knob


@dataclass
class PsoftConfig(TargetedConfig):
    """Settings of PSOFT, by PEFT's names and defaults. Warns of settings that the others leave without effect."""

    peft_type: ClassVar[str] = "PSOFT"

    r: int = knob(32, label="Capacity", term="r", low=1, high=4096, help="How many main directions of a layer are turned; 32–128 for most tasks.")
    psoft_alpha: int = 32                  # kept for the file format: B is divided by what the product is multiplied by
    psoft_dropout: float = knob(0.0, label="Forgetfulness", term="psoft_dropout", low=0, high=0.9, advanced=True,
                                help="Share of inputs dropped while training; a little helps with very few examples.")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    ab_svd_init: str = knob("psoft_init", label="Frame", term="ab_svd_init", choices=("psoft_init", "pissa_init"), advanced=True,
                            help="Where the sizes of the directions go: all to the output side, or half to each.")
    psoft_svd: str = knob("full", label="Decomposition", term="psoft_svd", choices=("full", "lowrank"), advanced=True,
                          help="“lowrank” is quicker on large layers and less exact.")
    psoft_svd_lowrank_niter: int = knob(10, label="Rounds of the quick decomposition", term="psoft_svd_lowrank_niter", low=0, high=100,
                                        advanced=True, help="More rounds are more exact.")
    random_seed: int = knob(0, label="Seed", term="random_seed", advanced=True, help="Of the quick decomposition; must not change afterwards.")
    psoft_orth: bool = knob(True, label="Pure rotation", term="psoft_orth", advanced=True, help="Keeps R a rotation; otherwise it is free.")
    psoft_mag_b: bool = knob(True, label="Stretch after", term="psoft_mag_b", advanced=True, help="Also learns a size for each direction, after R.")
    psoft_mag_a: bool = knob(True, label="Stretch before", term="psoft_mag_a", advanced=True, help="Also learns a size for each direction, before R.")
    use_cayley_neumann: bool = knob(False, label="Quick rotation", term="use_cayley_neumann", advanced=True,
                                    help="A series instead of solving equations: quicker, not quite a rotation.")
    num_cayley_neumann_terms: int = knob(5, label="Terms of the series", term="num_cayley_neumann_terms", low=1, high=64, advanced=True,
                                         help="More terms are closer to a rotation.")
    cayley_neumann_eps: float | None = knob(None, label="Largest turn", term="cayley_neumann_eps", low=0, high=1, advanced=True,
                                            help="Keeps the series convergent; empty means no bound.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True, help="Otherwise R starts at random.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r <= 0:
            raise ValueError(f"`r` must be a positive integer; got {self.r}.")
        for name, known in (("ab_svd_init", ["pissa_init", "psoft_init"]), ("psoft_svd", ["full", "lowrank"])):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {known}; got {getattr(self, name)!r}.")
        idle = ["psoft_svd_lowrank_niter"] * (self.psoft_svd != "lowrank" and self.psoft_svd_lowrank_niter != 10)
        if self.use_cayley_neumann:
            if self.num_cayley_neumann_terms <= 0:
                raise ValueError(f"`num_cayley_neumann_terms` must be a positive integer; got {self.num_cayley_neumann_terms}.")
            if self.cayley_neumann_eps is not None and not 0 < self.cayley_neumann_eps < 1:
                raise ValueError(f"`cayley_neumann_eps` must be in (0, 1) when set; got {self.cayley_neumann_eps}.")
        else:
            idle += ["num_cayley_neumann_terms"] * (self.num_cayley_neumann_terms != 5)
            idle += ["cayley_neumann_eps"] * (self.cayley_neumann_eps is not None)
        for name in idle:
            warnings.warn(f"With the other settings as they are, {name}={getattr(self, name)} will be ignored.", UserWarning, stacklevel=3)


class Psoft(Method):
    """Orthogonal fine-tuning within the principal subspace."""

    title = "PSOFT"
    help = "Turns a layer's main directions against each other. Tiny files; keeps what the model knows; needs the very same base model."
    config = PsoftConfig
    prefix = "psoft_"
    begins_at_base = True
    dropped = "psoft_dropout"

    def refuses(self, cfg: PsoftConfig, site: Site) -> str:
        if site.groups > 1:
            return "PSOFT mixes all channels, which a grouped convolution cannot."
        if cfg.r > min(site.out, site.columns):
            return f"`r` ({cfg.r}) must be less than or equal to min(in_features, out_features) ({site.columns}, {site.out})."
        return ""

    def tensors(self, cfg: PsoftConfig, site: Site) -> dict[str, TensorSpec]:
        r, ones = cfg.r, torch.nn.init.ones_
        if cfg.psoft_orth:
            table = {"psoft_R.weight": TensorSpec((r * (r - 1) // 2,), torch.nn.init.zeros_ if cfg.init_weights else
                                                  lambda t: torch.nn.init.normal_(t, std=0.1))}
        else:
            table = {"psoft_R.weight": TensorSpec((r, r), torch.nn.init.eye_ if cfg.init_weights else
                                                  lambda t: torch.nn.init.eye_(t).add_(torch.randn_like(t) * 0.1))}
        table |= {"psoft_R.vector_b": TensorSpec((r,), ones)} if cfg.psoft_mag_b else {}
        table |= {"psoft_R.vector_a": TensorSpec((r,), ones)} if cfg.psoft_mag_a else {}
        return table | {"psoft_A": TensorSpec((r, site.columns), torch.nn.init.zeros_, trainable=False, saved=False),
                        "psoft_B": TensorSpec((site.out, r), torch.nn.init.zeros_, trainable=False, saved=False)}

    def start(self, p: Tensors, cfg: PsoftConfig, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        if cfg.psoft_svd == "full":
            U, S, Vh = torch.linalg.svd(W0, full_matrices=False)
        else:
            with torch.random.fork_rng(devices=[] if W0.device.type == "cpu" else [W0.device]):
                torch.manual_seed(cfg.random_seed)
                U, S, V = torch.svd_lowrank(W0, q=cfg.r, niter=cfg.psoft_svd_lowrank_niter)
            Vh = V.T
        U, S, Vh = U[:, :cfg.r], S[:cfg.r], Vh[:cfg.r]
        half = cfg.ab_svd_init == "pissa_init"
        p["psoft_A"].copy_(Vh * S.sqrt()[:, None] if half else Vh)
        p["psoft_B"].copy_(U * (S.sqrt() if half else S))

    def factors(self, p: Tensors, cfg: PsoftConfig, site: Site) -> Factors:
        R = turn(p, cfg)
        I = torch.eye(cfg.r, device=R.device, dtype=R.dtype)
        return Factors(p["psoft_A"], p["psoft_B"] @ (R - I).to(p["psoft_B"].dtype), 1.0)

    def delta(self, p: Tensors, cfg: PsoftConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        f = self.factors(p, cfg, site)
        return f.B @ f.A


def turn(p: Tensors, cfg: PsoftConfig) -> Tensor:
    """R ``(r, r)``, in float32 or better: a Cayley rotation (or its series, or a free matrix) between two stretches."""
    weight = p["psoft_R.weight"]
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if not cfg.psoft_orth:
        R = weight
    else:
        rows, columns = torch.triu_indices(cfg.r, cfg.r, 1, device=weight.device)
        Q = weight.new_zeros(cfg.r, cfg.r).index_put((rows, columns), weight)
        Q = Q - Q.T
        I = torch.eye(cfg.r, device=Q.device, dtype=Q.dtype)
        R = cayley_series(Q, cfg.num_cayley_neumann_terms, cfg.cayley_neumann_eps) if cfg.use_cayley_neumann else \
            torch.linalg.solve(I - Q, I + Q, left=False)
    R = R * p["psoft_R.vector_b"][:, None] if cfg.psoft_mag_b else R
    return R * p["psoft_R.vector_a"] if cfg.psoft_mag_a else R


def cayley_series(Q: Tensor, terms: int, eps: float | None) -> Tensor:
    """``I + 2Q + 2Q² + … + Qᵗ⁻¹``, the first ``terms`` of ``(I + Q)(I − Q)⁻¹``; three count as four, as in PEFT's files."""
    if eps is not None:
        norm = torch.linalg.norm(Q)
        Q = Q * (eps / (norm + 1e-12)) if norm > eps else Q
    R = power = torch.eye(Q.shape[0], device=Q.device, dtype=Q.dtype)
    last = max(terms, 4) - 1 if terms > 2 else terms - 1
    for degree in range(1, last + 1):
        power = power @ Q
        R = R + (power if degree == last and terms > 2 else 2 * power)
    return R


METHOD = Psoft()
