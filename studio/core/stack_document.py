"""The adapter stack as plain data: a base, and adapters in order, each with a strength. No Qt, no torch.

It is changed only by the commands of `studio.core.stack_commands`; whoever watches hears what changed and nothing else.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from collections.abc import Callable

from engine.errors import StudioError
from engine.specs import StackEntry
from studio.core.trial import Trial

MAX_STRENGTH = 10.0                        # as in engine.specs.StackEntry; the slider ends at 1.5
VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One adapter in the stack. ``id`` names it for as long as the document lives; the same adapter may stand in it twice."""

    id: int
    adapter: Path
    name: str
    strength: float = 1.0
    enabled: bool = True


@dataclass(frozen=True)
class Change:
    """What changed: ``kind`` is structure, strength, enabled, base or trial; ``entry_id`` where one entry is concerned."""

    kind: str
    entry_id: int | None = None


Watcher = Callable[[Change], None]


class Changed:
    """A list of callbacks; each hears every `Change`, in the order of connecting."""

    def __init__(self) -> None:
        self._watchers: list[Watcher] = []

    def connect(self, watcher: Watcher) -> None:
        self._watchers.append(watcher)

    def disconnect(self, watcher: Watcher) -> None:
        self._watchers.remove(watcher)

    def emit(self, change: Change) -> None:
        for watcher in list(self._watchers):
            watcher(change)


class StackDocument:
    """The stack that is being mixed, and what Try remembers of it. Reading is free; writing is for commands (`insert`, `take`, `put`,
    `set_base`) and, of `trial`, for Try."""

    def __init__(self) -> None:
        self.base: Path | None = None
        self.trial = Trial()
        self.changed = Changed()
        self._entries: list[Entry] = []
        self._last_id = 0

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, id: int) -> Entry:
        return self._entries[self.index(id)]

    def index(self, id: int) -> int:
        """Position of an entry. Raises `KeyError` if it is not in the stack."""
        for place, entry in enumerate(self._entries):
            if entry.id == id:
                return place
        raise KeyError(id)

    def heard(self) -> list[Entry]:
        """The entries that change the sound: switched on and not at 0."""
        return [e for e in self._entries if e.enabled and e.strength]

    def to_specs(self) -> list[StackEntry]:
        """The stack as the engine wants it, in order, including entries that are off."""
        return [StackEntry(str(e.adapter), e.strength, e.enabled) for e in self._entries]

    # --- for commands only ---

    def new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def insert(self, place: int, entry: Entry) -> None:
        self._entries.insert(place, entry)
        self._forget_votes()
        self._last_id = max(self._last_id, entry.id)
        self.changed.emit(Change("structure", entry.id))

    def take(self, id: int) -> Entry:
        entry = self._entries.pop(self.index(id))
        self._forget_votes()
        self.changed.emit(Change("structure", id))
        return entry

    def move(self, id: int, place: int) -> None:
        """Take an entry out and put it back so that it stands at ``place``."""
        self._entries.insert(place, self._entries.pop(self.index(id)))
        self.changed.emit(Change("structure", id))

    def set_strength(self, id: int, strength: float) -> None:
        self._put(id, "strength", strength=strength)

    def set_enabled(self, id: int, enabled: bool) -> None:
        self._put(id, "enabled", enabled=enabled)

    def set_base(self, base: Path | None) -> None:
        self.base = base
        self.changed.emit(Change("base"))

    def set_trial(self, **values: object) -> None:
        """Change parts of `trial`."""
        self.trial = replace(self.trial, **values)
        self.changed.emit(Change("trial"))

    def _forget_votes(self) -> None:
        """They were for a stack of other adapters."""
        self.trial = replace(self.trial, votes={})

    def _put(self, id: int, kind: str, **values: object) -> None:
        place = self.index(id)
        self._entries[place] = replace(self._entries[place], **values)
        self.changed.emit(Change(kind, id))

    # --- on disk ---

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, "base": str(self.base) if self.base else None,
                           "entries": [{"id": e.id, "adapter": str(e.adapter), "name": e.name, "strength": e.strength,
                                        "enabled": e.enabled} for e in self._entries],
                           "trial": self.trial.to_dict()}, indent=2, ensure_ascii=False)

    def load_json(self, text: str) -> None:
        """Become what ``text`` says; raises `StudioError` and stays as it is if that cannot be read."""
        try:
            data = json.loads(text)
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']}")
            entries = [Entry(int(e["id"]), Path(e["adapter"]), str(e["name"]), _strength(e["strength"]), bool(e["enabled"]))
                       for e in data["entries"]]
            base, trial = Path(data["base"]) if data["base"] else None, Trial.from_dict(data.get("trial"))
            if len({e.id for e in entries}) != len(entries):
                raise ValueError("two entries share an id")
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as problem:
            raise StudioError("The saved stack cannot be read.", "The file is damaged or of a newer version.",
                              "Put the adapters into the stack again.", details=str(problem)) from problem
        self.base, self._entries, self.trial = base, entries, trial
        self._last_id = max((e.id for e in entries), default=0)
        self.changed.emit(Change("base"))
        self.changed.emit(Change("structure"))


def _strength(value: object) -> float:
    number = float(value)
    if not -MAX_STRENGTH <= number <= MAX_STRENGTH:
        raise ValueError(f"strength {number}")
    return number


def same_path(first: Path | str | None, second: Path | str | None) -> bool:
    """Whether two paths mean the same folder, as far as their words tell."""
    return first is not None and second is not None and os.path.normcase(os.path.abspath(first)) == os.path.normcase(os.path.abspath(second))
