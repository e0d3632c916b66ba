"""Run by `test_real_drag`: opens the real window on the virtual screen and moves the real pointer; prints the stack as JSON.

``python -m tests.journeys.real_drag HOME``. The pointer moves in a thread, because Qt waits inside a drag.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from PySide6.QtCore import QPoint, QTimer
from PySide6.QtWidgets import QApplication, QWidget

from engine.store.home import Home
from studio.app import Studio
from studio.jobs.runner import InlineRunner
from tests.studio.kit import FakeTalk

PAUSE = 0.05                               # seconds between two movements; a drag must be seen as one


def xdotool(*words: object) -> None:
    subprocess.run(["xdotool", *map(str, words)], check=True)


def drag(start: QPoint, end: QPoint) -> None:
    """Press, a dozen small steps, release."""
    xdotool("mousemove", start.x(), start.y())
    xdotool("mousedown", 1)
    for step in range(1, 13):
        xdotool("mousemove", start.x() + (end.x() - start.x()) * step // 12, start.y() + (end.y() - start.y()) * step // 12)
        time.sleep(PAUSE)
    time.sleep(4 * PAUSE)
    xdotool("mouseup", 1)
    time.sleep(6 * PAUSE)


def place(widget: QWidget, point: QPoint) -> QPoint:
    return widget.mapToGlobal(point)


def main(home: Path) -> None:
    app = QApplication(sys.argv[:1])
    studio = Studio(app, Home(home), runner=InlineRunner(None), talk=FakeTalk())
    studio.window.show()
    studio.settle(at_once=True)
    studio.window.go("mix")
    tree, rows = studio.library.tree, studio.mix.list

    def adapter(number: int) -> QPoint:
        index = studio.library.model.index(number, 0, studio.library.model.index(0, 0))
        return place(tree.viewport(), tree.visualRect(index).center())

    def handle(number: int, below: int = 0) -> QPoint:
        return place(rows.viewport(), rows.visualRect(studio.mix.model.index(number)).topLeft() + QPoint(20, 30 + below))

    def act() -> None:
        for number in (0, 1):
            drag(adapter(number), place(rows.viewport(), rows.viewport().rect().center() + QPoint(0, 120)))
        drag(handle(1), handle(0, below=-20))
        done.append(True)

    done: list[bool] = []

    def look() -> None:
        if done:
            print(studio.document.to_json(), flush=True)
            studio.window.close()
    watch = QTimer(interval=100)
    watch.timeout.connect(look)
    watch.start()
    QTimer.singleShot(800, lambda: threading.Thread(target=act, daemon=True).start())
    app.setQuitOnLastWindowClosed(False)
    app.exec()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
