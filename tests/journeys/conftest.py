"""A real studio with its real child processes, over a fresh home that holds a tiny base."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PySide6.QtTest import QTest

from engine.store.home import Home
from studio.app import open_studio

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The tiny base, made in another process: the window's process stays without torch."""
    folder = tmp_path_factory.mktemp("models") / "Tiny-Instruct"
    subprocess.run([sys.executable, "-c", "import sys; from tests.support.tiny import save_base; save_base(sys.argv[1])", str(folder)],
                   cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    return folder


@pytest.fixture
def studio(base, tmp_path, monkeypatch, qapp, qtbot):
    """A real studio over a fresh home that holds the tiny base."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ADAPTER_STUDIO_NICE", "0")
    home = Home(tmp_path / "home").prepare()
    os.symlink(base, home.models / base.name, target_is_directory=True)
    opened = open_studio(home, app=qapp)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(opened.app, "quit", lambda: None, raising=False)
    opened.show()
    opened.settle(at_once=True)
    opened.window.resize(1280, 860)
    opened.window.activateWindow()
    QTest.qWaitForWindowExposed(opened.window)
    yield opened
    ended = []
    opened._closed_behind.connect(lambda: ended.append(True))
    opened.window.close()
    qtbot.waitUntil(lambda: bool(ended), timeout=60_000)
    qapp.processEvents()
    opened.window.deleteLater()
    opened.deleteLater()
    qapp.processEvents()
