"""Lines over a quiet grid, painted by hand: no menu, no zoom, colours of the theme, numbers as the language writes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PySide6.QtCore import QEvent, QLineF, QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFont, QPainter, QPen, QPolygonF
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from studio.core.text import number
from studio.views import theme

NEAR = 10                                  # pixels from a mark at which its words are shown


@dataclass
class Line:
    """A curve; NaN is a gap in it. ``role``: its colour in the theme; ``faint``: half that, ``dots``: its points can be told apart."""

    role: str
    width: int = 1
    faint: bool = False
    dots: bool = False
    x: Sequence[float] = ()
    y: Sequence[float] = ()
    shown: bool = True


@dataclass
class Mark:
    """Something that happened at ``x``, on the lower edge; ``loud``: worth a look."""

    x: float
    words: str
    loud: bool = False


class Plot(QWidget):
    """Set what it shows, then call `update`.

    ``ring``: (x, y) round which a ring is drawn, ``ring_words`` beside it; ``upright``: x of a dashed line; ``ticks``: (x, words) below, by
    itself round numbers; ``logarithmic``: heights are powers of ten.
    """

    def __init__(self, *lines: Line, below: str = ""):
        super().__init__()
        self.lines, self.below = lines, below
        self.marks: list[Mark] = []
        self.ring: tuple[float, float] | None = None
        self.ring_role, self.ring_words = "curve_unseen", ""
        self.upright: float | None = None
        self.ticks: list[tuple[float, str]] = []
        self.logarithmic = False
        self.across, self.up = (0.0, 1.0), (0.0, 1.0)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)

    def minimumSizeHint(self) -> QSize:    # noqa: N802 (Qt's name)
        return QSize(160, 100)

    # --- where things are ---

    def _font(self) -> QFont:
        font = self.font()
        font.setPointSizeF(font.pointSizeF() * 0.88)
        return font

    def _heights(self) -> list[tuple[float, str]]:
        """Round heights and what is written at them."""
        most = max(2, self.height() // (3 * self.fontMetrics().height()))
        if not self.logarithmic:
            found = list(_round(*self.up, most))
            return [(height, number(height, _digits(found))) for height in found]
        low, high = self.up
        if high - low < 1:
            found = list(_round(10.0 ** low, 10.0 ** high, most))
        else:
            found = [times * 10.0 ** power for power in range(math.floor(low), math.ceil(high) + 1) for times in (1, 2, 5)]
            found = [value for value in found if low <= math.log10(value) <= high]
            found = found if len(found) <= most else [value for value in found if round(math.log10(value), 9) % math.ceil((high - low) / most) == 0]
        return [(math.log10(value), number(value)) for value in found]

    def _frame(self, written: list[str]) -> QRectF:
        """The inside, between what is written at the left and below."""
        line, wide = self.fontMetrics().height(), max((self.fontMetrics().horizontalAdvance(words) for words in written), default=0)
        return QRectF(wide + 2 * theme.S, theme.S, max(1.0, self.width() - wide - 4 * theme.S),
                      max(1.0, self.height() - 2 * theme.S - line * (2 if self.below else 1)))

    def at(self, x: float, y: float) -> QPointF:
        """The pixel of a point."""
        inside = self._frame([words for _, words in self._heights()])
        return _Scale(inside, self.across, self.up)(x, y)

    # --- painting ---

    def paintEvent(self, event) -> None:   # noqa: N802 (Qt's name)
        heights = self._heights()
        inside = self._frame([words for _, words in heights])
        place, painter = _Scale(inside, self.across, self.up), QPainter(self)
        painter.setFont(self._font())
        self._paint_grid(painter, inside, place, heights)
        painter.setClipRect(inside.adjusted(-2, -2, 2, 2))
        if self.upright is not None:
            painter.setPen(QPen(theme.color("text"), 1, Qt.PenStyle.DashLine))
            painter.drawLine(QLineF(place(self.upright, self.up[0]), place(self.upright, self.up[1])))
        for line in self.lines:
            if line.shown:
                self._paint_line(painter, line, place)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setClipRect(inside.adjusted(-8, -8, 8, 8))
        self._paint_marks(painter, place)
        if self.ring is not None:
            self._paint_ring(painter, inside, place(*self.ring))

    def _paint_grid(self, painter: QPainter, inside: QRectF, place: "_Scale", heights: list[tuple[float, str]]) -> None:
        line, card = painter.fontMetrics().height(), theme.color("curve_grid")
        for height, words in heights:
            y = place(0, height).y()
            painter.setPen(card)
            painter.drawLine(QLineF(inside.left(), y, inside.right(), y))
            painter.setPen(theme.color("muted"))
            box = QRectF(0, y - line, inside.left() - theme.S, 2 * line)
            painter.drawText(box, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, words)
        painter.drawLine(inside.bottomLeft(), inside.bottomRight())
        ticks = self.ticks or [(x, number(x, 0)) for x in _round(*self.across, max(2, int(inside.width() // (8 * line)))) if x == int(x)]
        free = -math.inf
        for x, words in ticks:             # what would run into its neighbour is left out
            middle, half = place(x, 0).x(), painter.fontMetrics().horizontalAdvance(words) / 2
            left = min(max(0.0, middle - half), self.width() - 2 * half)
            if left > free:
                painter.drawText(QPointF(left, inside.bottom() + line), words)
                free = left + 2 * half + theme.S
        if self.below:
            painter.drawText(QRectF(inside.left(), inside.bottom() + line, inside.width(), 1.4 * line), Qt.AlignmentFlag.AlignCenter, self.below)

    def _paint_line(self, painter: QPainter, line: Line, place: "_Scale") -> None:
        color = theme.color(line.role)
        if line.faint:                     # halfway to what is behind: a colour that is seen through would be slow
            behind = theme.color("card")
            color = QColor(*((one + other) // 2 for one, other in zip(color.getRgb()[:3], behind.getRgb()[:3])))
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, line.width > 1)
        painter.setPen(QPen(color, line.width))
        for piece in _pieces(line.x, line.y, place):
            painter.drawPolyline(piece)
            if line.dots or len(piece) == 1:
                painter.setBrush(color)
                for dot in piece:
                    painter.drawEllipse(dot, 2, 2)

    def _paint_marks(self, painter: QPainter, place: "_Scale") -> None:
        painter.setPen(Qt.PenStyle.NoPen)
        for mark in self.marks:
            foot, size = place(mark.x, self.up[0]), 7 if mark.loud else 5
            painter.setBrush(theme.color("accent" if mark.loud else "muted"))
            painter.drawPolygon(QPolygonF([foot, foot + QPointF(-size, -size), foot + QPointF(size, -size)]))

    def _paint_ring(self, painter: QPainter, inside: QRectF, middle: QPointF) -> None:
        painter.setPen(QPen(theme.color(self.ring_role), 2))
        painter.setBrush(theme.color("card"))
        painter.drawEllipse(middle, 6, 6)
        if self.ring_words:
            metrics = painter.fontMetrics()
            box = QRectF(0, 0, metrics.horizontalAdvance(self.ring_words) + theme.S, metrics.height())
            box.moveBottomLeft(middle + QPointF(theme.S, -theme.S))
            box.moveRight(min(box.right(), inside.right()))
            box.moveTop(max(box.top(), inside.top()))
            painter.fillRect(box, theme.color("card"))
            painter.setPen(theme.color("text"))
            painter.drawText(box, Qt.AlignmentFlag.AlignCenter, self.ring_words)

    # --- what a mark says ---

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.ToolTip:
            words = self.words_at(QPointF(event.pos()))
            QToolTip.showText(event.globalPos(), words, self) if words else QToolTip.hideText()
            return True
        return super().event(event)

    def words_at(self, where: QPointF) -> str:
        """What the mark near this pixel says; empty if there is none."""
        found = min(((abs(self.at(mark.x, self.up[0]).x() - where.x()), mark) for mark in self.marks), key=lambda pair: pair[0], default=None)
        near = found is not None and found[0] <= NEAR and abs(self.at(0, self.up[0]).y() - where.y()) <= 2 * NEAR
        return found[1].words if near else ""


class _Scale:
    """Numbers → pixels."""

    def __init__(self, inside: QRectF, across: tuple[float, float], up: tuple[float, float]):
        self._left, self._x = inside.left() - across[0] * inside.width() / (across[1] - across[0]), inside.width() / (across[1] - across[0])
        self._bottom, self._y = inside.bottom() + up[0] * inside.height() / (up[1] - up[0]), inside.height() / (up[1] - up[0])

    def __call__(self, x: float, y: float) -> QPointF:
        return QPointF(self._left + x * self._x, self._bottom - y * self._y)


def _pieces(x: Sequence[float], y: Sequence[float], place: _Scale) -> Iterator[list[QPointF]]:
    """The points between two gaps, as pixels."""
    piece: list[QPointF] = []
    for one, other in zip(x, y):
        if math.isfinite(other):
            piece.append(place(one, other))
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


def _digits(found: list[float]) -> int:
    """As many behind the point as tell neighbours apart."""
    return max(0, -math.floor(math.log10(found[1] - found[0]) + 1e-9)) if len(found) > 1 else 2


def _round(low: float, high: float, most: int) -> Iterator[float]:
    """About ``most`` round numbers from ``low`` to ``high``, at most."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * (1 - 1e-9))
    for count in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        yield count * step
