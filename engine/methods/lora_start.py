"""LoRA that starts from the base's own weights, or from what data says of them, and leaves the base as it is.

PEFT takes ``s·B₀·A₀`` off the base and lets the adapter begin at B₀, A₀. Here the starting factors stay beside the adapter, frozen, and
``ΔW = s · (B·A − B₀·A₀)``: the same model at every step, but the base is untouched, and so are the adapters beside it.

PiSSA: Meng et al. 2024 (arXiv 2404.02948); OLoRA: Büyükakyüz 2024 (arXiv 2406.01775); CorDA: Yang et al. 2024 (arXiv 2406.05223);
LoRA-GA: Wang et al. 2024 (arXiv 2407.05000).
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor

from engine.law import Factors, Site, Tensors, TensorSpec, Variant

A, B = "lora_A.weight", "lora_B.weight"
FIRST_A, FIRST_B = "lora_first_A.weight", "lora_first_B.weight"


class FromBase(Variant):
    """A law round LoRA. Embeddings start as they always do, as in PEFT; LoRA-GA is for linear layers alone."""

    title = "LoRA"
    help = "LoRA that begins with the strongest directions of the model's own weights: learns faster at the start."

    @staticmethod
    def _as_ever(cfg: Any, site: Site) -> bool:
        return site.kind == "embedding" or cfg.init_lora_weights == "lora_ga" and site.kind != "linear"

    def refuses(self, cfg: Any, site: Site) -> str:
        rank, needed = self.inner.rank(cfg, site), 2 if cfg.init_lora_weights == "lora_ga" else 1
        if not self._as_ever(cfg, site) and needed * rank > min(site.out, site.columns):
            return (f"The start “{cfg.init_lora_weights}” takes {needed * rank} directions from the layer's own weight, "
                    f"which has {min(site.out, site.columns)}: choose a smaller `r`.")
        return self.inner.refuses(cfg, site)

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        table = self.inner.tensors(cfg, site)
        if self._as_ever(cfg, site):
            return table
        # what W0 alone decides is made again from it; what chance or data decided is in the file
        repeatable = cfg.init_lora_weights in ("pissa", "olora")
        return {**table, FIRST_A: TensorSpec(table[A].shape, torch.nn.init.zeros_, trainable=False, saved=not repeatable),
                FIRST_B: TensorSpec(table[B].shape, torch.nn.init.zeros_, trainable=False, saved=not repeatable)}

    def starts_from_base(self, cfg: Any) -> bool:
        return True

    def start(self, p: Tensors, cfg: Any, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        self.inner.start(p, cfg, site, W0, fresh)
        if not {FIRST_A, FIRST_B} <= fresh:
            return
        own = self.inner.factors(p, cfg, site)
        first = self._first(cfg, site, W0, own.A.shape[0], own.scale, new=A in fresh)
        if first is not None:
            for key, first_key, value in ((A, FIRST_A, first[0]), (B, FIRST_B, first[1])):
                p[first_key].copy_(value.reshape(p[first_key].shape))
                if key in fresh:
                    p[key].copy_(p[first_key])

    def _first(self, cfg: Any, site: Site, W0: Tensor, rank: int, scale: float, new: bool) -> tuple[Tensor, Tensor] | None:
        """(A₀ ``(rank, columns)``, B₀ ``(out, rank)``); None for a file that belongs to a base from which they have been taken already."""
        start = cfg.init_lora_weights
        if start == "olora":
            Q, R = torch.linalg.qr(W0)
            return R[:rank], Q[:, :rank]
        if start.startswith("pissa"):
            return balanced(*_principal(W0, rank, start, new), scale)
        known = cfg.calibration.pop(site.path, None)         # used up: it may be as large as the layer
        if known is None and new:
            todo = "`eigens` attribute not found for layer, please run `preprocess_corda` first" if start == "corda" else \
                   "there are no gradients of the layer, please run `preprocess_loraga` first"
            raise ValueError(f"The start “{start}” needs data for {site.path}: {todo}, with the same config.")
        if known is None:
            return None
        if start == "corda":
            return balanced(known["U"], known["S"], known["V"], scale)
        return _along_gradient(known["gradient"].to(W0), W0, rank, scale, cfg.lora_ga_config)

    def parts(self, p: Tensors, cfg: Any, site: Site) -> tuple[Factors, Factors] | None:
        f = self.inner.factors(p, cfg, site)
        return (f, Factors(p[FIRST_A].flatten(1), p[FIRST_B].flatten(1), -f.scale)) if FIRST_A in p else None

    def factors(self, p: Tensors, cfg: Any, site: Site) -> Factors:
        parts = self.parts(p, cfg, site)
        return Factors.of(*parts) if parts else self.inner.factors(p, cfg, site)


def balanced(U: Tensor, S: Tensor, V: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """A ``(rank, columns)`` and B ``(out, rank)`` with ``scale · B·A = U·diag(S)·Vᵀ``, the sizes shared evenly between them."""
    root = (S / scale).sqrt()
    return root[:, None] * V.T, U * root


def _principal(W0: Tensor, rank: int, start: str, new: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``rank`` singular triples: exactly, or for ``pissa_niter_N`` by a randomised method with N rounds."""
    if start == "pissa":
        U, S, Vh = torch.linalg.svd(W0, full_matrices=False)
        return U[:, :rank], S[:rank], Vh[:rank].T
    rounds = int(start.removeprefix("pissa_niter_"))
    if new:
        return torch.svd_lowrank(W0, rank, niter=rounds)
    with torch.random.fork_rng():          # a file of PEFT's, which does not say how the dice fell: as near to the exact triples as is cheap
        torch.manual_seed(0)
        U, S, V = torch.svd_lowrank(W0, min(2 * rank, *W0.shape), niter=max(rounds, 4))
    return U[:, :rank], S[:rank], V[:, :rank]


def _along_gradient(gradient: Tensor, W0: Tensor, rank: int, scale: float, cfg: Any) -> tuple[Tensor, Tensor]:
    """LoRA-GA: A₀ and B₀ take different ones of the gradient's first 2·rank singular directions."""
    U, S, V = torch.svd_lowrank(gradient, q=min(4 * rank, *gradient.shape), niter=4)
    if cfg.direction == "ArBr":
        for_a, for_b = torch.arange(1, 2 * rank, 2), torch.arange(0, 2 * rank, 2)
    elif cfg.direction == "A2rBr":
        for_a, for_b = torch.arange(rank, 2 * rank), torch.arange(rank)
    elif cfg.direction == "ArB2r":
        for_a, for_b = torch.arange(rank), torch.arange(rank, 2 * rank)
    else:
        for_a = for_b = torch.randperm(2 * rank)[:rank]
    A0, B0 = V.T[for_a], U[:, for_b] * S[for_b]
    if cfg.scale == "stable":
        B0 = B0 * (W0.shape[0] ** 0.25 / cfg.stable_gamma ** 0.5)
    elif cfg.scale == "weight_svd" and S[for_b[0]] > torch.finfo(S.dtype).eps * max(gradient.shape) * S[0]:       # a direction that there is
        B0 = B0 * (torch.svd_lowrank(W0, q=rank, niter=4)[1][0] / S[for_b[0]])
    elif cfg.scale == "gd_scale":
        A0, B0 = A0 / scale, B0 / scale
    return A0, B0


def wanted(cfg: Any) -> bool:
    return str(cfg.init_lora_weights).startswith("pissa") or cfg.init_lora_weights in ("olora", "corda", "lora_ga")


VARIANT = FromBase
