"""The quiet frame that every curve is drawn in: no menu, no zoom by mouse, no buttons."""

from __future__ import annotations


def quiet_plot():
    """(pyqtgraph, a new plot). It is loaded here, for it takes a quarter of a second: not before the window has been painted."""
    import pyqtgraph as pg

    pg.setConfigOptions(antialias=False, useOpenGL=False)
    plot = pg.PlotWidget(background=None)
    plot.setMenuEnabled(False)
    plot.setMouseEnabled(False, False)
    plot.hideButtons()
    plot.setFrameShape(plot.Shape.NoFrame)
    return pg, plot
