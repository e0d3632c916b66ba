"""Optimizers that know what A and B of a LoRA are, by PEFT's names: LoRA+, LoRA-FA and Riemannian preconditioning.

Each makes a `torch.optim.Optimizer` for a `PeftModel`; what they group and how they step is PEFT's, where that is right.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.model.peft_model import PeftModel

EIGHT_BIT = ("Adam8bit", "AdamW8bit", "PagedAdam8bit", "PagedAdamW8bit")       # of bitsandbytes, which must not round embeddings


def create_loraplus_optimizer(model: PeftModel, optimizer_cls: type[Optimizer], *, lr: float, loraplus_lr_ratio: float,
                              loraplus_weight_decay: float = 0.0, loraplus_lr_embedding: float = 1e-6, **kwargs: Any) -> Optimizer:
    """LoRA+: B learns ``loraplus_lr_ratio`` times as fast as A (Hayou et al. 2024, arXiv 2402.12354; PEFT function of the same name).

    Args:
        loraplus_lr_embedding: speed of adapters on embeddings. kwargs: further arguments of ``optimizer_cls``.

    Returns:
        An ``optimizer_cls`` with four groups: A and the rest, embeddings, B and vectors, and of the latter those without weight decay.
    """
    spared = {f"{path}.{name}" for path, module in model.named_modules() if isinstance(module, nn.LayerNorm) for name, _ in module.named_parameters()}
    a, embedding, b, b_undecayed = [], [], [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if ".lora_embedding_" in name:
            embedding.append(p)
        elif "lora_B" in name or p.ndim == 1:
            (b_undecayed if "bias" in name or name in spared else b).append(p)
        else:
            a.append(p)
    fast = lr * loraplus_lr_ratio
    groups = [(a, loraplus_weight_decay, lr), (embedding, loraplus_weight_decay, loraplus_lr_embedding), (b, loraplus_weight_decay, fast),
              (b_undecayed, 0.0, fast)]
    optimizer = optimizer_cls([{"params": params, "weight_decay": decay, "lr": speed} for params, decay, speed in groups], lr=lr, **kwargs)
    if optimizer_cls.__name__ in EIGHT_BIT:
        package = import_module(optimizer_cls.__module__.partition(".")[0])
        manager = package.optim.GlobalOptimManager.get_instance()
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer


# --- LoRA-FA ---

def create_lorafa_optimizer(model: PeftModel, r: int, lora_alpha: float, lr: float, weight_decay: float = 0.0,
                            use_rslora: bool | None = None) -> "LoraFAOptimizer":
    """LoRA-FA: A is frozen, and B's gradient is turned so that ``B·A`` follows full training's (arXiv 2308.03303; PEFT function).

    Each layer counts with its own scaling, so ``r`` and ``lora_alpha`` are not needed; they stand here for programs written for PEFT, as does
    ``use_rslora``. Raises `ValueError` if the latter contradicts an active adapter's config.
    """
    if use_rslora is not None:
        if odd := [n for n in model.active_adapters if bool(getattr(model.peft_config[n], "use_rslora", False)) != use_rslora]:
            raise ValueError(f"`use_rslora={use_rslora}` was passed to create_lorafa_optimizer, but the following active adapters have "
                             f"`use_rslora` set differently in the model config: {odd}. Leave it out.")
        warnings.warn("`use_rslora` in create_lorafa_optimizer is deprecated: the adapters' own settings count.", FutureWarning, stacklevel=2)
    partners: dict[Tensor, tuple[Tensor, float]] = {}
    for layer in model.adapted.values():
        for name, tenant in layer.tenants.items():
            p = layer.tensors(name)
            if {"lora_A.weight", "lora_B.weight"} <= p.keys():
                p["lora_A.weight"].requires_grad_(False)
                if (factors := tenant.method.factors(p, tenant.config, tenant.site)) is not None:
                    partners[p["lora_B.weight"]] = p["lora_A.weight"], factors.scale
    model.stack.changed()
    return LoraFAOptimizer([p for p in model.parameters() if p.requires_grad], lr, weight_decay=weight_decay, partners=partners)


class LoraFAOptimizer(Optimizer):
    """AdamW, with weight decay after the step, whose gradients of each B become ``g · (A·Aᵀ)⁻¹ / scale²``.

    Args:
        partners: B → (A, scale); parameters that are not in it are stepped as AdamW does. correct_bias: as in Adam.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
                 weight_decay: float = 0.0, correct_bias: bool = True, partners: Mapping[Tensor, tuple[Tensor, float]] | None = None):
        if lr < 0.0:
            raise ValueError(f"Invalid learning rate: {lr} - should be >= 0.0")
        for beta in betas:
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter: {beta} - should be in [0.0, 1.0)")
        if eps < 0.0:
            raise ValueError(f"Invalid epsilon value: {eps} - should be >= 0.0")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias})
        self.partners = dict(partners or {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` computes the loss anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                grad = projected(p.grad, *self.partners[p]) if p in self.partners else p.grad
                state = self.state[p]
                if not state:
                    state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                state["step"] += 1
                state["exp_avg"].lerp_(grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                speed = group["lr"]
                if group["correct_bias"]:
                    speed *= math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
                p.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-speed)
                p.mul_(1 - group["lr"] * group["weight_decay"])
        return loss


def projected(grad: Tensor, A: Tensor, scale: float) -> Tensor:
    """``grad · (A·Aᵀ)⁻¹ / scale²`` for the gradient of B, in float32 or better (PEFT: bfloat16 where the machine has it)."""
    exact = torch.promote_types(grad.dtype, torch.float32)
    rows = A.flatten(1).to(exact)
    inverse = torch.linalg.pinv(rows @ rows.T + 1e-8 * torch.eye(len(rows), device=rows.device, dtype=exact))
    return (grad.flatten(1).to(exact) @ inverse / scale ** 2).view_as(grad).to(grad.dtype)


# --- Riemannian preconditioning ---

def create_riemannian_optimizer(model: PeftModel, optimizer_cls: type[Optimizer], *, lr: float, reg: float = 1e-2, **kwargs: Any) -> Optimizer:
    """An ``optimizer_cls`` before whose steps ``g_A ← (BᵀB + reg)⁻¹ g_A`` and ``g_B ← g_B (AAᵀ + reg)⁻¹``, for every trained pair of matrices.

    Zhang and Pilanci 2024 (arXiv 2402.02347); PEFT function of the same name.

    Raises:
        TypeError: ``optimizer_cls`` is none. ValueError: no trained pair, or it (or a step) needs a closure, which would overwrite the gradients.
    """
    if not (inspect.isclass(optimizer_cls) and issubclass(optimizer_cls, Optimizer)):
        raise TypeError(f"optimizer_cls must be a subclass of torch.optim.Optimizer, got {optimizer_cls!r}.")
    pairs = _pairs(model)
    if not pairs:
        raise ValueError("create_riemannian_optimizer did not find any trainable lora_A/lora_B parameter pairs on the model.")
    closure = inspect.signature(optimizer_cls.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(f"{optimizer_cls.__name__} requires a closure and looks at the loss several times a step, each time with other gradients. "
                         "Take one whose closure is optional (SGD, AdamW …).")

    class Riemannian(optimizer_cls):
        @torch.no_grad()
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            if closure is not None:
                raise ValueError("The Riemannian-preconditioned optimizer does not support closures: they would overwrite its gradients.")
            for A, B in pairs:
                precondition(A, B, reg)
            return super().step()

    return Riemannian([p for p in model.parameters() if p.requires_grad], lr=lr, **kwargs)


def _pairs(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """(A, B) of every LoRA on a linear layer of which both halves train."""
    named = dict(model.named_parameters())
    found = ((A, named.get(name.replace(".lora_A.", ".lora_B."))) for name, A in named.items() if ".lora_A." in name)
    return [(A, B) for A, B in found if B is not None and A.ndim == B.ndim == 2 and len(A) == B.shape[1] and A.requires_grad and B.requires_grad]


def precondition(A: Tensor, B: Tensor, reg: float) -> None:
    """Turn the gradients of A ``(rank, in)`` and B ``(out, rank)`` in place; computed in float32 or better."""
    exact = torch.promote_types(A.dtype, torch.float32)
    a, b, damping = A.detach().to(exact), B.detach().to(exact), reg * torch.eye(len(A), device=A.device, dtype=exact)
    if A.grad is not None:
        A.grad.copy_(torch.linalg.pinv(b.T @ b + damping) @ A.grad.to(exact))
    if B.grad is not None:
        B.grad.copy_(B.grad.to(exact) @ torch.linalg.pinv(a @ a.T + damping))
