"""Rows side by side in one sequence, their common beginning computed only once, and attention that keeps them apart.

Chat examples begin alike: the standing instruction and the template's opening are often half of a short row. A micro-batch is laid out
as ``[prefix | row 1 | row 2 | …]``, one sequence without padding for all linear layers; in attention every row sees the prefix and itself,
as if it stood alone. Gradients are exactly those of the separate rows, because the prefix of a causal model
does not depend on what follows. On a CPU attention goes tile by tile: some neighbouring queries on the keys that one of them may see, long rows
cut, short ones together. That is two to three times as fast as PyTorch's flash kernel there. Elsewhere it is PyTorch's, row by row.

Not every architecture can be laid out like this (recurrence, attention with extras). It is never assumed: `fits` tries it on the very model,
and what does not fit is batched in the ordinary way. So are rows that are longer than a window of attention (`reach`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from engine.hosts.recompute import recomputed

NAME = "studio_side_by_side"
TILE = 128                                 # queries that go together: more would mean more products with what is masked, fewer more calls
KEPT = 512                                 # keys; up to so many a tile's weights are kept for the backward pass, else computed again there
_EXTRAS = ("softcap", "s_aux", "sinks", "position_bias")   # additions that some models hand to attention; then their own is used


@dataclass(frozen=True)
class Layout:
    """``prefix`` tokens seen by all, then rows of these ``lengths`` (without the prefix)."""

    prefix: int
    lengths: tuple[int, ...]

    @cached_property
    def positions(self) -> Tensor:
        """int64 ``[1, tokens]``: every row goes on where the prefix ends."""
        return torch.cat([torch.arange(self.prefix), *(torch.arange(self.prefix, self.prefix + n) for n in self.lengths)])[None]

    @cached_property
    def tiles(self) -> "list[Tile]":
        """Every token's in one of them, in order: long rows are cut, short ones stand together, the prefix by itself."""
        found: list[Tile] = []
        begin = 0
        for number, length in enumerate((self.prefix, *self.lengths)):
            cuts, prefix = -(-length // TILE), 0 if number == 0 else self.prefix
            if number > 1 and found and cuts == 1 and (rows := found[-1].rows) and sum(rows) + length <= TILE:
                found[-1] = Tile(found[-1].begin, begin + length, found[-1].first, prefix, (*rows, length))
            else:
                edges = [*range(begin, begin + length, TILE), begin + length]
                found += [Tile(a, b, begin, prefix, (length,) if cuts == 1 else ()) for a, b in zip(edges, edges[1:])]
            begin += length
        return found


_layout: Layout | None = None


@contextlib.contextmanager
def side_by_side(config, layout: Layout) -> Iterator[None]:
    """Let the model with this (text) config attend by ``layout``; its own attention is put back afterwards."""
    global _layout
    _layout = layout
    try:
        with _attending_by(config, NAME):
            yield
    finally:
        _layout = None


@contextlib.contextmanager
def _attending_by(config, kernel: str) -> Iterator[None]:
    before, config._attn_implementation = config._attn_implementation, kernel
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None,
            dropout: float = 0.0, **extras) -> tuple[Tensor, None]:
    """transformers' attention interface: query ``[1, heads, tokens, d]``, key and value ``[1, key heads, tokens, d]`` → ``[1, tokens, heads, d]``."""
    if _layout is None or query.shape[0] != 1 or any(extras.get(name) is not None for name in _EXTRAS):
        raise NotImplementedError("attention with something that rows side by side do not know")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _side_by_side(query, key, value, _layout, scaling, dropout), None


def _side_by_side(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float, dropout: float) -> Tensor:
    if dropout:
        return _row_by_row(query, key, value, layout, scaling, dropout)
    if query.device.type == "cpu":
        return _Tiled.apply(query, key, value, layout, scaling)
    return recomputed(partial(_row_by_row, layout=layout, scaling=scaling), query, key, value)


def _row_by_row(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float, dropout: float = 0.0) -> Tensor:
    prefix, begin, parts = layout.prefix, layout.prefix, []
    if prefix:
        parts.append(_causal(query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], scaling, dropout))
    for length, alike in groupby(layout.lengths):              # neighbours of one length go together
        rows = len([*alike])
        q, k, v = (t[0, :, begin:begin + rows * length].unflatten(1, (rows, length)).transpose(0, 1) for t in (query, key, value))
        if prefix:                                             # q, k, v: [rows, heads, length, d]
            k, v = (torch.cat([t[:, :, :prefix].expand(rows, -1, -1, -1), own], dim=2) for t, own in ((key, k), (value, v)))
        parts.append(_causal(q, k, v, scaling, dropout).flatten(0, 1)[None])
        begin += rows * length
    return torch.cat(parts, dim=1)


def _causal(q: Tensor, k: Tensor, v: Tensor, scaling: float, dropout: float) -> Tensor:
    """``[rows, heads, L, d]`` on ``[rows, key heads, S, d]`` → ``[rows, L, heads, d]``; query i sees the first ``S - L + i + 1`` keys."""
    length, seen = q.shape[2], k.shape[2]
    allowed = None if seen == length else torch.ones(length, seen, dtype=torch.bool, device=q.device).tril(seen - length)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout, is_causal=allowed is None, scale=scaling,
                                          enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


@dataclass(frozen=True)
class Tile:
    """Queries ``begin … end`` on the keys of the prefix and ``first … end``; ``rows`` are the lengths of those that stand in it whole."""

    begin: int
    end: int
    first: int
    prefix: int
    rows: tuple[int, ...]

    @property
    def keys(self) -> int:
        """How many they are."""
        return self.prefix + self.end - self.first

    @cached_property
    def unseen(self) -> Tensor:
        """``[queries, 1, queries]``: -inf for those of the last keys that a query does not see, which come after it or are other rows'; else 0.

        To add it is three times as quick as to fill it in.
        """
        lengths = self.rows or (self.end - self.begin,)
        row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        hidden = (row[:, None] != row).logical_or_(torch.ones(len(row), len(row), dtype=torch.bool).triu(1))
        return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[:, None]

    def of(self, keys: Tensor) -> Tensor:
        """``[key heads, tokens, d]`` → ``[key heads, seen, d]``."""
        if self.first == self.prefix:
            return keys[:, :self.end]
        own = keys[:, self.first:self.end]
        return torch.cat([keys[:, :self.prefix], own], 1) if self.prefix else own

    def add(self, total: Tensor, part: Tensor) -> None:
        """The way back of `of`."""
        total[:, :self.prefix] += part[:, :self.prefix]
        total[:, self.first:self.end] += part[:, self.prefix:]


class _Tiled(torch.autograd.Function):
    """Attention by a layout's tiles. A key head's queries stand together, token by token: a tile of them is one matrix, without a copy."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float) -> Tensor:
        ctx.tiles, ctx.scaling, ctx.group = layout.tiles, scaling, query.shape[1] // key.shape[1]
        q, k, v = _grouped(query[0].transpose(0, 1), key.shape[1]), key[0].contiguous(), value[0].contiguous()
        out, kept = torch.empty_like(q), []
        for tile in ctx.tiles:
            weights = _weights(q, k, tile, ctx.group, scaling)
            torch.bmm(weights, tile.of(v), out=_of(out, tile, ctx.group))
            kept.append(weights if any(ctx.needs_input_grad) and tile.keys <= KEPT else None)
        ctx.save_for_backward(q, k, v, *kept)
        return _ungrouped(out, ctx.group)[None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        grad = _grouped(grad[0], len(k))
        to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for tile, weights in zip(ctx.tiles, kept):
            weights = _weights(q, k, tile, ctx.group, ctx.scaling) if weights is None else weights
            part = _of(grad, tile, ctx.group)
            tile.add(to_v, torch.bmm(weights.transpose(1, 2), part))
            to_scores = torch._softmax_backward_data(torch.bmm(part, tile.of(v).transpose(1, 2)), weights, -1, weights.dtype)
            torch.bmm(to_scores, tile.of(k), out=_of(to_q, tile, ctx.group))
            tile.add(to_k, torch.bmm(to_scores.transpose(1, 2), _of(q, tile, ctx.group)))
        return (_ungrouped(to_q.mul_(ctx.scaling), ctx.group).transpose(0, 1)[None], to_k.mul_(ctx.scaling)[None], to_v[None], None, None)


def _weights(q: Tensor, k: Tensor, tile: Tile, group: int, scaling: float) -> Tensor:
    """How much each query of a tile listens to each key that it sees ``[key heads, queries, keys]``."""
    scores = torch.baddbmm(q.new_empty(()), _of(q, tile, group), tile.of(k).transpose(1, 2), beta=0, alpha=scaling)
    count = tile.end - tile.begin
    scores.unflatten(1, (count, group))[..., -count:].add_(tile.unseen.to(scores.dtype))
    return torch.softmax(scores, dim=-1)


def _of(queries: Tensor, tile: Tile, group: int) -> Tensor:
    return queries[:, tile.begin * group:tile.end * group]


def _grouped(x: Tensor, kinds: int) -> Tensor:
    """``[tokens, heads, d]`` → ``[key heads, tokens · group, d]``."""
    return x.unflatten(1, (kinds, -1)).transpose(0, 1).flatten(1, 2).contiguous()


def _ungrouped(x: Tensor, group: int) -> Tensor:
    return x.unflatten(1, (-1, group)).transpose(0, 1).flatten(1, 2)


AttentionInterface.register(NAME, _attend)


def reach(config) -> int | None:
    """Tokens that a row may have and still be seen whole by its last one in every layer; None: as many as it likes."""
    return min((n for name in ("sliding_window", "attention_chunk_size") if (n := getattr(config, name, None))), default=None)


@torch.no_grad()
def fits(backbone: nn.Module | None, config, alone: Callable[[Tensor], Tensor], device: torch.device) -> bool:
    """Whether this very model can be laid out side by side: rows must equal themselves alone, and not hear one another at all.

    ``alone`` gives the hidden states ``[rows, length, hidden]`` of rows that are run in the ordinary way.
    """
    if backbone is None or getattr(config, "_attn_implementation", None) not in ("sdpa", "eager", NAME):
        return False
    draw = torch.Generator().manual_seed(0)
    layout = Layout(prefix=2, lengths=(4, 3, 4, 4))
    prefix, *rows = (torch.randint(config.vocab_size, (n,), generator=draw) for n in (layout.prefix, *layout.lengths))

    def run(rows: list[Tensor]) -> tuple[Tensor, ...]:
        with side_by_side(config, layout):
            ids = torch.cat([prefix, *rows])[None].to(device)
            hidden = backbone(input_ids=ids, position_ids=layout.positions.to(device), use_cache=False).last_hidden_state
        return hidden[0, layout.prefix:].float().split(layout.lengths)

    try:
        together = run(rows)
        other = run([rows[0], (rows[1] + 1) % config.vocab_size, *rows[2:]])
    except (NotImplementedError, RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError):
        return False                       # whatever an unknown architecture objects to: it is batched in the ordinary way
    if [torch.equal(one, changed) for one, changed in zip(together, other)] != [True, False, True, True]:
        return False
    found, tolerance = torch.cat(together), 1e-4 if next(backbone.parameters()).dtype == torch.float32 else 3e-2
    for kernel in (config._attn_implementation, "eager"):      # of the model's own two ways one rounds as ours does: in 16 bits that is much
        with _attending_by(config, kernel):
            separate = torch.cat([alone(torch.cat([prefix, row])[None].to(device))[0, layout.prefix:].float() for row in rows])
        if (found - separate).norm() <= tolerance * separate.norm():
            return True
    return False
