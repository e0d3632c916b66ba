"""LoftQ: the layer as if it were quantized, and a LoRA that begins at what the quantization lost.

``ΔW = (Q − W0) + s · B · A`` where Q is W0 in 4 or 8 bits, chosen in turns with B·A so that ``Q + s · B · A`` begins close to W0.
Li et al. 2023 (arXiv 2310.08659). PEFT: ``LoraConfig(init_lora_weights="loftq")``, which writes Q over the base and needs bitsandbytes; here
the base stays and Q is made again from it. PEFT forgets s; it counts here.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor

from engine.methods.base import Site, Tensors, TensorSpec, Variant

LOST = "lora_loftq.weight"
BLOCK = 64                                 # values that share a scale in nf4
# the sixteen values of nf4: quantiles of a normal distribution (Dettmers et al. 2023, arXiv 2305.14314, appendix E)
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495,
       0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
       0.7229568362236023, 1.0)


class Loftq(Variant):
    """A law round LoRA. What the quantization takes off the base, ``(out, columns)``, is kept frozen and never saved."""

    title = "LoftQ"
    help = "For a model that will be quantized later: learns to make up for what the smaller numbers lose."

    def refuses(self, cfg: Any, site: Site) -> str:
        if site.quantized:
            return ("LoftQ starts from what the quantization loses, and this weight is packed already: start as usual, "
                    "then call `replace_lora_weights_loftq`, which reads the original files.")
        if (rank := self.inner.rank(cfg, site)) > min(site.out, site.columns):
            return f"LoftQ takes {rank} directions from the layer's own weight, which has {min(site.out, site.columns)}: choose a smaller `r`."
        return self.inner.refuses(cfg, site)

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        return {**self.inner.tensors(cfg, site), LOST: TensorSpec((site.out, site.columns), torch.nn.init.zeros_, trainable=False, saved=False)}

    def starts_from_base(self, cfg: Any) -> bool:
        return True

    def start(self, p: Tensors, cfg: Any, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        (a, b), rank = self.inner.tensors(cfg, site), self.inner.rank(cfg, site)
        Q, left, right = decompose(W0, rank, cfg.loftq_config["loftq_bits"], cfg.loftq_config["loftq_iter"])
        p[LOST].copy_(Q - W0)
        if {a, b} <= fresh:
            p[a].copy_(right.reshape(p[a].shape))
            p[b].copy_(left.reshape(p[b].shape) / self.inner.factors(p, cfg, site).scale)

    def factors(self, p: Tensors, cfg: Any, site: Site) -> None:
        return None

    def delta(self, p: Tensors, cfg: Any, site: Site, W0: Tensor | None = None) -> Tensor:
        return p[LOST] + self.inner.delta(p, cfg, site, W0)


def decompose(W: Tensor, rank: int, bits: int, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """(Q, left ``(out, rank)``, right ``(rank, columns)``) with Q = quantized(W − left·right) of the round before, and left·right nearest W − Q."""
    rest = W
    for _ in range(rounds):
        Q = quantized(rest, bits)
        left, right = nearest(W - Q, rank)
        rest = W - left @ right
    return Q, left, right


def nearest(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """left ``(out, rank)`` and right ``(rank, columns)`` whose product is the best approximation of W, the sizes shared evenly."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    root = S[:rank].sqrt()
    return U[:, :rank] * root, root[:, None] * Vh[:rank]


def quantized(W: Tensor, bits: int) -> Tensor:
    """W as it comes back from nf4 (blocks of 64 in row order, each with its largest value as scale) or int8 (a scale for each row)."""
    if bits == 8:
        scale = W.abs().amax(1, keepdim=True) / 127
        return (W / scale.clamp_min(torch.finfo(W.dtype).tiny)).round() * scale
    flat = torch.nn.functional.pad(W.flatten(), (0, -W.numel() % BLOCK)).view(-1, BLOCK)
    levels = torch.tensor(NF4, dtype=W.dtype, device=W.device)
    scale = flat.abs().amax(1, keepdim=True)
    code = torch.bucketize(flat / scale.clamp_min(torch.finfo(W.dtype).tiny), (levels[1:] + levels[:-1]) / 2)
    return (levels[code] * scale).flatten()[: W.numel()].view_as(W)


def wanted(cfg: Any) -> bool:
    return cfg.init_lora_weights == "loftq"


VARIANT = Loftq
