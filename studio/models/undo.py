"""Undo for the stack: one thin Qt command round any command of `studio.core.stack_commands`."""

from __future__ import annotations

from PySide6.QtCore import QObject
from PySide6.QtGui import QUndoCommand, QUndoStack

from studio.core.stack_commands import Command, SetStrength
from studio.core.stack_document import StackDocument

_STRENGTH = 1                              # Qt merges only neighbours with the same id


class _Step(QUndoCommand):
    def __init__(self, command: Command, document: StackDocument):
        super().__init__(command.words(document))
        self.command, self.document = command, document

    def redo(self) -> None:
        self.command.do(self.document)

    def undo(self) -> None:
        self.command.undo(self.document)

    def id(self) -> int:
        return _STRENGTH if isinstance(self.command, SetStrength) else -1

    def mergeWith(self, other: QUndoCommand) -> bool:    # noqa: N802 (Qt's name)
        return isinstance(other, _Step) and self.command.merge(other.command)


class UndoStack(QUndoStack):
    """Carries out commands on one document and takes them back, up to 200 of them."""

    def __init__(self, document: StackDocument, parent: QObject | None = None):
        super().__init__(parent)
        self.document = document
        self.setUndoLimit(200)

    def push(self, command: Command) -> bool:
        """Carry a command out; False if it would change nothing (then no step is made)."""
        if command.idle(self.document):
            return False
        super().push(_Step(command, self.document))
        return True
