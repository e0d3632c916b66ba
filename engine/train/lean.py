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

from engine.hosts.recompute import Back, recomputed

CACHED = 1_000_000                         # bytes of a norm's input whose gradient a processor works out in one go
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
        if args or kwargs:
            return own(x, *args, **kwargs)
        if not found:                      # only now is the weight of a split base sure to be there
            found.append(_root_mean_back(module, own))
        return recomputed(own, x, back=found[0])

    found: list[Back | None] = []
    return forward


def _root_mean_back(module: nn.Module, own: Forward) -> Back | None:
    """The gradient of a norm by the root of the mean square, if that is what the module is: in a third of autograd's steps, and in 32 bits.

    A few rows at a time, all of whose steps then find them in a processor's cache.
    """
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    more = next((more for more in (0.0, 1.0) if _is_root_mean(own, weight, eps, more)), None)

    def back(x: Tensor, grad: Tensor) -> tuple[Tensor]:
        factor, found = weight.float() + more, x.new_empty(x.shape)
        rows, grads, into = (t.reshape(-1, t.shape[-1]) for t in (x, grad, found))
        size = max(1, CACHED // (4 * len(weight))) if x.device.type == "cpu" else max(1, len(rows))
        for row, g, to in zip(rows.split(size), grads.split(size), into.split(size)):
            row, g = row.float(), g.float() * factor
            root = row.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
            row = row * root
            to.copy_(g.addcmul_(row, (g * row).mean(-1, keepdim=True), value=-1).mul_(root))
        return found,

    return None if more is None else back


@torch.no_grad()
def _is_root_mean(own: Forward, weight: Tensor, eps: float, more: float) -> bool:
    """Whether it gives ``x / √(mean(x²) + eps) · (weight + more)``, also where ``eps`` outweighs the rest."""
    x = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0)).mul_(torch.tensor([[eps ** 0.5], [1.0], [30.0]])).add_(eps ** 0.5)
    x = x.to(weight.device, weight.dtype)
    exact = x.double() * (x.double().square().mean(-1, keepdim=True) + eps).rsqrt() * (weight.double() + more)
    try:
        found = own(x)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    close = 4 * max(torch.finfo(weight.dtype).eps, torch.finfo(torch.float32).eps)
    return found.shape == x.shape and torch.allclose(found.double(), exact, rtol=close, atol=close * float(exact.abs().mean()))


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
