"""The live stack: which adapters are heard, in which order, how strongly. One object, shared by every layer of a model.

A slider writes one number here; no layer is visited. Layers notice a change of structure by `version`, a change of
strength by `tick`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Layout = tuple[tuple[str, int, float], ...]      # (adapter, rank, scale) of neighbouring low-rank adapters in one layer


class Samples:
    """Which adapter each sample of a batch hears, by name; `BASE` hears none."""

    BASE = "__base__"

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self._scales: dict[tuple, Tensor] = {}

    def __len__(self) -> int:
        return len(self.names)

    def check(self, x: Tensor) -> None:
        """Raises `ValueError` if this is no batch of as many samples."""
        if x.shape[0] != len(self.names):
            raise ValueError(f"Length of `adapter_names` should be the same as the number of inputs, but got {len(self.names)} and {x.shape[0]}.")

    @cached_property
    def heard(self) -> tuple[str, ...]:
        """Each once, in the order of the batch."""
        return tuple(dict.fromkeys(self.names))

    @cached_property
    def even(self) -> int:
        """The number of adapters, if each is heard by as many samples, one next to the other; otherwise 0."""
        names = self.heard
        return len(names) if self.names == [name for name in names for _ in range(len(self) // len(names))] else 0

    def scales(self, layout: Layout, dtype: torch.dtype, device: torch.device) -> Tensor:
        """What each sample's ranks are multiplied by, ``(batch, 1, ranks)``: an adapter's scale where the sample hears it, otherwise 0."""
        key = (layout, dtype, device)
        if key not in self._scales:
            rows = [[scale * (own == name) for name, rank, scale in layout for _ in range(rank)] for own in self.names]
            self._scales[key] = torch.tensor(rows, dtype=dtype, device=device)[:, None]
        return self._scales[key]

    @cached_property
    def rows(self) -> dict[str, Tensor]:
        """Adapter → numbers of its rows in the batch."""
        return {name: torch.tensor([i for i, n in enumerate(self.names) if n == name]) for name in self.heard}


class Turn:
    """What threads wait for whose batches are to hear other adapters; a copy of a model has one of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if not torch.compiler.is_compiling():
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        if not torch.compiler.is_compiling():
            self._lock.release()

    def __reduce__(self) -> tuple:
        return Turn, ()


class LiveStack:
    """Ordered (adapter, strength) pairs; the sets *enabled* and *merged* beside them are independent of it.

    Attributes:
        samples: if set, each sample of the batch is heard through its own adapter instead of the stack.
        extras: arguments of the present call that are meant for adapters (see `engine.law.Run`).
    """

    def __init__(self) -> None:
        self.samples: Samples | None = None
        self.extras: dict[str, Any] = {}
        self._replayed: dict[str, Any] = {}
        self._solos: dict[str, LiveStack] = {}
        self._strengths: dict[str, float] = {}
        self._scales: dict[Layout, Scales] = {}
        self.version = 0                   # grows when order, membership, enabledness or merging changes
        self.tick = 0                      # grows when any strength changes
        self.enabled = True
        self.merged: tuple[str, ...] = ()
        self.turn = Turn()

    @property
    def entries(self) -> list[tuple[str, float]]:
        """(adapter, strength) in order."""
        return list(self._strengths.items())

    @property
    def names(self) -> list[str]:
        return list(self._strengths)

    def arrange(self, entries: Mapping[str, float] | Iterable[str]) -> None:
        """Replace the stack: names in order, with strengths if a mapping (1.0 otherwise)."""
        strengths = dict(entries) if isinstance(entries, Mapping) else {name: 1.0 for name in entries}
        self._strengths = {name: float(value) for name, value in strengths.items()}
        self.changed()

    def set_strength(self, name: str, strength: float) -> None:
        """Write one number; the next forward hears it. Raises `KeyError` if ``name`` is not in the stack."""
        if name not in self._strengths:
            raise KeyError(f"The adapter {name!r} is not in the stack; it holds {self.names}.")
        if name in self.merged:
            raise ValueError(f"The adapter {name!r} is merged; unmerge before changing its strength.")
        crossed_zero = (self._strengths[name] == 0) != (strength == 0)
        self._strengths[name] = float(strength)
        self.tick += 1
        if crossed_zero:                   # at zero an adapter is not run at all, so the layers' programs change
            self.version += 1

    def strength(self, name: str) -> float:
        """How strongly an adapter is heard; of one that is not in the stack, how strongly it would be if it came."""
        return self._strengths.get(name, 1.0)

    def solo(self, name: str) -> "LiveStack":
        """A stack of this one adapter at strength 1, beside this one."""
        if name not in self._solos:
            self._solos[name] = LiveStack()
            self._solos[name].arrange([name])
        return self._solos[name]

    @contextmanager
    def telling(self, **extras: Any) -> Iterator[None]:
        """Inside the block adapters find these arguments of the call, each with a row a sample, in `Run.extras`."""
        told = {self: extras} if self.samples is None else {
            self.solo(name): {key: value[rows] for key, value in extras.items()} for name, rows in self.samples.rows.items()}
        before = {stack: stack.extras for stack in told}
        try:
            for stack, values in told.items():
                stack.extras = {**stack.extras, **values}
            yield
        finally:
            for stack, values in before.items():
                stack.extras = values

    def changed(self) -> None:
        """Tell all layers that more than a strength is different."""
        self.version += 1
        self.tick += 1
        self._scales.clear()
        for solo in self._solos.values():
            solo.changed()

    def arguments(self, learning: bool) -> dict[str, Any]:
        """`extras`; in a backward pass, where gradient checkpointing runs layers again, those of the last pass that was learning."""
        if torch._C._current_graph_task_id() != -1:
            return self._replayed
        if learning:
            self._replayed = self.extras
        return self.extras

    def heard(self) -> list[str]:
        """Adapters that run on top of the base: in the stack, not at zero, not merged into the weights, not disabled."""
        if not self.enabled:
            return []
        return [name for name, strength in self._strengths.items() if strength != 0 and name not in self.merged]

    def scales(self, layout: Iterable[tuple[str, int, float]]) -> "Scales":
        """The strengths of neighbouring low-rank adapters; one object for all layers where they are the same."""
        layout = tuple(layout)
        return self._scales.setdefault(layout, Scales(self, layout))


class Scales:
    """strength · scale repeated over each adapter's ranks, ``(sum of ranks,)``: computed once a tick, whatever the number of layers."""

    def __init__(self, stack: LiveStack, layout: Layout):
        self.layout, self._stack = layout, stack
        self._known: tuple[int, torch.dtype | None, torch.device | None, Tensor | None] = (-1, None, None, None)

    def of(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        tick, known, where, scales = self._known
        if tick != self._stack.tick or known is not dtype or where != device:
            values = [self._stack.strength(name) * scale for name, rank, scale in self.layout for _ in range(rank)]
            scales = torch.tensor(values, dtype=dtype, device=device)
            self._known = (self._stack.tick, dtype, device, scales)
        return scales
