"""Pictures of every panel, light and dark, drawn without a screen from what really lies in a home."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QEventLoop, QTimer
from PySide6.QtWidgets import QApplication

from engine import events
from engine.store.home import Home
from engine.store.runs import RunFolder
from studio.app import Studio
from studio.frame_actions import WORKSPACES
from studio.jobs.runner import Watch
from studio.jobs.talk import Talk
from studio.views import theme

SIZE = (1360, 860)
SETTLE = 400                               # milliseconds in which a panel may ask for what it shows


class _NoWork:
    """A picture starts no job."""

    def run(self, run: RunFolder, watch: Watch) -> events.Event:
        return events.Stopped("pause", resumable=True)

    def warm(self) -> None:
        return

    def close(self) -> None:
        return


def take(app: QApplication, home: Home, folder: Path, *, modes: tuple[str, ...] = ("light", "dark"), talk: Talk | None = None) -> list[Path]:
    """Draw each workspace in each theme as ``<workspace>-<theme>.png``; returns the files. Settings and stack stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = home.settings.read_bytes() if home.settings.exists() else None
    studio = Studio(app, home, runner=_NoWork(), talk=talk)
    files = []
    try:
        studio.window.resize(*SIZE)
        studio.window.show()
        studio.window.inspector.show()
        studio.settle(at_once=True)
        if studio.catalogue.adapters:
            studio.library.select(studio.catalogue.adapters[0].path)
        for mode in modes:
            theme.apply(app, mode, studio.settings.get("text_size"))
            for key in WORKSPACES:
                studio.window.go(key)
                _let_settle()
                file = folder / f"{key}-{mode}.png"
                studio.window.grab().save(str(file))
                files.append(file)
    finally:
        _close(studio)
        if kept is None:
            home.settings.unlink(missing_ok=True)
        else:
            home.settings.write_bytes(kept)
    return files


def _close(studio: Studio) -> None:
    """End a studio and wait until it has."""
    loop = QEventLoop()
    studio.ended.connect(loop.quit)
    studio.window.close()
    loop.exec()
    studio.window.deleteLater()
    studio.deleteLater()


def _let_settle() -> None:
    loop = QEventLoop()
    QTimer.singleShot(SETTLE, loop.quit)
    loop.exec()
