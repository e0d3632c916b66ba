"""Undo for the stack: what was done, what was taken back, and the words for both. The commands are `studio.core.stack_commands`.

Two plain lists instead of QUndoStack: no Python object is owned by C++, and what goes wrong in a command surfaces as itself.
"""

from __future__ import annotations

from PySide6.QtCore import QObject, Signal

from studio.core.stack_commands import Command
from studio.core.stack_document import StackDocument

LIMIT = 200


class UndoStack(QObject):
    """Carries out commands on one document and takes them back, up to 200 of them."""

    changed = Signal()                     # something was done, undone or redone

    def __init__(self, document: StackDocument, parent: QObject | None = None):
        super().__init__(parent)
        self.document = document
        self._done: list[tuple[Command, str]] = []
        self._undone: list[tuple[Command, str]] = []

    def push(self, command: Command) -> bool:
        """Carry a command out; False if it would change nothing (then no step is made). It joins the last step if that agrees."""
        if command.idle(self.document):
            return False
        words = command.words(self.document)
        command.do(self.document)
        joined = bool(self._done) and not self._undone and self._done[-1][0].merge(command)
        self._undone.clear()
        if not joined:
            self._done.append((command, words))
            del self._done[:-LIMIT]
        self.changed.emit()
        return True

    def undo(self) -> None:
        """Take the last step back; nothing happens if there is none."""
        if self._done:
            step = self._done.pop()
            step[0].undo(self.document)
            self._undone.append(step)
            self.changed.emit()

    def redo(self) -> None:
        """Do again what was taken back; nothing happens if there is none."""
        if self._undone:
            step = self._undone.pop()
            step[0].do(self.document)
            self._done.append(step)
            self.changed.emit()

    def clear(self) -> None:
        """Forget all steps (the document became another one)."""
        self._done.clear()
        self._undone.clear()
        self.changed.emit()

    def undo_words(self) -> str:
        """What `undo` would take back, in words; empty if nothing."""
        return self._done[-1][1] if self._done else ""

    def redo_words(self) -> str:
        return self._undone[-1][1] if self._undone else ""

    def __len__(self) -> int:
        """Number of steps that can be undone."""
        return len(self._done)
