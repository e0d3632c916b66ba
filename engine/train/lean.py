"""A backbone that keeps little while it learns: norms, activations and gated products are computed again in the backward pass.

What an architecture's modules compute is never assumed. A module of a known shape gets a lean forward only after it has given, on the
module's own weights, the very numbers that its own forward gives; what is unknown keeps its own. The lean forwards stand in the modules
only while `lean` is open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from engine.hosts.recompute import recomputed

Forward = Callable[..., Tensor]
_ACTIVATIONS = tuple({made[0] if isinstance(made, tuple) else made for made in ACT2FN.values()} | {nn.GELU, nn.SiLU, nn.ReLU})


class Lean:
    """The lean forwards of a backbone: found once, put in place by ``with lean:`` and taken out after it."""

    def __init__(self, backbone: nn.Module):
        self._forwards = dict(_found(backbone))

    def __len__(self) -> int:
        return len(self._forwards)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Open until the backward pass is done: a checkpointed block runs its forward again there."""
        changed = [module for module in self._forwards if "forward" not in module.__dict__]
        for module in changed:
            module.forward = self._forwards[module]
        try:
            yield
        finally:
            for module in changed:
                del module.forward


def _found(backbone: nn.Module) -> Iterator[tuple[nn.Module, Forward]]:
    gated: set[nn.Module] = set()
    for module in backbone.modules():
        if (forward := _gated(module)) is not None:
            gated.update(module.children())
            yield module, forward
    for module in backbone.modules():
        if module not in gated and _is_plain(module) and (isinstance(module, _ACTIVATIONS) or "norm" in type(module).__name__.lower()):
            yield module, _again(module)


def _is_plain(module: nn.Module) -> bool:
    """A function of its input alone, with nothing in it that learns."""
    return not (any(True for _ in module.children()) or any(p.requires_grad for p in module.parameters())
                or any(True for _ in module.buffers()) or "forward" in module.__dict__)


def _again(module: nn.Module) -> Forward:
    own = module.forward

    def forward(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return own(x, *args, **kwargs) if args or kwargs else recomputed(own, x)

    return forward


def _gated(module: nn.Module) -> Forward | None:
    """``down(act(gate(x)) · up(x))``, in the two ways in which transformers writes it; None for anything else."""
    parts = dict(module.named_children())
    act = getattr(module, "act_fn", getattr(module, "activation_fn", None))
    if not callable(act) or "down_proj" not in parts or (isinstance(act, nn.Module) and any(True for _ in act.parameters())):
        return None

    def product(gate: Tensor, up: Tensor) -> Tensor:
        return act(gate) * up

    def swapped(gate: Tensor, up: Tensor) -> Tensor:
        return up * act(gate)

    if {"gate_proj", "up_proj"} <= parts.keys():
        def forward(x: Tensor) -> Tensor:
            return module.down_proj(recomputed(product, module.gate_proj(x), module.up_proj(x)))
    elif "gate_up_proj" in parts:
        def forward(x: Tensor) -> Tensor:
            return module.down_proj(recomputed(swapped, *module.gate_up_proj(x).chunk(2, dim=-1)))
    else:
        return None
    return forward if _agree(module, forward) else None


@torch.no_grad()
def _agree(module: nn.Module, forward: Forward) -> bool:
    weight = next(module.parameters())
    columns = getattr(module, "hidden_size", None) or getattr(getattr(module, "config", None), "hidden_size", None)
    if not isinstance(columns, int):
        return False
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    try:
        return torch.equal(module(x), forward(x))
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False                       # another kind of block under the same names
