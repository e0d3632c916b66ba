"""What something was computed from: whether it is still the same.

Programs change parameters in every way that PyTorch has: in place, through ``.data``, by putting others in their places (an assignment,
``torch.func.functional_call``), by letting frozen ones learn. What is written into ``.data`` in place leaves no trace, and neither does what
an optimizer writes in one go (``fused``): so of what learns hardly anything is kept from one pass to the next, and nothing over a backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Basis:
    """Tensors in their places as they are now. ``learning``: values of those that learn may change, for they are read anew."""

    def __init__(self, places: Iterable[tuple[dict[str, Any], str]], learning: bool):
        self._seen = None if torch.compiler.is_compiling() else [
            (held, name, t, t.requires_grad, *((None, None) if learning and t.requires_grad else _values(t)))
            for held, name in places if (t := held[name]) is not None]

    def moved(self) -> bool:
        """Whether one of them is another one now, or has other values. A compiler looks itself, and so what it has seen is not known here."""
        if torch.compiler.is_compiling():
            return False
        if self._seen is None:
            return True
        for held, name, tensor, learns, version, address in self._seen:
            if held.get(name) is not tensor or tensor.requires_grad is not learns or (
                    version is not None and tensor._version != version or address is not None and tensor.data_ptr() != address):
                return True
        return False


def versions(tensors: Iterable[Tensor]) -> list[int | None]:
    """How often each was written in place; None for tensors that do not say."""
    return [None if t.is_inference() else t._version for t in tensors]


def _values(tensor: Tensor) -> tuple[int | None, int | None]:
    """What tells other values: how often it was written in place, and where it lies. None for tensors that do not say."""
    plain = type(tensor) in (Tensor, nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return None if tensor.is_inference() else tensor._version, tensor.data_ptr() if plain else None
