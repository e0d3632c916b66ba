"""What is cheap to compute is not kept for the backward pass, but computed again there.

`recomputed` runs a piece of a model (an elementwise chain, a norm, an attention) and keeps its inputs only. Its output remembers how it
was made, so that whoever needs the output in its own backward (a low-rank path needs its input) can keep those same inputs instead of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Piece = Callable[..., Tensor]                                 # tensors → one tensor, the same at every call


class Origin:
    """How a tensor was made. Made again at most once, however many ask for it: the last of them lets it go."""

    def __init__(self, piece: Piece, inputs: tuple[Tensor, ...]):
        self.inputs = inputs
        self.recipe = Recipe(piece)

    @staticmethod
    def of(tensor: Tensor) -> "Origin | None":
        """That of a tensor which `recomputed` gave and nobody has changed since."""
        origin = getattr(tensor, "_origin", None)
        return origin if origin is not None and tensor._version == 0 else None


class Recipe:
    """The part of an `Origin` that outlives the forward pass; it holds no tensor until it is asked for one."""

    def __init__(self, piece: Piece):
        self._piece, self._waiting, self._made = piece, 0, None

    def expect(self) -> "Recipe":
        """Announce one call of `make`."""
        self._waiting += 1
        return self

    @torch.no_grad()
    def make(self, *inputs: Tensor) -> Tensor:
        """The tensor, from the inputs that its origin named."""
        made = self._piece(*inputs) if self._made is None else self._made
        self._waiting -= 1
        self._made = made if self._waiting > 0 else None
        return made


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, piece: Piece, *inputs: Tensor) -> Tensor:
        ctx.piece = piece
        ctx.save_for_backward(*inputs)
        return piece(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        inputs = ctx.saved_tensors
        with torch.enable_grad():
            own = [t.detach().requires_grad_() if need else t for t, need in zip(inputs, needed)]
            again = ctx.piece(*own)
        found = iter(torch.autograd.grad(again, [t for t, need in zip(own, needed) if need], grad))
        return None, *(next(found) if need else None for need in needed)


def recomputed(piece: Piece, *inputs: Tensor) -> Tensor:
    """``piece(*inputs)``, of which only the inputs are kept.

    ``piece`` must not draw random numbers, and gradients reach nothing but ``inputs`` (once: there is no second derivative).
    """
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in inputs)):
        return piece(*inputs)
    out = _Recomputed.apply(piece, *inputs)
    out._origin = Origin(piece, inputs)
    return out
