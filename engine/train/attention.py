"""Rows side by side in one sequence, their common beginning computed only once, and attention that keeps them apart.

Chat examples begin alike: the standing instruction and the template's opening are often half of a short row. A micro-batch is laid out
as ``[prefix | row 1 | row 2 | …]``, one sequence without padding for all linear layers; in attention every row sees the prefix and itself,
as if it stood alone. Gradients are exactly those of the separate rows, because the prefix of a causal model
does not depend on what follows. At short lengths attention is two matrix products and a softmax (on a CPU 2–5 times as fast as
PyTorch's flash kernel); long rows go through PyTorch's.

Not every architecture can be laid out like this (recurrence, sliding windows, attention with extras). It is never assumed: `fits`
tries it on the very model, and what does not fit is batched in the ordinary way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from engine.hosts.recompute import recomputed

NAME = "studio_side_by_side"
SHORT = 512                                # keys; up to here plain products win over the flash kernel
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


_layout: Layout | None = None


@contextlib.contextmanager
def side_by_side(config, layout: Layout) -> Iterator[None]:
    """Let the model with this (text) config attend by ``layout``; its own attention is put back afterwards."""
    global _layout
    before, config._attn_implementation, _layout = config._attn_implementation, NAME, layout
    try:
        yield
    finally:
        config._attn_implementation, _layout = before, None


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None,
            dropout: float = 0.0, **extras) -> tuple[Tensor, None]:
    """transformers' attention interface: query ``[1, heads, tokens, d]``, key and value ``[1, key heads, tokens, d]`` → ``[1, tokens, heads, d]``."""
    if _layout is None or query.shape[0] != 1 or any(extras.get(name) is not None for name in _EXTRAS):
        raise NotImplementedError("attention with something that rows side by side do not know")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = partial(_side_by_side, layout=_layout, scaling=scaling, dropout=dropout)
    # what attention keeps grows with the square of a row's length, and is cheap to compute again; not so the dice of a dropout
    return (attend(query, key, value) if dropout else recomputed(attend, query, key, value)), None


def _side_by_side(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float, dropout: float) -> Tensor:
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
    rows, heads, length, _ = q.shape
    kinds, seen = k.shape[1], k.shape[2]
    allowed = torch.ones(length, seen, dtype=torch.bool, device=q.device).tril(seen - length)
    if seen > SHORT or q.device.type != "cpu":
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if seen == length else allowed, dropout_p=dropout,
                                             is_causal=seen == length, scale=scaling, enable_gqa=heads != kinds)
        return out.transpose(1, 2)
    mask = torch.zeros(length, seen, dtype=q.dtype, device=q.device).masked_fill_(~allowed, float("-inf")).repeat(heads // kinds, 1)
    scores = torch.baddbmm(mask, q.reshape(rows * kinds, -1, q.shape[-1]), k.reshape(rows * kinds, seen, -1).transpose(1, 2), alpha=scaling)
    weights = F.dropout(torch.softmax(scores, dim=-1), dropout) if dropout else torch.softmax(scores, dim=-1)
    out = torch.bmm(weights, v.reshape(rows * kinds, seen, -1))
    return out.view(rows, heads, length, -1).transpose(1, 2)


AttentionInterface.register(NAME, _attend)


@torch.no_grad()
def fits(backbone: nn.Module | None, config, alone: Callable[[Tensor], Tensor], device: torch.device) -> bool:
    """Whether this very model can be laid out side by side: rows must equal themselves alone, and not hear one another at all.

    ``alone`` gives the hidden states ``[rows, length, hidden]`` of rows that are run in the ordinary way.
    """
    if backbone is None or getattr(config, "_attn_implementation", None) not in ("sdpa", "eager", NAME) or getattr(config, "sliding_window", None):
        return False
    draw = torch.Generator().manual_seed(0)
    layout = Layout(prefix=3, lengths=(6, 4, 6, 6))
    prefix, *rows = (torch.randint(config.vocab_size, (n,), generator=draw) for n in (layout.prefix, *layout.lengths))

    def run(rows: list[Tensor]) -> tuple[Tensor, ...]:
        with side_by_side(config, layout):
            ids = torch.cat([prefix, *rows])[None].to(device)
            hidden = backbone(input_ids=ids, position_ids=layout.positions.to(device), use_cache=False).last_hidden_state
        return hidden[0, 3:].float().split(layout.lengths)

    try:
        together = run(rows)
        other = run([rows[0], (rows[1] + 1) % config.vocab_size, *rows[2:]])
    except (NotImplementedError, RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError):
        return False                       # whatever an unknown architecture objects to: it is batched in the ordinary way
    if [torch.equal(one, changed) for one, changed in zip(together, other)] != [True, False, True, True]:
        return False
    found, separate = torch.cat(together), torch.cat([alone(torch.cat([prefix, row])[None].to(device))[0, 3:].float() for row in rows])
    tolerance = 1e-4 if next(backbone.parameters()).dtype == torch.float32 else 3e-2
    return bool((found - separate).norm() <= tolerance * separate.norm())
