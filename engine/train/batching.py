"""Which rows stand together: the order of training is a pure function of (seed, pass), so a resumed run needs only a step number.

Rows of similar length share a step, and steps are cut into micro-batches by a token budget. Where the model allows it
(`engine.train.attention`), a micro-batch's rows stand behind one another without padding, their common beginning only once. Else they
are padded on the right to the longest one; that needs no attention mask in a causal model, for nothing before it can see it, and what it
costs is bounded: the cut is the cheapest one there is, counting padded tokens and the fixed price of one more forward.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from engine.data.render import IGNORED, Rendered
from engine.train.attention import Layout

GROUP = 4                                  # steps whose rows are sorted by length together; more would make every pass alike
GRAIN = 4                                  # shapes are padded to a multiple: each new one costs oneDNN some milliseconds for its kernels
LEAST, MOST = 512, 1024                    # computed tokens in a micro-batch; below, a forward's fixed price shows, above, only memory grows
OVERHEAD = 32                              # price of one more micro-batch, in tokens (SmolLM2-135M on two CPU cores: 20–40)


@dataclass(frozen=True)
class Batch:
    """One micro-batch. ``ids`` int64: ``[rows, longest]``, or with a ``layout`` ``[1, tokens]``; ``where`` flat positions whose *next*
    token is learned; ``targets`` those tokens."""

    ids: Tensor
    where: Tensor
    targets: Tensor
    layout: Layout | None = None

    @property
    def learned(self) -> int:
        return len(self.targets)


def portion(lengths: list[int]) -> int:
    """Tokens, padding included, that a micro-batch may hold: no more than the longest row needs by itself, as far as that is not very little."""
    return min(MOST, max(LEAST, max(lengths, default=0)))


def collate(rows: list[Rendered], pad: int = 0, *, share: bool = False) -> Batch:
    """Rows → one micro-batch, padded on the right with ``pad`` (any token: it is neither seen nor learned).

    ``share``: lay the rows side by side, with their common beginning once and the padding as a row of its own.
    """
    prefix = common_prefix(rows) if share else 0
    width = None if share else padded(max(len(row.ids) for row in rows))
    ids, where, targets = rows[0].ids[:prefix], [], []
    for row in rows:
        begin = len(ids) - prefix
        where += [begin + t for t, label in enumerate(row.labels[1:]) if label != IGNORED]
        targets += [label for label in row.labels[1:] if label != IGNORED]
        ids = ids + row.ids[prefix:] + [pad] * (0 if width is None else width - len(row.ids))
    rest = padded(len(ids)) - len(ids) if share else 0
    layout = Layout(prefix, (*(len(row.ids) - prefix for row in rows), *((rest,) if rest else ()))) if share else None
    return Batch(torch.tensor(ids + [pad] * rest, dtype=torch.long).reshape(1 if share else len(rows), -1),
                 torch.tensor(where, dtype=torch.long), torch.tensor(targets, dtype=torch.long), layout)


def common_prefix(rows: list[Rendered]) -> int:
    """Length of the beginning that all rows share, short of the first token from which something learned is predicted; 0 for one row."""
    if len(rows) < 2:
        return 0
    first, last = min(row.ids for row in rows), max(row.ids for row in rows)      # the two that differ earliest
    shared = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    learned = min(next((t for t, label in enumerate(row.labels) if t and label != IGNORED), len(row.labels)) for row in rows)
    return max(0, min(shared, learned - 1))


def shuffled(count: int, seed: int, salt: str) -> list[int]:
    """A permutation that depends on nothing but its arguments: no generator state, no library version."""
    return sorted(range(count), key=lambda i: hashlib.blake2b(f"{seed}/{salt}/{i}".encode(), digest_size=16).digest())


class Schedule:
    """All steps of a training: ``len(schedule)`` of them are planned, ``schedule[step]`` the row numbers of the step (steps count from 0).

    Every pass visits every row once. A pass is cut into steps of equal size (± 1), at most ``rows_per_step``. `rows_of` goes on for ever.
    """

    def __init__(self, lengths: list[int], rows_per_step: int, passes: float, seed: int, max_steps: int = 0):
        self.lengths, self.rows_per_step, self.seed = lengths, rows_per_step, seed
        self.per_pass = math.ceil(len(lengths) / rows_per_step)
        steps = self.steps_in(passes)
        self.steps = min(steps, max_steps) if max_steps else steps
        self._pass = lru_cache(maxsize=2)(self._arrange)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[int]:
        if not 0 <= step < self.steps:
            raise IndexError(step)
        return self.rows_of(step)

    def steps_in(self, passes: float) -> int:
        """How many steps so many passes are, at least one."""
        return max(1, math.ceil(self.per_pass * passes - 1e-9))

    def rows_of(self, step: int) -> list[int]:
        """The row numbers of a step, be it planned or beyond."""
        return self._pass(step // self.per_pass)[step % self.per_pass]

    def _arrange(self, number: int) -> list[list[int]]:
        count = len(self.lengths)
        order = shuffled(count, self.seed, f"rows of pass {number}")
        size = GROUP * self.rows_per_step
        order = [i for start in range(0, count, size) for i in sorted(order[start:start + size], key=self.lengths.__getitem__)]
        edges = [count * k // self.per_pass for k in range(self.per_pass + 1)]
        steps = [order[a:b] for a, b in zip(edges, edges[1:])]
        return [steps[k] for k in shuffled(len(steps), self.seed, f"steps of pass {number}")]


def micro_batches(lengths: list[int], budget: int, shared: int | None = None) -> list[list[int]]:
    """Cut rows into micro-batches of at most ``budget`` computed tokens each (a longer single row stands alone), as cheaply as possible.

    ``shared``: None for rows that are padded to the longest one; the cut is exact by dynamic programming over the rows sorted by length.
    Else the rows stand side by side and their first ``shared`` tokens are computed once: then as few micro-batches as will do, about
    equally full. Returns index lists.
    """
    if shared is not None:
        return _even_portions(lengths, budget, shared)
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        options = [(best[start][0] + (end - start) * padded(longest) + OVERHEAD, start)
                   for start in range(end - 1, -1, -1) if start == end - 1 or (end - start) * padded(longest) <= budget]
        best.append(min(options))
    cuts, end = [], len(order)
    while end:
        start = best[end][1]
        cuts.append(order[start:end])
        end = start
    return cuts[::-1]


def _even_portions(lengths: list[int], budget: int, shared: int) -> list[list[int]]:
    """The longest row first, each to the emptiest portion, with one portion more until all fit."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    parts: list[list[int]] = []
    least = -(-(sum(lengths) - shared * (len(lengths) - 1)) // budget)
    for count in range(max(1, min(least, len(lengths))), len(lengths) + 1):
        parts = [[] for _ in range(count)]
        loads = [0] * count
        for i in order:
            emptiest = loads.index(min(loads))
            parts[emptiest].append(i)
            loads[emptiest] += lengths[i] - shared
        parts = [sorted(part) for part in parts if part]
        if all(len(part) == 1 or computed_tokens([lengths[i] for i in part], shared) <= budget for part in parts):
            break
    return parts


def computed_tokens(lengths: list[int], shared: int | None = None) -> int:
    """Tokens that are really computed for a micro-batch of rows of these lengths; ``shared`` as in `micro_batches`."""
    if shared is None:
        return len(lengths) * padded(max(lengths))
    return padded(sum(lengths) - shared * (len(lengths) - 1))


def padded(length: int) -> int:
    """The next multiple of `GRAIN`."""
    return -(-length // GRAIN) * GRAIN
