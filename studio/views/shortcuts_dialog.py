"""All keyboard shortcuts, made from the registry of actions."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QKeySequence
from PySide6.QtWidgets import QAbstractItemView, QDialog, QDialogButtonBox, QTableWidget, QTableWidgetItem, QVBoxLayout, QWidget

from studio.core.actions import ActionRegistry
from studio.core.text import frame as text
from studio.views import a11y, theme


class ShortcutsDialog(QDialog):
    """A table: what, keys, where it stands. Esc closes."""

    def __init__(self, registry: ActionRegistry, parent: QWidget | None = None):
        super().__init__(parent)
        self.setWindowTitle(text.do_shortcuts())
        actions = [a for a in registry if a.shortcut]
        table = a11y.name(QTableWidget(len(actions), 3), text.do_shortcuts())
        table.setHorizontalHeaderLabels([text.column_what(), text.column_keys(), text.column_does()])
        table.verticalHeader().hide()
        table.setShowGrid(False)
        table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        table.horizontalHeader().setStretchLastSection(True)
        table.horizontalHeader().setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        for row, action in enumerate(actions):
            keys = QKeySequence(action.shortcut).toString(QKeySequence.SequenceFormat.NativeText)
            for column, words in enumerate((action.title.rstrip("…"), keys, action.help)):
                table.setItem(row, column, QTableWidgetItem(words))
        table.resizeColumnsToContents()
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(*theme.margins(theme.L))
        layout.addWidget(table)
        layout.addWidget(buttons)
        self.resize(760, 560)
