"""The examples as chat bubbles, as many as there are: painted, so that a million cost no more than those in sight."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QRect, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter, QPen, QTextLayout, QTextOption
from PySide6.QtWidgets import QAbstractItemView, QFrame, QHeaderView, QStyle, QStyledItemDelegate, QTableView

from engine.specs import DataReport
from studio.core.text import teach as words
from studio.models.examples_model import HELD, MESSAGES, ExamplesModel
from studio.views import a11y, theme

MOST_LINES = {"user": 2, "assistant": 3, "system": 2, "text": 6}       # of one bubble; the whole text stands beside the list
GAP, PAD, INDENT = theme.S, theme.M, theme.XXL


class ExamplesList(QTableView):
    """Signals: `picked(int)`, the row that a person looks at."""

    picked = Signal(int)

    def __init__(self, model: ExamplesModel):
        super().__init__()
        self._bubbles, self._sample = _Bubbles(self), []
        self.setModel(model)
        self.setItemDelegate(self._bubbles)
        self.setFrameShape(QFrame.Shape.NoFrame)
        theme.look(self, "flat examples")
        self.setShowGrid(False)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setTabKeyNavigation(False)
        self.horizontalHeader().hide()
        self.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.verticalHeader().hide()
        self.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.verticalHeader().setMinimumSectionSize(8)
        a11y.name(self, words.DATA_EXAMPLES(), words.DATA_EXAMPLES_HELP())
        self.selectionModel().currentRowChanged.connect(lambda now, _: now.isValid() and self.picked.emit(now.row()))

    def show_report(self, report: DataReport) -> None:
        """Begin anew; the rows are as high as the first examples need, and equally high, so that any of a million is found at once."""
        self._sample = report.examples
        self._fit()
        self.model().show(report)
        if report.rows:
            self.selectRow(0)

    def grow(self, report: DataReport) -> None:
        """All are counted now: what is looked at stays where it is."""
        self.model().grow(report)

    def go(self, row: int) -> None:
        """Look at this row."""
        if 0 <= row < self.model().rowCount():
            self.selectRow(row)
            self.scrollTo(self.model().index(row, 0), QAbstractItemView.ScrollHint.PositionAtCenter)

    def _fit(self) -> None:
        width = max(200, self.viewport().width())
        self.verticalHeader().setDefaultSectionSize(self._bubbles.fit(self._sample, width - 4 * GAP, self.font()))

    def resizeEvent(self, event) -> None:  # noqa: N802 (Qt's names)
        super().resizeEvent(event)
        self._fit()

    def changeEvent(self, event) -> None:  # noqa: N802
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._fit()


class _Bubbles(QStyledItemDelegate):
    """Draws one example: what is asked on the left, what is answered on the right, in the colours of the theme."""

    def sizeHint(self, option, index) -> QSize:        # noqa: N802
        return QSize(option.rect.width(), self.parent().verticalHeader().defaultSectionSize())

    def __init__(self, parent: ExamplesList):
        super().__init__(parent)
        self._most = dict(MOST_LINES)

    def fit(self, sample: list[list[dict]], width: int, font: QFont) -> int:
        """As many lines a bubble as three in four examples need, `MOST_LINES` at most; returns the height of a row."""
        self._most = dict(MOST_LINES)
        rows = [_laid_out(messages, width, font, self._most) for messages in sample]
        for role in MOST_LINES:
            needed = sorted(len(lines) for row in rows for its, lines, *_ in row if its == role)
            self._most[role] = needed[3 * len(needed) // 4] if needed else 1
        rows = [_laid_out(messages, width, font, self._most) for messages in sample]
        return max((sum(height + GAP for *_, height in row) for row in rows), default=60) + 2 * GAP

    def paint(self, painter: QPainter, option, index) -> None:
        t, metrics = theme.tokens(), option.fontMetrics
        frame = option.rect.adjusted(1, 1, -GAP, -GAP)
        chosen = bool(option.state & QStyle.StateFlag.State_Selected)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        focused = chosen and self.parent().hasFocus()
        painter.setPen(QPen(QColor(t.text if focused else t.accent if chosen else t.border), 2 if chosen else 1))
        painter.setBrush(QColor(t.card))
        painter.drawRoundedRect(QRectF(frame).adjusted(0.5, 0.5, -0.5, -0.5), theme.RADIUS, theme.RADIUS)
        painter.setClipRect(frame.adjusted(2, 2, -2, -2))
        messages = index.data(MESSAGES)
        if messages is None:
            painter.setPen(QColor(t.muted))
            painter.drawText(frame, Qt.AlignmentFlag.AlignCenter, words.DATA_LOOKING())
        else:
            y = frame.top() + GAP
            for role, lines, width, height in _laid_out(messages, frame.width() - 2 * GAP, option.font, self._most):
                left = frame.right() - GAP - width if role == "assistant" else frame.left() + GAP
                painter.setPen(Qt.PenStyle.NoPen)
                painter.setBrush(QColor(t.accent_soft if role == "assistant" else t.sunken))
                painter.drawRoundedRect(QRectF(left, y, width, height), 10, 10)
                painter.setPen(QColor(t.muted if role in ("", "system") else t.text))
                for n, line in enumerate(lines):
                    place = QRect(left + PAD, y + PAD // 2 + n * metrics.lineSpacing(), width - 2 * PAD, metrics.lineSpacing())
                    painter.drawText(place, Qt.AlignmentFlag.AlignVCenter | Qt.TextFlag.TextSingleLine, line)
                y += height + GAP
            if index.data(HELD):
                self._tag(painter, frame, words.DATA_HELD_TAG(), metrics)
        painter.restore()

    def _tag(self, painter: QPainter, frame: QRect, said: str, metrics: QFontMetrics) -> None:
        t, width = theme.tokens(), metrics.horizontalAdvance(said) + 2 * GAP
        place = QRect(frame.right() - width - GAP, frame.top() + GAP // 2, width, metrics.height() + 4)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(t.warn_soft))
        painter.drawRoundedRect(place, 6, 6)
        painter.setPen(QColor(t.warn))
        painter.drawText(place, Qt.AlignmentFlag.AlignCenter, said)


def _laid_out(messages: list[dict], width: int, font: QFont, most: dict[str, int]) -> list[tuple[str, list[str], int, int]]:
    """(role, lines, width, height) of each bubble. Of a long conversation the first question, how much follows, and the last answer."""
    shown = messages if len(messages) <= 3 else [messages[0], {"role": "", "content": words.DATA_TURNS(len(messages) - 2)}, messages[-1]]
    found, metrics = [], QFontMetrics(font)
    for message in shown:
        role = message.get("role", "text")
        room = width - (0 if role == "text" else INDENT) - 2 * PAD
        lines = _lines(str(message.get("content", "")), room, most.get(role, 1), font)
        found.append((role, lines, width - (0 if role == "text" else INDENT), len(lines) * metrics.lineSpacing() + PAD))
    return found


def _lines(text: str, width: int, most: int, font: QFont) -> list[str]:
    """The text broken into at most so many lines; what is left is “…” at the end of the last."""
    lines, metrics = [], QFontMetrics(font)
    paragraphs = [p for p in text.split("\n") if p.strip()] or [""]
    for number, paragraph in enumerate(paragraphs):
        layout = QTextLayout(paragraph[:1200], font)
        option = QTextOption()
        option.setWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        layout.setTextOption(option)
        layout.beginLayout()
        while (line := layout.createLine()).isValid():
            line.setLineWidth(max(40, width))
            here = paragraph[line.textStart():line.textStart() + line.textLength()]
            if len(lines) == most - 1 and (line.textStart() + line.textLength() < len(paragraph) or number < len(paragraphs) - 1):
                rest = paragraph[line.textStart():line.textStart() + 400]
                lines.append(metrics.elidedText(rest + (" …" if len(rest) < 400 else ""), Qt.TextElideMode.ElideRight, max(40, width)))
                layout.endLayout()
                return lines
            lines.append(here.rstrip())
            if len(lines) == most:
                layout.endLayout()
                return lines
        layout.endLayout()
    return lines
