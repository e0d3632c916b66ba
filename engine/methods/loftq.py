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

from engine.law import Factors, Site, Tensors, TensorSpec, Variant
from engine.numerics.quantize import decompose

LOST = "lora_loftq.weight"


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

    def parts(self, p: Tensors, cfg: Any, site: Site) -> tuple[Factors, Tensor]:
        return self.inner.factors(p, cfg, site), p[LOST]

    def delta(self, p: Tensors, cfg: Any, site: Site, W0: Tensor | None = None) -> Tensor:
        return p[LOST] + self.inner.delta(p, cfg, site, W0)


def wanted(cfg: Any) -> bool:
    return cfg.init_lora_weights == "loftq"


VARIANT = Loftq
