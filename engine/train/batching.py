"""Which rows stand together: the order of training is a pure function of (seed, pass), so a resumed run needs only a step number.

Rows of similar length share a step, steps are cut into micro-batches by a token budget, and within a micro-batch rows are padded
on the right to the longest one. Right padding needs no attention mask in a causal model: nothing before it can see it. What padding
would cost is bounded: the cut into micro-batches is the cheapest one there is, counting padded tokens and the fixed price of one more
forward. Where the model allows it (`engine.train.attention`), the common beginning of a micro-batch's rows is there only once.
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
GRAIN = 4                                  # rows are padded to a multiple: each new shape costs oneDNN time and megabytes for its kernels
LEAST, MOST = 256, 1024                    # padded tokens in a micro-batch; below, a forward's fixed price shows, above, only memory grows
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
    """Padded tokens that a micro-batch may hold: no more than the longest row needs by itself, as far as that is not very little."""
    return min(MOST, max(LEAST, max(lengths, default=0)))


def collate(rows: list[Rendered], pad: int = 0, *, share: bool = False) -> Batch:
    """Rows → one micro-batch, padded on the right with ``pad`` (any token: it is neither seen nor learned).

    ``share``: lay the rows side by side, with their common beginning once.
    """
    prefix = common_prefix(rows) if share else 0
    longest = padded(max(len(row.ids) for row in rows) - prefix)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    where, targets = [], []
    for i, row in enumerate(rows):
        ids[i, :len(row.ids) - prefix] = torch.tensor(row.ids[prefix:])
        for t, label in enumerate(row.labels[prefix + 1:]):
            if label != IGNORED:
                where.append(prefix + i * longest + t)
                targets.append(label)
    if share:
        ids = torch.cat([torch.tensor(rows[0].ids[:prefix], dtype=torch.long), ids.flatten()])[None]
    return Batch(ids, torch.tensor(where, dtype=torch.long), torch.tensor(targets, dtype=torch.long),
                 Layout(prefix, len(rows), longest) if share else None)


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


def micro_batches(lengths: list[int], budget: int, shared: int = 0) -> list[list[int]]:
    """Cut rows into micro-batches of at most ``budget`` computed tokens each (a longer single row stands alone), as cheaply as possible.

    ``shared`` first tokens of all rows are computed once in a micro-batch. Returns index lists, shortest rows first. Exact by dynamic
    programming over the rows sorted by length.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        options = [(best[start][0] + computed_tokens(end - start, longest, shared) + OVERHEAD, start)
                   for start in range(end - 1, -1, -1) if start == end - 1 or computed_tokens(end - start, longest, shared) <= budget]
        best.append(min(options))
    cuts, end = [], len(order)
    while end:
        start = best[end][1]
        cuts.append(order[start:end])
        end = start
    return cuts[::-1]


def computed_tokens(rows: int, longest: int, shared: int = 0) -> int:
    """Tokens that are really computed for a micro-batch of ``rows`` rows, padding included and the shared beginning counted once."""
    shared = shared if rows > 1 else 0
    return shared + rows * padded(longest - shared)


def padded(length: int) -> int:
    """The next multiple of `GRAIN`."""
    return -(-length // GRAIN) * GRAIN
