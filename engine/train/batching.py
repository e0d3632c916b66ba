"""Which rows stand together: the order of training is a pure function of (seed, pass), so a resumed run needs only a step number.

Rows of similar length share a step, steps are cut into micro-batches by a token budget, and within a micro-batch rows are padded
on the right to the longest one. Right padding needs no attention mask in a causal model (nothing before it can see it), so no row
can hear another one, whatever the architecture: attention, sliding window or recurrence. What padding would cost is bounded: the cut
into micro-batches is the cheapest one there is, counting padded tokens and the fixed price of one more forward.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from engine.data.render import IGNORED, Rendered

GROUP = 4                                  # steps whose rows are sorted by length together; more would make every pass alike
OVERHEAD = 32                              # price of one more micro-batch, in tokens (SmolLM2-135M on two CPU cores: 20–40)


@dataclass(frozen=True)
class Batch:
    """One micro-batch. ``ids`` int64 ``[rows, longest]``; ``where`` flat positions whose *next* token is learned; ``targets`` those tokens."""

    ids: Tensor
    where: Tensor
    targets: Tensor

    @property
    def learned(self) -> int:
        return len(self.targets)


def collate(rows: list[Rendered], pad: int = 0) -> Batch:
    """Rows → one micro-batch, padded on the right with ``pad`` (any token: it is neither seen nor learned)."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    where, targets = [], []
    for i, row in enumerate(rows):
        ids[i, :len(row.ids)] = torch.tensor(row.ids)
        for t, label in enumerate(row.labels[1:]):
            if label != IGNORED:
                where.append(i * longest + t)
                targets.append(label)
    return Batch(ids, torch.tensor(where, dtype=torch.long), torch.tensor(targets, dtype=torch.long))


def shuffled(count: int, seed: int, salt: str) -> list[int]:
    """A permutation that depends on nothing but its arguments: no generator state, no library version."""
    return sorted(range(count), key=lambda i: hashlib.blake2b(f"{seed}/{salt}/{i}".encode(), digest_size=16).digest())


class Schedule:
    """All steps of a training: ``len(schedule)`` of them, ``schedule[step]`` the row numbers of the step (steps count from 0).

    Every pass visits every row once. A pass is cut into steps of equal size (± 1), at most ``rows_per_step``.
    """

    def __init__(self, lengths: list[int], rows_per_step: int, passes: float, seed: int, max_steps: int = 0):
        self.lengths, self.rows_per_step, self.seed = lengths, rows_per_step, seed
        self.per_pass = math.ceil(len(lengths) / rows_per_step)
        steps = max(1, math.ceil(self.per_pass * passes - 1e-9))
        self.steps = min(steps, max_steps) if max_steps else steps
        self._pass = lru_cache(maxsize=2)(self._arrange)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[int]:
        if not 0 <= step < self.steps:
            raise IndexError(step)
        return self._pass(step // self.per_pass)[step % self.per_pass]

    def _arrange(self, number: int) -> list[list[int]]:
        count = len(self.lengths)
        order = shuffled(count, self.seed, f"rows of pass {number}")
        size = GROUP * self.rows_per_step
        order = [i for start in range(0, count, size) for i in sorted(order[start:start + size], key=self.lengths.__getitem__)]
        edges = [count * k // self.per_pass for k in range(self.per_pass + 1)]
        steps = [order[a:b] for a, b in zip(edges, edges[1:])]
        return [steps[k] for k in shuffled(len(steps), self.seed, f"steps of pass {number}")]


def micro_batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Cut rows into micro-batches of at most ``budget`` padded tokens each (a longer single row stands alone), as cheaply as possible.

    Returns index lists, shortest rows first. Exact by dynamic programming over the rows sorted by length.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        options = [(best[start][0] + (end - start) * longest + OVERHEAD, start) for start in range(end - 1, -1, -1)
                   if start == end - 1 or (end - start) * longest <= budget]
        best.append(min(options))
    cuts, end = [], len(order)
    while end:
        start = best[end][1]
        cuts.append(order[start:end])
        end = start
    return cuts[::-1]


def padded_tokens(lengths: list[int], budget: int) -> int:
    """Tokens that are really computed for these rows, padding included."""
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in micro_batches(lengths, budget))
