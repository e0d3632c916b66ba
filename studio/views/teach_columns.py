"""Over the examples: each column of the file with what it is, to be changed there. Many columns scroll sideways."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QComboBox, QFrame, QScrollArea, QWidget

from engine.specs import DataReport
from studio.core.text import teach as words
from studio.views import a11y, theme
from studio.views.parts import Column, Row

WIDTH = 128                                # pixels of a column at least


class ColumnRoles(QScrollArea):
    """Signals: `given(dict)`, column → role for all columns, after a person changed one."""

    given = Signal(dict)

    def __init__(self):
        super().__init__()
        self.boxes: dict[str, QComboBox] = {}
        self._report: DataReport | None = None
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.hide()

    def show_report(self, report: DataReport) -> None:
        """Columns in the order of the file. Those of a kind of file whose meaning is known are not shown."""
        self._report, self.boxes = report, {}
        columns = report.columns if report.choices else []
        holder, row = QWidget(), Row(spacing=theme.M)
        theme.look(holder, "page")
        for column in columns:
            box = QComboBox()
            for role in report.choices:
                box.addItem(words.DATA_ROLES[role](), role)
            given = report.roles.get(column, "ignore")
            box.setCurrentIndex(max(0, box.findData(given)))
            box.setMinimumWidth(max(WIDTH, box.sizeHint().width()))
            box.activated.connect(lambda _, c=column, b=box: self._give(c, b.currentData()))
            a11y.name(box, words.DATA_ROLE(column=column))
            a11y.quiet_wheel(box)
            name = a11y.ElidedLabel(column)
            theme.look(name, "muted small" if given == "ignore" else "small")
            self.boxes[column] = box
            row.addLayout(Column(name, box, spacing=theme.XS), 1)
        Column(row, parent=holder)
        self.setWidget(holder)
        self.setVisible(bool(columns))
        if columns:
            self._fit()
            used = next((box for column, box in self.boxes.items() if report.roles.get(column, "ignore") != "ignore"), None)
            if used is not None:
                holder.layout().activate()
                self.horizontalScrollBar().setValue(used.x())

    def resizeEvent(self, event) -> None:  # noqa: N802 (Qt's name)
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        """As high as one line of columns, and a scroll bar where they do not all fit."""
        if self.widget() is not None and self.boxes:
            wide = self.widget().minimumSizeHint().width() > self.width()
            self.setFixedHeight(self.widget().sizeHint().height() + (self.horizontalScrollBar().sizeHint().height() + theme.XS if wide else 2))

    def _give(self, column: str, role: str) -> None:
        """Two columns that are both the question or the answer make no sense: the other one takes this one's place."""
        roles = {name: self._report.roles.get(name, "ignore") for name in self._report.columns}
        other = next((name for name, its in roles.items() if its == role and name != column and role in ("question", "answer")), None)
        if other:
            roles[other] = roles[column]
        self.given.emit({**roles, column: role})
