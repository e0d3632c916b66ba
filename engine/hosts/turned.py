"""Frozen weights laid out a second time, as the way back reads them.

A gradient goes back through a linear layer as ``grad @ weight``, which reads the weight across the way that it lies in: in 16 bits a processor
takes an eighth to a third longer for it than for the product forward. While `ways_back` is open, some weights have a copy, turned and in the blocks
of oneDNN's kernels, made where it is first needed. A copy is kept only if it is quicker here and gives the same numbers bit by bit: nothing that
is learned depends on which weights have one, and so their number may go by the memory that happens to be free.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor, nn

SHARE = 0.4                                # bytes of copies for a byte of the weights that gradients go back through
TRIES = 2

Copy = tuple[Tensor, tuple[int, int], Tensor | None]           # the weight, how it stood when it was copied, its copy


class WaysBack:
    """The copies of weights. ``room``: bytes that they may take, whatever their share."""

    def __init__(self, room: int):
        self._room, self._seen, self._taken = room, 0, 0
        self._copies: dict[int, Copy] = {}
        self._pays: dict[torch.Size, bool] = {}

    @property
    def taken(self) -> int:
        """Bytes of the copies."""
        return self._taken

    def product(self, grad: Tensor, weight: Tensor, dear: bool = False) -> Tensor:
        """``grad @ weight``, of ``[rows, out]`` and ``[out, columns]``. ``dear``: of all weights this one gains most by its copy."""
        if id(weight) not in self._copies:
            return self._first(grad, weight, dear)
        _, standing, turned = self._copies[id(weight)]
        return grad @ weight if turned is None or standing != _standing(weight) else _by(grad, turned)

    def _first(self, grad: Tensor, weight: Tensor, dear: bool) -> Tensor:
        self._seen += weight.nbytes
        found, turned = grad @ weight, None
        if self._taken + weight.nbytes <= min(self._room, self._room if dear else SHARE * self._seen) and self._pays.get(weight.shape, True):
            turned = torch.ops.mkldnn._reorder_linear_weight(weight.t().contiguous(), len(grad))
            if weight.shape not in self._pays:
                self._pays[weight.shape] = _seconds(_by, grad, turned) < _seconds(torch.mm, grad, weight)
            part = grad[:len(grad) // 2 + 1]
            if not (self._pays[weight.shape] and torch.equal(found, _by(grad, turned)) and torch.equal(part @ weight, _by(part, turned))):
                turned = None
        self._taken += weight.nbytes if turned is not None else 0
        self._copies[id(weight)] = weight, _standing(weight), turned
        return found


_open: WaysBack | None = None


@contextlib.contextmanager
def ways_back(room: int) -> Iterator[WaysBack]:
    """Weights may have copies for a while, all of them together of at most ``room`` bytes; 0: none."""
    global _open
    before, _open = _open, WaysBack(room)
    try:
        yield _open
    finally:
        _open = before


def back(grad: Tensor, weight: Tensor, dear: bool = False) -> Tensor:
    """``grad @ weight``, by the weight's copy where it has one; see `WaysBack.product`."""
    plain = (_open is None or weight.dtype is not torch.bfloat16 or weight.device.type != "cpu" or not isinstance(weight, nn.Parameter)
             or weight.requires_grad or not _can())
    return grad @ weight if plain else _open.product(grad, weight, dear)


def without_copies() -> None:
    """No weight has one any more, until copies are allowed anew: where bases are split, so that each process keeps little of one."""
    global _open
    _open = None


@cache
def _can() -> bool:
    """Whether this processor, and this build of PyTorch, has these products in 16 bits."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _by(grad: Tensor, turned: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(grad.contiguous(), turned, None, "none", [], "")


def _standing(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), weight._version


def _seconds(product: Callable[[Tensor, Tensor], Tensor], grad: Tensor, weight: Tensor) -> float:
    """Of the processor, the best of a few."""
    spent = []
    for _ in range(TRIES):
        start = time.process_time()
        product(grad, weight)
        spent.append(time.process_time() - start)
    return min(spent)
