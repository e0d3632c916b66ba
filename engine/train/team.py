"""The processes that teach one adapter together, on accelerate's state: gloo between CPUs, NCCL between graphics cards.

Each process takes its share of every step's rows; the sum of their gradients is the gradient of the whole step, because losses are sums
that are divided by the learned tokens of the *whole* step. Adapters are small, so their gradients travel once a step, in one flat tensor.
Everything that is decided by a clock, a file or a piece of memory is decided by one process, or made known to all, so that all take the
same way through the loop. One process is a team as well: nothing is exchanged then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.errors import StudioError, explain

T = TypeVar("T")
PATIENCE = timedelta(days=1)               # of one process with another: a sample or a save may take long; who died is seen by the launcher


class Team:
    """Process ``rank`` of ``size``. Every method but `share` must be called by all of them, in the same order."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self.serve: Callable[[], None] = lambda: None          # what is done for those who still compute, until nobody does
        self.words = None                  # a group of all for a few bytes, which no graphics card is waited for; see `talk`

    @classmethod
    def assemble(cls) -> "Team":
        """The team that the environment names (RANK, WORLD_SIZE … of torchrun, accelerate or `engine.train.launch`).

        Raises `StudioError` if fewer come together than were called: accelerate would go on alone without a word.
        """
        called = int(os.environ.get("WORLD_SIZE", "1"))
        if called == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
        if state.num_processes != called:
            raise StudioError(f"{called} processes were to work together, but only {state.num_processes} came together.",
                              do="Set “Processes” to 1.")
        return cls(state.process_index, state.num_processes)

    def talk(self) -> None:
        """Set up ``words``."""
        self.words = dist.new_group(backend="gloo", timeout=PATIENCE)

    def part(self) -> None:
        """The end of the work together. Threads of a group that lives on may abort a process that ends."""
        self.words = None
        if self.size > 1:
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and is heard."""
        return self.rank == 0

    def share(self, lengths: list[int]) -> list[int]:
        """The rows (their numbers, ascending) that fall to this process: about as many tokens to each, the longest dealt first."""
        loads: list[int] = [0] * self.size
        mine = []
        for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            rank = loads.index(min(loads))
            loads[rank] += lengths[i]
            if rank == self.rank:
                mine.append(i)
        return sorted(mine)

    def together(self, work: Callable[[], T]) -> list[T]:
        """What ``work`` gives on each process, by rank. What it raises on one is raised on all (the lowest rank's, as a `StudioError`)."""
        if self.size == 1:
            return [work()]
        from accelerate.utils import gather_object

        try:
            mine = work(), None
        except Exception as problem:
            mine = None, explain(problem).to_dict()
        self.serve()
        found = gather_object([mine])
        if (problem := next((problem for _, problem in found if problem is not None), None)) is not None:
            raise StudioError.from_dict(problem)
        return [result for result, _ in found]

    def lead(self, work: Callable[[], T]) -> T:
        """What ``work`` gives on the first process, which alone does it, known to all."""
        return self.together(lambda: work() if self.leads else None)[0]

    @torch.no_grad()
    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Make every gradient the sum of all processes' ones; where none of them has one, there is none."""
        if self.size == 1:
            return
        from accelerate.utils import reduce

        has = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        flat = torch.cat([has, *((torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters)])
        parts: list[Tensor] = list(reduce(flat, "sum").split([len(parameters), *(p.numel() for p in parameters)]))
        for p, gradient, has in zip(parameters, parts[1:], parts[0].tolist()):
            p.grad = gradient.view_as(p).to(p.dtype) if has else None
