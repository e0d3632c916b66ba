"""A real pointer on a virtual screen drags two adapters from the library into the stack and one row above the other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.store.home import Home
from tests.studio.kit import make_adapter, make_model

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.xvfb, pytest.mark.skipif(not (shutil.which("Xvfb") and shutil.which("xdotool")), reason="needs Xvfb and xdotool")]


@pytest.fixture
def screen():
    """The name of a virtual screen of its own."""
    reading, writing = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(writing), "-screen", "0", "1400x900x24", "-nolisten", "tcp"], pass_fds=[writing],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        number = pipe.readline().strip()
    assert number, "Xvfb did not start"
    yield f":{number}"
    server.terminate()
    server.wait(10)


def test_adapters_are_dragged_into_the_stack_and_sorted(screen, tmp_path):
    home = Home(tmp_path / "home").prepare()
    base = make_model(home)
    for name in ("alpha", "beta"):
        make_adapter(home, base, name)
    environment = os.environ | {"DISPLAY": screen, "QT_QPA_PLATFORM": "xcb"}
    done = subprocess.run([sys.executable, "-m", "tests.journeys.real_drag", str(home.root)], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=90)
    if "could not connect to display" in done.stderr or "xcb" in done.stderr and done.returncode:
        pytest.skip("Qt's libraries for an X screen are missing here")
    assert done.returncode == 0, done.stderr[-2000:]
    assert [entry["name"] for entry in json.loads(done.stdout)["entries"]] == ["beta", "alpha"]
