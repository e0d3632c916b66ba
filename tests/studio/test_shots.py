"""Pictures of every panel without a screen, and what the program says when it cannot open."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from PySide6.QtCore import QEvent
from PySide6.QtGui import QColor, QImage
from PySide6.QtWidgets import QApplication

from engine.store.home import Home
from studio import shots
from studio.frame_actions import WORKSPACES
from studio.views import theme
from tests.studio.kit import FakeTalk, make_adapter, make_model


@pytest.fixture
def home(tmp_path) -> Home:
    made = Home(tmp_path / "home").prepare()
    make_adapter(made, make_model(made))
    return made


def test_every_panel_in_both_themes(qapp, qtbot, home, tmp_path, monkeypatch):
    monkeypatch.setattr(shots, "SETTLE", 10)
    monkeypatch.setattr(qapp, "quit", list)
    home.settings.write_text('{"version": 1, "theme": "contrast"}')
    files = shots.take(qapp, home, tmp_path / "out", talk=FakeTalk())
    assert sorted(f.name for f in files) == sorted(f"{key}-{mode}.png" for key in WORKSPACES for mode in ("light", "dark"))
    for file in files:
        image, tokens = QImage(str(file)), theme.DARK if "dark" in file.name else theme.LIGHT
        assert (image.width(), image.height()) == shots.SIZE
        assert QColor(image.pixelColor(3, image.height() // 2)).name() == tokens.window
    assert len({file.read_bytes() for file in files}) == len(files)
    assert home.settings.read_text() == '{"version": 1, "theme": "contrast"}'
    QApplication.processEvents()
    for widget in QApplication.topLevelWidgets():
        widget.deleteLater()
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    theme.apply(qapp, "light")


def test_a_home_that_cannot_be_used_is_told_in_words(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = subprocess.run([sys.executable, "-m", "studio", "--home", str(tmp_path / "file" / "home")], capture_output=True, text=True,
                          env=os.environ | {"QT_QPA_PLATFORM": "offscreen"}, timeout=60)
    assert done.returncode == 1
    assert "cannot be used" in done.stderr and "Traceback" not in done.stderr
