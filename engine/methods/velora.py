"""VeLoRA: LoRA that keeps, of each layer's inputs, one number for each group of channels to compute A's gradient from.

Miles et al. 2024 (arXiv 2405.17991). PEFT: ``LoraConfig(velora_config=VeloraConfig(…))``. Forward, merging and files are LoRA's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.law import Run, Site, Tensors, TensorSpec, Variant

DIRECTION = "lora_velora_embed"


class Velora(Variant):
    """A law round LoRA: what is kept for the backward pass is inputs in groups, each projected on one common direction."""

    title = "VeLoRA"
    help = "LoRA that needs less memory while it learns long texts, at the price of a coarser gradient."

    def refuses(self, cfg: Any, site: Site) -> str:
        return "VeLoRA sits on linear layers only." if site.kind != "linear" else self.inner.refuses(cfg, site)

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        def start(tensor: Tensor) -> None:
            tensor.copy_(_unit(torch.randn(tensor.shape))) if cfg.velora_config.init_type == "random" else tensor.zero_()

        width = -(-site.columns // cfg.velora_config.num_groups)
        return {**self.inner.tensors(cfg, site), DIRECTION: TensorSpec((width,), start, trainable=False)}

    def apply(self, p: Tensors, cfg: Any, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor:
        f, settings = self.inner.factors(p, cfg, site), cfg.velora_config
        A, B = f.A.to(x.dtype), f.B.to(x.dtype)
        if run.training and torch.is_grad_enabled():
            direction = p[DIRECTION]
            if settings.init_type == "batch_average" or settings.init_type == "batch_average_once" and not direction.any():
                with torch.no_grad():
                    direction.copy_(_unit(_grouped(x, settings.num_groups).flatten(0, 1).mean(0)))
            h = _Compressed.apply(x, A, direction.to(x.dtype, copy=True), settings.num_groups, settings.scale)
        else:
            h = F.linear(x, A)
        return F.linear(h * f.scale, B)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """Rows of ``x`` ``(…, in)`` cut into groups, the last one filled up with zeros: ``(rows, groups, width)``."""
    short = -x.shape[-1] % groups
    return (F.pad(x, (0, short)) if short else x).reshape(-1, groups, (x.shape[-1] + short) // groups)


def _unit(direction: Tensor) -> Tensor:
    direction = direction.float()
    return F.normalize(direction if direction.any() else torch.ones_like(direction), dim=0, eps=0)


class _Compressed(torch.autograd.Function):
    """``x·Aᵀ`` whose gradient for A is computed from the compressed inputs; that for x is exact."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, direction: Tensor, groups: int, scale: float) -> Tensor:
        ctx.save_for_backward(_grouped(x, groups) @ direction, A, direction)
        ctx.scale = scale
        return F.linear(x, A)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, A, direction = ctx.saved_tensors
        of_groups = grad.reshape(-1, grad.shape[-1]).T @ kept * ctx.scale            # all inputs of a group are one number times the direction
        to_a = (of_groups[..., None] * direction).flatten(1)[:, : A.shape[1]]
        return grad @ A if ctx.needs_input_grad[0] else None, to_a, None, None, None


def wanted(cfg: Any) -> bool:
    return cfg.velora_config is not None


VARIANT = Velora
