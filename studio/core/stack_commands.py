"""What can be done to the stack, each with its undoing. Commands hold ids and values, never widgets or tensors.

``do`` after ``undo`` gives the same document again, ``undo`` after ``do`` the one before. ``merge`` joins a command that follows
at once into this one (a slider drag is one step); ``idle`` says that it would change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from studio.core.stack_document import MAX_STRENGTH, Entry, StackDocument
from studio.core.text import frame as text


class Command(Protocol):
    def do(self, document: StackDocument) -> None: ...
    def undo(self, document: StackDocument) -> None: ...
    def idle(self, document: StackDocument) -> bool: ...
    def merge(self, later: "Command") -> bool: ...
    def words(self, document: StackDocument) -> str: ...


class _Single:
    """A command that is a step of its own and always changes something."""

    def idle(self, document: StackDocument) -> bool:
        return False

    def merge(self, later: Command) -> bool:
        return False


@dataclass
class AddAdapter(_Single):
    """Put an adapter at ``place`` (None: the end). ``base`` becomes the stack's base if it has none yet."""

    adapter: Path
    name: str
    place: int | None = None
    strength: float = 1.0
    base: Path | None = None
    _id: int | None = field(default=None, init=False)
    _gave_base: bool = field(default=False, init=False)

    def do(self, document: StackDocument) -> None:
        if self._id is None:
            self._id = document.new_id()
        if document.base is None and self.base is not None:
            document.set_base(self.base)
            self._gave_base = True
        place = len(document) if self.place is None else max(0, min(self.place, len(document)))
        document.insert(place, Entry(self._id, self.adapter, self.name, self.strength))

    def undo(self, document: StackDocument) -> None:
        document.take(self._id)
        if self._gave_base:
            document.set_base(None)
            self._gave_base = False

    def words(self, document: StackDocument) -> str:
        return text.undo_add(name=self.name)


@dataclass
class RemoveAdapter(_Single):
    """Take an entry out of the stack; undone, it stands where it stood."""

    id: int
    _place: int = field(default=-1, init=False)
    _entry: Entry | None = field(default=None, init=False)

    def do(self, document: StackDocument) -> None:
        self._place = document.index(self.id)
        self._entry = document.take(self.id)

    def undo(self, document: StackDocument) -> None:
        document.insert(self._place, self._entry)

    def words(self, document: StackDocument) -> str:
        return text.undo_remove(name=document.entry(self.id).name)


@dataclass
class MoveAdapter(_Single):
    """Bring an entry to ``place``, counted without itself; places outside the stack mean its ends."""

    id: int
    place: int
    _from: int = field(default=-1, init=False)

    def _target(self, document: StackDocument) -> int:
        return max(0, min(self.place, len(document) - 1))

    def idle(self, document: StackDocument) -> bool:
        return document.index(self.id) == self._target(document)

    def do(self, document: StackDocument) -> None:
        self._from = document.index(self.id)
        document.move(self.id, self._target(document))

    def undo(self, document: StackDocument) -> None:
        document.move(self.id, self._from)

    def words(self, document: StackDocument) -> str:
        return text.undo_move(name=document.entry(self.id).name)


@dataclass
class SetStrength:
    """``gesture`` names one drag or one burst of keys: commands of the same gesture on the same entry are one step."""

    id: int
    strength: float
    gesture: int = 0
    _before: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.strength = max(-MAX_STRENGTH, min(MAX_STRENGTH, float(self.strength)))

    def idle(self, document: StackDocument) -> bool:
        return document.entry(self.id).strength == self.strength

    def do(self, document: StackDocument) -> None:
        self._before = document.entry(self.id).strength
        document.set_strength(self.id, self.strength)

    def undo(self, document: StackDocument) -> None:
        document.set_strength(self.id, self._before)

    def merge(self, later: Command) -> bool:
        if not (isinstance(later, SetStrength) and self.gesture and (later.id, later.gesture) == (self.id, self.gesture)):
            return False
        self.strength = later.strength
        return True

    def words(self, document: StackDocument) -> str:
        return text.undo_strength(name=document.entry(self.id).name)


@dataclass
class SetEnabled(_Single):
    """Switch an entry on or off; its strength stays."""

    id: int
    enabled: bool

    def idle(self, document: StackDocument) -> bool:
        return document.entry(self.id).enabled == self.enabled

    def do(self, document: StackDocument) -> None:
        document.set_enabled(self.id, self.enabled)

    def undo(self, document: StackDocument) -> None:
        document.set_enabled(self.id, not self.enabled)

    def words(self, document: StackDocument) -> str:
        return (text.undo_on if self.enabled else text.undo_off)(name=document.entry(self.id).name)


@dataclass
class SetBase(_Single):
    """Choose another base; entries whose ids stand in ``leaving`` do not fit it and leave the stack with the old one."""

    base: Path | None
    leaving: tuple[int, ...] = ()
    _before: Path | None = field(default=None, init=False)
    _taken: list[tuple[int, Entry]] = field(default_factory=list, init=False)

    def idle(self, document: StackDocument) -> bool:
        return document.base == self.base and not self.leaving

    def do(self, document: StackDocument) -> None:
        self._before, self._taken = document.base, []
        for id in self.leaving:
            self._taken.append((document.index(id), document.take(id)))
        document.set_base(self.base)

    def undo(self, document: StackDocument) -> None:
        document.set_base(self._before)
        for place, entry in reversed(self._taken):
            document.insert(place, entry)

    def words(self, document: StackDocument) -> str:
        return text.undo_base(name=self.base.name if self.base else "")


@dataclass
class Several:
    """Commands that are one step for the person, e.g. dropping three adapters."""

    commands: list[Command]
    label: str

    def idle(self, document: StackDocument) -> bool:
        return not self.commands

    def do(self, document: StackDocument) -> None:
        for command in self.commands:
            command.do(document)

    def undo(self, document: StackDocument) -> None:
        for command in reversed(self.commands):
            command.undo(document)

    def merge(self, later: Command) -> bool:
        return False

    def words(self, document: StackDocument) -> str:
        return self.label
