"""Frozen low-rank adapters of one layer as one stacked A and one stacked B: what a chat runs, in as few operations as there can be.

Strengths are read from the stack at each call. The result may be written into the base's own output, which is nobody else's.
Adapters that rescale the base's rows (DoRA) are low-rank adapters with rescaled B's and one more product, row by row, for all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.hosts.stack import LiveStack, Samples
from engine.law import Factors

if TYPE_CHECKING:
    from engine.hosts.adapted import Adapted
    from engine.hosts.program import Path, Program

Adding = Callable[[Tensor, Tensor], Tensor]                   # (x, y) → y with a group added in place

FEW_ROWS, FEW_RANKS = 8, 32                # up to which a processor's float32 products beat its 16-bit ones
SHORT = 64                                 # rows of a mixed batch up to which all adapters are computed for all of them


class Group:
    """Some frozen adapters of one layer: (name, factors, gain or None) of each; gains only while nothing is merged. See `Method.gain`."""

    def __init__(self, layer: "Adapted", stack: LiveStack, members: list[tuple[str, Factors, Tensor | None]]):
        self.layer, self.stack = layer, stack
        parts = [f if gain is None else dataclasses.replace(f, B=gain[:, None] * f.B) for _, f, gain in members]
        self.pair, self.scales = Pair(parts, layer.like.device), stack.scales((n, f.A.shape[0], f.scale) for n, f, _ in members)
        self.biases = [(n, f.bias.detach() * f.scale) for n, f, _ in members if f.bias is not None]
        gains = [(n, gain) for n, _, gain in members if gain is not None]
        self.rise = Rise(stack, gains, layer.pristine_bias) if gains else None
        self.ranks = sum(f.A.shape[0] for f in parts)
        self.lone = (members[0][0], parts[0].scale) if len(parts) == 1 else None     # a single one's strength needs no vector

    def blocks(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A ``(adapters, rank, columns)`` and B ``(adapters, rank, out)``, where all have one rank."""
        A, B = self.pair.of(dtype)
        count, rank = len(self.scales.layout), self.scales.layout[0][1]
        return A.view(count, rank, -1), B.t().view(count, rank, -1)


class Pair:
    """Stacked A ``(ranks, columns)`` and B ``(out, ranks)``, in the dtypes that were asked for.

    A single adapter's A is not copied. Several B's lie in memory rank by rank, and so does a single one on a processor, where a product
    with one row is up to three times as fast then.
    """

    def __init__(self, parts: list[Factors], device: torch.device):
        self._parts, self._turned, self._known = parts, device.type == "cpu", {}
        dtypes = {t.dtype for f in parts for t in (f.A, f.B)}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else None

    def of(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if dtype not in self._known:
            As, Bs = ([t.detach().to(dtype) for t in ts] for ts in ([f.A for f in self._parts], [f.B for f in self._parts]))
            A, B = (torch.cat(As), torch.cat([B.t() for B in Bs]).t()) if len(As) > 1 else (As[0], Bs[0])
            self._known[dtype] = A, B.t().contiguous().t() if self._turned else B
        return self._known[dtype]


class Rise:
    """How much the rows of the base's own output rise: Σ strength · (gain − 1), computed once a tick; a bias is left as it was."""

    def __init__(self, stack: LiveStack, gains: list[tuple[str, Tensor]], bias: Tensor | None):
        self._stack, self._gains, self._bias = stack, [(n, g - 1) for n, g in gains], bias
        self._known: tuple = (None, None)

    def of(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """(rise ``(out,)``, what is to be added because the bias in the output has risen too)."""
        if self._known[0] != (self._stack.tick, dtype):
            rise = sum(self._stack.strength(n) * g for n, g in self._gains)
            bias = None if self._bias is None else (-rise * self._bias).to(dtype)
            self._known = (self._stack.tick, dtype), (rise.to(dtype), bias)
        return self._known[1]


def fused(group: Group, own_output: bool) -> "Path":
    """One path for all of them. ``own_output``: the output that comes in is the base's and may be overwritten."""
    layer, stack, pair, scales, rise = group.layer, group.stack, group.pair, group.scales, group.rise
    if layer.site.kind == "linear" and not group.biases:
        return _flat(group, own_output)
    host, base = layer.host, layer.base_layer

    def path(x: Tensor, y: Tensor, origin: Tensor | None) -> Tensor:
        A, B = pair.of(y.dtype)
        h = host.project(base, x if layer.site.kind == "embedding" else x.to(y.dtype), A)
        if rise is not None:
            up, bias = rise.of(y.dtype)
            y = y + host.per_output(y, up)
            y = y if bias is None else host.bias(y, bias)
        y = y + host.expand(base, host.per_output(h, scales.of(y.dtype, y.device)), B)
        for name, bias in group.biases:
            y = host.bias(y, (bias * stack.strength(name)).to(y.dtype))
        return y

    return path


def _adding(group: Group) -> Adding:
    """x ``(rows, columns)`` or ``(columns,)`` in any dtype, y alike."""
    stack, pair, scales, rise, ranks = group.stack, group.pair, group.scales, group.rise, group.ranks
    name, scale = group.lone or ("", 1.0)
    # 16-bit products of a few rows cost a processor three times those of float32, if such tensors are there anyway
    wide = pair.dtype == torch.float32 and group.layer.like.device.type == "cpu" and ranks <= FEW_RANKS

    def add(x: Tensor, y: Tensor) -> Tensor:
        dtype = y.dtype
        exact = torch.float32 if wide and dtype.itemsize == 2 and (x.dim() == 1 or len(x) <= FEW_ROWS) else dtype
        A, B = pair.of(exact)
        x = x if x.dtype is exact else x.to(exact)
        if rise is not None:
            up, bias = rise.of(dtype)
            y.addcmul_(y, up)
            y = y if bias is None else y.add_(bias)
        alpha = stack.strength(name) * scale if name else 1.0
        if x.dim() == 1:
            h = torch.mv(A, x)
            h = h if name else h.mul_(scales.of(exact, h.device))
            return y.addmv_(B, h, alpha=alpha) if exact is dtype else y.add_(torch.mv(B, h), alpha=alpha)
        h = F.linear(x, A)
        h = h if name else h.mul_(scales.of(exact, h.device))
        return y.addmm_(h, B.t(), alpha=alpha) if exact is dtype else y.add_(F.linear(h, B), alpha=alpha)

    return add


def _flat(group: Group, own_output: bool) -> "Path":
    """On a linear layer: two thin products for any number of rows, or two products of a matrix and a vector for a single one."""
    base, add = group.layer.base_layer, _adding(group)

    def path(x: Tensor, y: Tensor, origin: Tensor | None) -> Tensor:
        columns, out = x.shape[-1], y.shape[-1]
        if not own_output or base._forward_hooks:             # somebody may be looking at the base's output
            y = y.clone()
        if x.numel() == columns:
            add(x.reshape(columns), y.view(out))
        else:
            add(x.reshape(-1, columns) if x.numel() else x.reshape(0, columns), y.view(-1, out) if y.numel() else y.view(0, out))
        return y

    return path


def in_one(group: Group) -> "Program":
    """The whole layer as one program, where such a group is all that is heard on it.

    A single row, as in a chat, goes through a plain ``nn.Linear`` as a vector: without its module's call, and into a result that is ours.
    """
    layer, base, path = group.layer, group.layer.runner, fused(group, own_output=True)
    if type(base) is not nn.Linear or group.biases:
        return lambda x, args, kwargs: path(x, base(x, *args, **kwargs), None)
    held, own, device, out, columns = base._parameters, base.__dict__, layer.like.device.type, layer.site.out, layer.site.columns
    dtype, mv, addmv, autocast = layer.like.dtype, torch.mv, torch.addmv, torch.is_autocast_enabled
    add = _adding_to_row(group, dtype)

    def program(x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        W = held["weight"]
        if x.numel() != columns or not x.dtype is dtype is W.dtype or _is_watched(own) or autocast(device):
            return path(x, base(x, *args, **kwargs), None)
        row, bias = x.reshape(columns), held["bias"]
        y = add(row, mv(W, row) if bias is None else addmv(bias, W, row))
        return y.view(1, 1, out) if x.dim() == 3 else y.view(*x.shape[:-1], out)

    return program


def _adding_to_row(group: Group, dtype: torch.dtype) -> Adding:
    """The same for a single row, where nothing has to be converted: decided beforehand, as in a chat every call counts."""
    if group.rise is not None or group.pair.dtype is not dtype:
        return _adding(group)
    (A, B), stack, scales, mv = group.pair.of(dtype), group.stack, group.scales, torch.mv
    if group.lone is None:
        return lambda x, y: y.addmv_(B, mv(A, x).mul_(scales.of(dtype, x.device)))
    name, scale = group.lone
    return lambda x, y: y.addmv_(B, mv(A, x), alpha=stack.strength(name) * scale)


def _is_watched(own: dict[str, Any]) -> bool:
    """Whether somebody wants to be told of the layer's calls, or has put another forward in the place of its own."""
    return bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own)


def mixed(group: Group, samples: Samples) -> "Program | None":
    """A linear layer for a batch whose samples each hear one of these adapters, or none: the base once for all. None: there is no such way."""
    layer, layout = group.layer, group.scales.layout
    base, runner = layer.base_layer, layer.runner
    if group.biases:
        return None
    even = samples.even == len(layout) and len({(rank, scale) for _, rank, scale in layout}) == 1
    add = _adding_blocks(group) if even else _adding_each(group, samples)

    def program(x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        samples.check(x)
        y = runner(x, *args, **kwargs)
        y = y.clone() if base._forward_hooks else y
        return add(x if x.dtype is y.dtype else x.to(y.dtype), y)

    return _a_row_each(group, program) if even and len(samples) == len(layout) and type(base) is nn.Linear else program


def _a_row_each(group: Group, otherwise: "Program") -> "Program":
    """As `in_one`, for a batch of one row for each adapter."""
    layer, (A, B), scale = group.layer, group.blocks(group.layer.like.dtype), group.scales.layout[0][2]
    held, own, device, dtype = layer.base_layer._parameters, layer.base_layer.__dict__, layer.like.device.type, layer.like.dtype
    shape, linear, bmm, autocast = (len(A), 1, layer.site.columns), F.linear, torch.bmm, torch.is_autocast_enabled

    def program(x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        W = held["weight"]
        if x.shape != shape or not x.dtype is dtype is W.dtype or _is_watched(own) or autocast(device):
            return otherwise(x, args, kwargs)
        return linear(x, W, held["bias"]).baddbmm_(bmm(A, x.mT).mT, B, alpha=scale)          # half as long as a row times Aᵀ

    return program


def _adding_blocks(group: Group) -> Adding:
    """A block of the batch for each adapter."""
    columns, out, scale = group.layer.site.columns, group.layer.site.out, group.scales.layout[0][2]

    def add(x: Tensor, y: Tensor) -> Tensor:
        A, B = group.blocks(y.dtype)
        y.view(len(A), -1, out).baddbmm_(torch.bmm(x.reshape(len(A), -1, columns), A.mT), B, alpha=scale)
        return y

    return add


def _adding_each(group: Group, samples: Samples) -> Adding:
    """Each adapter for its samples, wherever they are in the batch."""
    pair, layout, columns, out = group.pair, group.scales.layout, group.layer.site.columns, group.layer.site.out

    def add(x: Tensor, y: Tensor) -> Tensor:
        A, B = pair.of(y.dtype)
        rows = x.numel() // columns
        if rows <= SHORT:                                     # all adapters for all, and what a sample does not hear times 0
            h = F.linear(x, A).view(len(samples), -1, group.ranks).mul_(samples.scales(layout, y.dtype, y.device))
            y.view(rows, out).addmm_(h.view(rows, group.ranks), B.t())
        else:
            start = 0
            for name, width, scale in layout:
                which, stop = samples.rows[name].to(x.device), start + width
                y.index_add_(0, which, F.linear(F.linear(x[which], A[start:stop]), B[:, start:stop]), alpha=scale)
                start = stop
        return y

    return add
