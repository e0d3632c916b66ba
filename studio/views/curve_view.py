"""The live curve: error on learned and on unseen examples, the best point, and what happened. With a table twin and a sentence.

Points go into `Series` as they come; the picture is drawn at most ten times a second, only while it can be seen, and from at most
two points a pixel. pyqtgraph is loaded a moment after the window stands, or when the curve is first seen.
"""

from __future__ import annotations

import time

import numpy as np
from PySide6.QtCore import QTimer, Qt, Signal
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QAbstractItemView, QComboBox, QStackedWidget, QTableView, QWidget

from studio.core.series import Series, Smooth
from studio.core.text import number
from studio.core.text import teach as words
from studio.models.loading import loaded
from studio.models.series_table import EVENT, LEARNED, UNSEEN, SeriesTable
from studio.views import a11y, theme
from studio.views.flow import Flow
from studio.views.parts import Column, Row, button, text
from studio.views.plot import quiet_plot

PLOT, TABLE, NOTHING = range(3)
CALM_POINTS = 150                          # a thick, smooth line costs by its points, not by its length
REDRAW, SLOWEST = 100, 1500                # milliseconds between two pictures: at least, at most
WARM_AFTER = 1500                          # milliseconds after the window was built
SHARE = 40                                 # a picture may take one part in so many of the window's time


class CurveView(QWidget):
    """Feed it with `learned`, `unseen`, `mark` and `rewind`; ask `sentence` for what it shows."""

    drawn = Signal()

    def __init__(self):
        super().__init__()
        self.table = SeriesTable(self)
        self._plot, self._tabular = None, False
        self._timer = QTimer(self, interval=REDRAW, singleShot=True)
        self._timer.timeout.connect(self._draw)
        QTimer.singleShot(WARM_AFTER, self, self._warm)                # while nothing is going on yet
        self._swap = button(words.TRAIN_SHOW_TABLE(), self.toggle_table, "quiet")
        self._swap.setCheckable(True)
        self.kind = QComboBox()
        for key, said in words.TRAIN_CURVE_KINDS.items():
            self.kind.addItem(said(), key)
        self.kind.setMinimumContentsLength(8)          # in a narrow window it is cut rather than the page widened
        a11y.name(self.kind, words.TRAIN_CURVE_KIND())
        a11y.quiet_wheel(self.kind)
        self.kind.currentIndexChanged.connect(lambda _: self._soon())
        self._stack = QStackedWidget()
        self._place = QWidget()
        Column(parent=self._place)
        self._stack.addWidget(self._place)
        self._table = self._table_view()
        self._stack.addWidget(self._table)
        nothing = text(words.TRAIN_NO_POINTS(), "muted")
        nothing.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._stack.addWidget(nothing)
        self._stack.setCurrentIndex(NOTHING)
        self._stack.setMinimumHeight(220)
        self._legend = [(text("●", wrap=False), "curve_learned"), (text("●", wrap=False), "curve_unseen")]
        title, learned, unseen = (theme.look(a11y.ElidedLabel(said, mode=Qt.TextElideMode.ElideRight), looks) for said, looks in (
            (words.TRAIN_CURVE(), "strong"), (words.TRAIN_LEARNED(), "muted small"), (words.TRAIN_UNSEEN(), "muted small")))
        head = Flow(title, self.kind, self._swap, spacing=theme.M)
        Column(head, Row(self._legend[0][0], learned, theme.M, self._legend[1][0], unseen, None, spacing=6), self._stack, parent=self)
        theme.changed.connect(self._restyle)
        self.clear()
        self._restyle()

    # --- what comes in ---

    def clear(self) -> None:
        """Begin with an empty picture."""
        self._raw, self._smooth, self._unseen, self._marks, self._end = Series(), Smooth(), Series(), {}, 1.0
        self._loud: set[int] = set()
        self._pointed: float | None = None
        self.table.clear()
        self._timer.start(0)               # the curve of another training does not stay until the next picture is due

    def expect(self, steps: int) -> None:
        """How many steps are planned: the picture leaves room for those to come."""
        self._end = float(max(1, steps))

    def learned(self, step: int, error: float) -> None:
        """Error of one step on the examples it learns (nats a token)."""
        if len(self._raw) and step <= self._raw.x[-1]:
            self.rewind(step)
        self._raw.append(step, error)
        self._smooth.append(step, error)
        self.table.put(step, LEARNED, error)
        self._soon()

    def unseen(self, step: int, error: float) -> None:
        """Error on held-out examples."""
        self._unseen.append(step, error)
        self.table.put(step, UNSEEN, error)
        self._soon()

    def mark(self, step: int, words_: str, *, loud: bool = False) -> None:
        """Something happened at this step; ``loud``: something that is worth a look."""
        if loud:
            self._loud.add(step)
        if words_ not in self._marks.setdefault(step, []):
            self._marks[step].append(words_)
            self.table.put(step, EVENT, words_)
            self._soon()

    def rewind(self, step: int) -> None:
        """A run that goes on from a checkpoint tells these steps again."""
        self._raw.truncate(step)
        self._unseen.truncate(step + 1)    # the error at the checkpoint's own step stays true
        self._marks = {at: what for at, what in self._marks.items() if at <= step}
        self._loud &= self._marks.keys()
        self.table.rewind(step)

    # --- what it says ---

    @property
    def points(self) -> int:
        return len(self._raw)

    def errors(self) -> tuple[list[float], list[float], list[float]]:
        """Learned errors, unseen errors, steps of the unseen ones: what `core.verdict.judge` wants."""
        return self._raw.y[-200:].tolist(), self._unseen.y.tolist(), self._unseen.x.tolist()

    def best(self) -> tuple[float, float] | None:
        """(step, error) of the lowest error on unseen examples."""
        return self._unseen.best()

    def sentence(self) -> str:
        """The picture in words."""
        if not len(self._raw):
            return words.TRAIN_NO_POINTS()
        unseen = number(self._unseen.y[-1], 2) if len(self._unseen) else "–"
        return words.TRAIN_POINTS(step=round(self._raw.x[-1]), learned=number(self._smooth.series.y[-1], 2), unseen=unseen)

    def point_out(self, step: float | None) -> None:
        """Show where something is: a line through this step, and its row in the table. None takes it away."""
        self._pointed = step
        row = None if step is None else self.table.row_of(step)
        if self._tabular and row is not None:
            self._table.selectRow(row)
            self._table.scrollTo(self.table.index(row, 0))
        self._soon()

    def toggle_table(self) -> None:
        self._tabular = not self._tabular
        self._table.setModel(self.table if self._tabular else None)    # a table that nobody sees need not follow
        self._swap.setChecked(self._tabular)
        self._soon()

    # --- drawing ---

    def showEvent(self, event) -> None:    # noqa: N802 (Qt's name)
        super().showEvent(event)
        QTimer.singleShot(0, self, self.draw_now)      # what comes into sight is there at once, however rarely it is drawn otherwise

    def resizeEvent(self, event) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._soon()

    def _soon(self) -> None:
        if not self._timer.isActive():
            self._timer.start()

    def draw_now(self) -> None:
        """Draw at once (screenshots and tests)."""
        self._timer.stop()
        self._draw()

    def _draw(self) -> None:
        if not self.isVisible():
            return
        empty = not len(self._raw) and not len(self._unseen)
        self._stack.setCurrentIndex(TABLE if self._tabular else NOTHING if empty else PLOT)
        if self._tabular or empty:
            return
        self._make_plot()
        kind = self.kind.currentData()
        height = _logarithm if kind == "log" else np.asarray
        self._plot.getAxis("left").setLogMode(False, kind == "log")
        self._line_smooth.setVisible(kind != "raw")
        self._line_raw.setPen(self._pens["raw" if kind == "raw" else "behind"])
        width = max(self._plot.width(), 50)
        first, last = (self._raw.x[0], self._raw.x[-1]) if len(self._raw) else (0.0, 1.0)
        if len(self._unseen):
            first, last = min(first, self._unseen.x[0]), max(last, self._unseen.x[-1])
        x, y = self._raw.window(first, last, width)
        self._line_raw.setData(x, height(y))
        began = time.perf_counter()
        calm = self._smooth.series.thinned(CALM_POINTS)
        self._line_smooth.setData(calm[0], height(calm[1]))
        x, y = self._unseen.window(first, last, width)
        self._line_unseen.setData(x, height(y))
        best = self.best()
        self._dot_best.setData([best[0]] if best else [], [height(best[1])] if best else [])
        if best:
            self._label_best.setText(words.TRAIN_BEST(step=round(best[0])))
            late = best[0] > first + 0.7 * (max(last, self._end) - first)
            self._label_best.setAnchor((1.06, -0.15) if late else (-0.06, -0.15))
            self._label_best.setPos(best[0], float(height(best[1])))
        self._line_pointed.setVisible(self._pointed is not None)
        if self._pointed is not None:
            self._line_pointed.setPos(self._pointed)
        self._label_best.setVisible(best is not None and len(self._unseen) > 1)
        self._scale(first, last, height(np.concatenate((calm[1], y))), above=-np.inf if kind == "log" else 0.0)
        self._draw_marks()
        a11y.name(self._plot, words.TRAIN_CURVE(), self.sentence())
        QTimer.singleShot(0, self, lambda: self._pace(began))
        self.drawn.emit()

    def _pace(self, began: float) -> None:
        """Called when the picture has been painted: dear pictures come more rarely."""
        spent = 1000 * (time.perf_counter() - began)
        self._timer.setInterval(int(min(SLOWEST, max(REDRAW, SHARE * spent))))

    def _scale(self, first: float, last: float, shown: np.ndarray, above: float) -> None:
        shown = shown[np.isfinite(shown)]
        low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, 1.0)
        room = max(0.12 * (high - low), 0.1 if above == 0 else 0.01)
        self._plot.setRange(xRange=(first, max(last, self._end)), yRange=(max(above, low - room), high + 1.6 * room), padding=0.02)

    def _draw_marks(self) -> None:
        """A small tick on the axis for each thing that happened, a larger one where it is worth a look; the words are its tooltip and stand
        in the table."""
        loud = {"size": 13, "brush": self._pg.mkBrush(theme.tokens().accent)}
        spots = [{"pos": (step, 0), "data": "; ".join(what), **(loud if step in self._loud else {})} for step, what in sorted(self._marks.items())]
        bottom = self._plot.getPlotItem().getViewBox().viewRange()[1][0]
        for spot in spots:
            spot["pos"] = (spot["pos"][0], bottom)
        self._ticks.setData(spots)

    def _warm(self) -> None:
        if loaded("pyqtgraph"):
            self._make_plot()
        else:
            QTimer.singleShot(REDRAW, self, self._warm)

    def _make_plot(self) -> None:
        if self._plot is not None:
            return
        pg, self._plot = quiet_plot()
        self._pg = pg
        self._line_raw = self._plot.plot([], [])
        self._line_smooth = self._plot.plot([], [], antialias=True)
        self._line_unseen = self._plot.plot([], [], antialias=True, symbol="o", symbolSize=5)
        for line in (self._line_raw, self._line_smooth, self._line_unseen):
            line.curve.setSegmentedLineMode("on")      # single strokes: many times faster than one long path
        self._dot_best = pg.ScatterPlotItem(size=13)
        self._ticks = pg.ScatterPlotItem(symbol="t1", size=9, hoverable=True, tip=lambda x, y,
                                         data: f"{words.TRAIN_STEP()} {number(x, 0)}: {data}")
        self._label_best = pg.TextItem()
        self._line_pointed = pg.InfiniteLine(angle=90)
        for item in (self._line_pointed, self._dot_best, self._ticks, self._label_best):
            self._plot.addItem(item, ignoreBounds=True)
        self._place.layout().addWidget(self._plot)
        self._restyle()

    def _restyle(self, *_: object) -> None:
        t = theme.tokens()
        for dot, role in self._legend:
            dot.setStyleSheet(f"color: {getattr(t, role)}")
        if self._plot is None:
            return
        pg, faint = self._pg, _between(t.curve_learned, t.card)
        self._plot.setBackground(t.card)
        self._pens = {"raw": pg.mkPen(t.curve_learned, width=1), "behind": pg.mkPen(faint, width=1)}
        self._line_smooth.setPen(pg.mkPen(t.curve_learned, width=2))
        self._line_unseen.setPen(pg.mkPen(t.curve_unseen, width=2))
        self._line_unseen.setSymbolBrush(t.curve_unseen)
        self._line_unseen.setSymbolPen(t.curve_unseen)
        self._dot_best.setPen(pg.mkPen(t.curve_unseen, width=2))
        self._dot_best.setBrush(pg.mkBrush(t.card))
        self._line_pointed.setPen(pg.mkPen(t.text, width=1, style=Qt.PenStyle.DashLine))
        self._ticks.setBrush(pg.mkBrush(t.muted))
        self._ticks.setPen(pg.mkPen(None))
        self._label_best.setColor(t.text)
        self._label_best.fill = pg.mkBrush(QColor(t.card))
        for side in ("left", "bottom"):
            axis = self._plot.getAxis(side)
            axis.setPen(pg.mkPen(t.border))
            axis.setTextPen(t.muted)
            axis.setStyle(tickLength=0, maxTickLevel=0)
        self._plot.showGrid(y=True, alpha=0.25)
        self._plot.setLabel("bottom", words.TRAIN_STEP(), color=t.muted)
        self._soon()

    def _table_view(self) -> QTableView:
        view = QTableView()
        view.verticalHeader().hide()
        view.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        view.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        view.horizontalHeader().setDefaultSectionSize(170)
        view.horizontalHeader().setStretchLastSection(True)
        view.setTabKeyNavigation(False)
        a11y.name(view, words.TRAIN_CURVE(), words.TRAIN_SHOW_TABLE())
        return view


def _logarithm(errors) -> np.ndarray:
    """log₁₀, with a gap where there is none."""
    errors = np.asarray(errors, float)
    return np.log10(errors, out=np.full_like(errors, np.nan), where=errors > 0)


def _between(first: str, second: str) -> QColor:
    """Halfway from one colour to the other: faint without being see-through, which would be slow to paint."""
    a, b = QColor(first), QColor(second)
    return QColor((a.red() + b.red()) // 2, (a.green() + b.green()) // 2, (a.blue() + b.blue()) // 2)
