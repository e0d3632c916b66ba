"""OSF: the weight's main directions stay, the rest is trained: ``ΔW = U·S·V − U₀·S₀·V₀`` with U₀·S₀·V₀ the small end of the SVD of W0.

Nayak et al. 2025 (arXiv 2504.07097). Steps of U and V are kept orthogonal to the main directions. PEFT class ``OSFConfig``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Set
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from engine.law import Factors, Method, Site, TargetedConfig, Tensors, TensorSpec
from engine.specs.fields import knob

U, S, V = "osf_svd_params.U_low", "osf_svd_params.S_low", "osf_svd_params.V_low"
U0, S0, V0, U_MAIN, V_MAIN = "osf_U_low_init", "osf_S_low_init", "osf_V_low_init", "osf_U_high", "osf_V_high"

_GATED = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
_FUSED = ["dense_4h_to_h", "query_key_value"]
_FAMILIES = {                              # what PEFT chooses where target_modules is left open; all linear layers elsewhere
    **dict.fromkeys(("llama", "llama4", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi"), _GATED),
    **dict.fromkeys(("bloom", "gpt_neox", "falcon"), _FUSED), **dict.fromkeys(("gpt2", "gpt_bigcode"), ["c_attn", "c_proj"]),
    "opt": ["fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"], "gptj": ["fc_in", "fc_out", "k_proj", "out_proj", "q_proj", "v_proj"],
}


@dataclass
class OSFConfig(TargetedConfig):
    """Settings of OSF, by PEFT's names and defaults.

    Raises:
        ValueError: a preserved rank that is not positive.
    """

    peft_type: ClassVar[str] = "OSF"

    effective_rank: int | float | None = knob(None, label="Kept directions", term="effective_rank", low=0, advanced=True,
                                              help="How many main directions never change: a number, or a share up to 1. Empty: half of them.")
    rank_pattern: dict | None = knob(None, label="Kept directions by layer", term="rank_pattern", advanced=True,
                                     help="Layer name or pattern → kept directions, where it differs.")
    init_weights: bool | None = knob(True, label="Start without effect", term="init_weights", advanced=True, help="Otherwise it starts at random.")
    target_svd_config: dict | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for value in (self.effective_rank, *(self.rank_pattern or {}).values()):
            if value is not None and value <= 0:
                raise ValueError(f"`effective_rank` should be a positive integer value but the value passed is {value}.")
        if self.target_svd_config:         # nor has it in PEFT, whose files may name it
            warnings.warn("`target_svd_config` has no effect; use `rank_pattern` to keep other numbers of directions in some layers.", stacklevel=3)


class Osf(Method):
    """Orthogonal subspace fine-tuning. Its files are as large as the share of the weight that learns."""

    title = "OSF"
    help = "Learns only where the model knows little, so that it forgets nothing. For teaching one thing after another; large files."
    config = OSFConfig
    prefix = "osf_"
    layers = _FAMILIES
    begins_at_base = True

    def settle(self, cfg: OSFConfig, model_type: str | None) -> None:
        super().settle(cfg, model_type)
        cfg.target_modules = "all-linear" if cfg.target_modules is None else cfg.target_modules

    def kept(self, cfg: OSFConfig, site: Site) -> int:
        """The number of main directions that stay."""
        most = min(site.out, site.columns)
        value: Any = next((v for pattern, v in (cfg.rank_pattern or {}).items() if re.search(pattern, site.path)), cfg.effective_rank)
        if value is None:
            return most // 2
        return min(most, int(most * value) if isinstance(value, float) and value <= 1 else int(value))

    def refuses(self, cfg: OSFConfig, site: Site) -> str:
        most = min(site.out, site.columns)
        if not 0 < self.kept(cfg, site) < most:
            return f"`effective_rank` must keep at least one of its {most} directions and leave one to learn."
        return ""

    def tensors(self, cfg: OSFConfig, site: Site) -> dict[str, TensorSpec]:
        kept = self.kept(cfg, site)
        free = min(site.out, site.columns) - kept
        shapes = {U: (site.out, free), S: (free,), V: (free, site.columns)}
        fixed = {U0: shapes[U], S0: shapes[S], V0: shapes[V]}
        if site.out > site.columns:                           # else what is orthogonal to the main directions is the span of U₀
            fixed[U_MAIN] = (site.out, kept)
        if site.columns > site.out:
            fixed[V_MAIN] = (kept, site.columns)
        start = torch.nn.init.normal_ if cfg.init_weights is False else torch.nn.init.zeros_
        return {name: TensorSpec(shape, start) for name, shape in shapes.items()} | {
            name: TensorSpec(shape, torch.nn.init.zeros_, trainable=False, saved=False) for name, shape in fixed.items()}

    def start(self, p: Tensors, cfg: OSFConfig, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        kept = self.kept(cfg, site)
        u, s, v = torch.linalg.svd(W0, full_matrices=False)
        for name, value in {U0: u[:, kept:], S0: s[kept:], V0: v[kept:], U_MAIN: u[:, :kept], V_MAIN: v[:kept]}.items():
            if name in p:
                p[name].copy_(value)
        if cfg.init_weights is not False:
            for name, origin in {U: U0, S: S0, V: V0}.items():
                if name in fresh:
                    p[name].copy_(p[origin])

    def parts(self, p: Tensors, cfg: OSFConfig, site: Site) -> tuple[Factors, Factors]:
        u = _Orthogonal.apply(p[U], p[U_MAIN] if U_MAIN in p else p[U0], U_MAIN in p)
        v = _Orthogonal.apply(p[V].T, (p[V_MAIN] if V_MAIN in p else p[V0]).T, V_MAIN in p).T
        return Factors(v, u * p[S], 1.0), Factors(p[V0], p[U0] * p[S0], -1.0)

    def delta(self, p: Tensors, cfg: OSFConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        learned, still = self.parts(p, cfg, site)
        return learned.B @ learned.A - still.B @ still.A


class _Orthogonal(torch.autograd.Function):
    """The identity, whose gradient is kept out of a subspace: ``basis`` ``(n, k)`` spans it, or all that is orthogonal to it."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, basis: Tensor, forbidden: bool) -> Tensor:
        ctx.save_for_backward(basis)
        ctx.forbidden = forbidden
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        basis, = ctx.saved_tensors
        part = basis @ (basis.T @ grad)
        return grad - part if ctx.forbidden else part, None, None


METHOD = Osf()
