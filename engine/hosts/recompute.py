"""What is cheap to compute is not kept for the backward pass, but computed again there.

`recomputed` runs a piece of a model (an elementwise chain, a norm, an attention) and keeps its inputs only. Its output remembers how it
was made, so that whoever needs the output in its own backward (a low-rank path needs its input) can keep those same inputs instead of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Piece = Callable[..., Tensor]                                 # tensors → one tensor, the same at every call
Back = Callable[..., tuple[Tensor | None, ...]]               # a piece's inputs, the gradient of its output → those of its inputs


class Origin:
    """How a tensor was made. In the backward pass it is made again once, for all who ask for it and for the piece's own gradient."""

    def __init__(self, recipe: "Recipe", inputs: tuple[Tensor, ...]):
        self.recipe, self.inputs = recipe, inputs

    @staticmethod
    def of(tensor: Tensor) -> "Origin | None":
        """That of a tensor which `recomputed` gave and nobody has changed since."""
        origin = getattr(tensor, "_origin", None)
        return origin if origin is not None and tensor._version == 0 else None


class Recipe:
    """The part of an `Origin` that outlives the forward pass; it holds no tensor until it is asked for one.

    Whoever uses the tensor learns before the piece that made it, which is the last to ask and lets it go.
    """

    def __init__(self, piece: Piece, needed: tuple[bool, ...], back: Back | None = None):
        self._piece, self._needed, self._back = piece, needed, back
        self._made: tuple[list[Tensor], Tensor] | None = None

    def make(self, *inputs: Tensor) -> Tensor:
        """The tensor, from the inputs that its origin named."""
        if self._made is None:
            with torch.set_grad_enabled(self._back is None):
                own = [t.detach().requires_grad_() if need else t for t, need in zip(inputs, self._needed)]
                self._made = own, self._piece(*own)
        return self._made[1].detach()

    def back(self, inputs: tuple[Tensor, ...], grad: Tensor) -> Iterator[Tensor | None]:
        """The gradients of the inputs."""
        if self._back is not None:
            self._made = None
            return iter(self._back(*inputs, grad))
        self.make(*inputs)
        (own, again), self._made = self._made, None
        found = iter(torch.autograd.grad(again, [t for t, need in zip(own, self._needed) if need], grad))
        return (next(found) if need else None for need in self._needed)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, piece: Piece, recipe: Recipe, *inputs: Tensor) -> Tensor:
        ctx.recipe = recipe
        ctx.save_for_backward(*inputs)
        return piece(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.recipe.back(ctx.saved_tensors, grad)


def recomputed(piece: Piece, *inputs: Tensor, back: Back | None = None) -> Tensor:
    """``piece(*inputs)``, of which only the inputs are kept. ``back``: its gradients, where there is a quicker way to them than autograd's.

    ``piece`` must not draw random numbers, and gradients reach nothing but ``inputs`` (once: there is no second derivative).
    """
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in inputs)):
        return piece(*inputs)
    recipe = Recipe(piece, tuple(t.requires_grad for t in inputs), back)
    out = _Recomputed.apply(piece, recipe, *inputs)
    out._origin = Origin(recipe, inputs)
    return out
