"""``python -m studio``: opens the window, or with ``--shots`` draws every panel into pictures and ends."""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 when the studio cannot be opened (the reason is shown)."""
    parser = argparse.ArgumentParser(prog="adapter-studio-window", description="Adapter Studio: teach, mix and export adapters.")
    parser.add_argument("--home", type=Path, help="folder for models, adapters and jobs (default: the user's data folder)")
    parser.add_argument("--shots", type=Path, metavar="FOLDER", help="draw every panel, light and dark, into PNG files there and end")
    chosen = parser.parse_args(arguments)
    if chosen.shots:
        os.environ["QT_QPA_PLATFORM"] = "offscreen"
    faulthandler.enable()

    from PySide6.QtWidgets import QApplication

    from engine.errors import StudioError
    from engine.store.home import Home
    if chosen.home:
        os.environ["ADAPTER_STUDIO_HOME"] = str(chosen.home.expanduser().resolve())     # the worker's home too: it downloads there
    home = Home.default()
    app = QApplication(sys.argv[:1])
    try:
        if chosen.shots:
            from studio.shots import take
            for file in take(app, home, chosen.shots):
                print(file)
            return 0
        from studio.app import open_studio
        studio = open_studio(home, app=app)
    except StudioError as error:
        return _refuse(error)
    for name in ("SIGINT", "SIGTERM"):     # the bridges' timers give Python a turn to notice them
        signal.signal(getattr(signal, name), lambda *_: studio.window.close())
    app.setQuitOnLastWindowClosed(False)   # the studio ends itself, when what runs is saved
    studio.show()
    return app.exec()


def _refuse(error) -> int:
    """The studio cannot be opened: say why, on the screen and in the terminal."""
    from PySide6.QtWidgets import QMessageBox

    from studio.core.text.spoken import spoken
    print(error, file=sys.stderr)
    box = QMessageBox(QMessageBox.Icon.Warning, "Adapter Studio", spoken(error.what))
    box.setInformativeText(spoken(" ".join(part for part in (error.why, error.do) if part)))
    if os.environ.get("QT_QPA_PLATFORM") != "offscreen":
        box.exec()
    return 1


if __name__ == "__main__":
    sys.exit(main())
