"""The quiet frame that every curve is drawn in: no menu, no zoom by mouse, no buttons."""

from __future__ import annotations

from studio.core.text import local


def quiet_plot():
    """(pyqtgraph, a new plot). It takes a quarter of a second to load: whoever can wait asks `loaded` first."""
    import pyqtgraph as pg

    class Axis(pg.AxisItem):
        """Numbers as the language writes them."""

        def tickStrings(self, *values) -> list[str]:       # noqa: N802 (pyqtgraph's name)
            return [local(said) for said in super().tickStrings(*values)]

    pg.setConfigOptions(antialias=False, useOpenGL=False)
    plot = pg.PlotWidget(background=None, axisItems={side: Axis(side) for side in ("left", "bottom")})
    plot.setMenuEnabled(False)
    plot.setMouseEnabled(False, False)
    plot.hideButtons()
    plot.setFrameShape(plot.Shape.NoFrame)
    return pg, plot
