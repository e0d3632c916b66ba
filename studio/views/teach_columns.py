"""Over the examples: each column of the file with what it is, to be changed there. Many columns scroll sideways."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QComboBox, QFrame, QGridLayout, QScrollArea, QWidget

from engine.specs import DataReport
from studio.core.text import teach as words
from studio.views import a11y, theme
from studio.views.parts import Column, Row, button, text

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
        columns = list(report.choices)
        holder, row = QWidget(), Row(spacing=theme.M)
        theme.look(holder, "page")
        for column in columns:
            box = QComboBox()
            for role in report.choices[column]:
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


ASKED = ("ignore", "question", "answer", "context", "system", "text")      # of a file that does not say what its columns are


class AskRoles(QFrame):
    """A file whose columns were not understood: each with what stands in it, and what it is, to be said here. Signals: `given(dict)`."""

    given = Signal(dict)

    def __init__(self, columns: list[str], samples: list[list[str]], said: dict[str, str]):
        super().__init__()
        theme.look(self, "card")
        self.boxes: dict[str, QComboBox] = {}
        grid = QGridLayout()
        grid.setHorizontalSpacing(theme.L)
        grid.setColumnStretch(1, 1)
        for row, column in enumerate(columns[:len(samples[0])]):
            cells = " · ".join(dict.fromkeys(filter(None, (sample[row].strip() for sample in samples))))
            box = self.boxes[column] = QComboBox()
            for role in ASKED:
                box.addItem(words.DATA_ROLES[role](), role)
            box.setCurrentIndex(max(0, box.findData(said.get(column))))
            box.currentIndexChanged.connect(self._enable)
            a11y.name(box, words.DATA_ROLE(column=column), cells)
            a11y.quiet_wheel(box)
            shown = theme.look(a11y.ElidedLabel(cells, mode=Qt.TextElideMode.ElideRight), "muted")
            for place, widget in enumerate((a11y.ElidedLabel(column), shown, box)):
                grid.addWidget(widget, row, place)
        self.use = button(words.DATA_ASK_USE(), lambda: self.given.emit(self.roles()), "primary", help=words.DATA_ASK_HELP())
        Column(text(words.DATA_ASK(), "strong"), text(words.DATA_ASK_HELP(), "muted small"), grid, Row(self.use, None), spacing=theme.M,
               margin=theme.L, parent=self)
        self._enable()

    def roles(self) -> dict[str, str]:
        """Column → role, as it is said now."""
        return {column: box.currentData() for column, box in self.boxes.items()}

    def _enable(self) -> None:
        found = set(self.roles().values())
        self.use.setEnabled("text" in found or {"question", "answer"} <= found)
