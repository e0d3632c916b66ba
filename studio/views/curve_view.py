"""The live curve: error on learned and on unseen examples, the best point, and what happened. With a table twin and a sentence.

Points go into `Series` as they come; the picture is drawn at most four times a second, only while it can be seen, and from at most
two points a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from PySide6.QtCore import QTimer, Qt, Signal
from PySide6.QtWidgets import QAbstractItemView, QComboBox, QStackedWidget, QTableView, QWidget

from studio.core.series import Series, Smooth
from studio.core.text import number
from studio.core.text import teach as words
from studio.models.series_table import EVENT, LEARNED, UNSEEN, SeriesTable
from studio.views import a11y, theme
from studio.views.flow import Flow
from studio.views.parts import Column, Row, button, text
from studio.views.plot import Line, Mark, Plot

PLOT, TABLE, NOTHING = range(3)
CALM_POINTS = 150                          # a thick, smooth line costs by its points, not by its length
REDRAW = 250                               # milliseconds between two pictures, at least


class CurveView(QWidget):
    """Feed it with `learned`, `unseen`, `mark` and `rewind`; ask `sentence` for what it shows."""

    drawn = Signal()

    def __init__(self):
        super().__init__()
        self.table = SeriesTable(self)
        self._tabular = False
        self._line_raw, self._line_smooth, self._line_unseen = Line("curve_learned"), Line("curve_learned", 2), Line("curve_unseen", 2, dots=True)
        self._plot = Plot(self._line_raw, self._line_smooth, self._line_unseen, below=words.TRAIN_STEP())
        self._timer = QTimer(self, interval=REDRAW, singleShot=True)
        self._timer.timeout.connect(self._draw)
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
        self._stack.addWidget(self._plot)
        self._table = self._table_view()
        self._stack.addWidget(self._table)
        nothing = text(words.TRAIN_NO_POINTS(), "muted")
        nothing.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._stack.addWidget(nothing)
        self._stack.setCurrentIndex(NOTHING)
        self._stack.setMinimumHeight(220)
        title, learned, unseen = (theme.look(a11y.ElidedLabel(said, mode=Qt.TextElideMode.ElideRight), looks) for said, looks in (
            (words.TRAIN_CURVE(), "strong"), (words.TRAIN_LEARNED(), "muted small"), (words.TRAIN_UNSEEN(), "muted small")))
        head = Flow(title, self.kind, self._swap, spacing=theme.M)
        Column(head,
               Row(text("●", "curve-learned", wrap=False), learned, theme.M, text("●", "curve-unseen", wrap=False), unseen, None, spacing=6),
               self._stack, parent=self)
        self.clear()

    # --- what comes in ---

    def clear(self) -> None:
        """Begin with an empty picture."""
        self._raw, self._smooth, self._unseen, self._marks, self._end = Series(), Smooth(), Series(), {}, 1.0
        self._loud: set[int] = set()
        self._pointed: float | None = None
        self.table.clear()
        self._soon()

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
        kind = self.kind.currentData()
        height = _logarithms if kind == "log" else list
        self._plot.logarithmic = kind == "log"
        self._line_smooth.shown, self._line_raw.faint = kind != "raw", kind != "raw"
        width = max(self._plot.width(), 50)
        first, last = (self._raw.x[0], self._raw.x[-1]) if len(self._raw) else (0.0, 1.0)
        if len(self._unseen):
            first, last = min(first, self._unseen.x[0]), max(last, self._unseen.x[-1])
        for line, (x, y) in ((self._line_raw, self._raw.window(first, last, width)), (self._line_smooth, self._smooth.series.thinned(CALM_POINTS)),
                             (self._line_unseen, self._unseen.window(first, last, width))):
            line.x, line.y = x, height(y)
        best = self.best()
        self._plot.ring = (best[0], height([best[1]])[0]) if best and (kind != "log" or best[1] > 0) else None
        self._plot.ring_words = words.TRAIN_BEST(step=round(best[0])) if best and len(self._unseen) > 1 else ""
        self._plot.upright = self._pointed
        self._plot.marks = [Mark(step, f"{words.TRAIN_STEP()} {number(step, 0)}: {'; '.join(what)}", step in self._loud)
                            for step, what in sorted(self._marks.items())]
        self._scale(first, last, [*self._line_smooth.y, *self._line_unseen.y], above=-math.inf if kind == "log" else 0.0)
        a11y.name(self._plot, words.TRAIN_CURVE(), self.sentence())
        self._plot.update()
        self.drawn.emit()

    def _scale(self, first: float, last: float, shown: list[float], above: float) -> None:
        shown = [value for value in shown if math.isfinite(value)]
        low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
        room = max(0.12 * (high - low), 0.1 if above == 0 else 0.01)
        self._plot.across, self._plot.up = (first, max(last, self._end, first + 1)), (max(above, low - room), high + 1.6 * room)

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


def _logarithms(errors: Iterable[float]) -> list[float]:
    """log₁₀, with a gap where there is none."""
    return [math.log10(error) if error > 0 else math.nan for error in errors]
