"""`install_as_peft`: the cases beside this file, in one process where `peft` is this engine; and where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.engine.compat.conftest import INSIDE

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, INSIDE: "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_all_cases_in_the_place_of_peft():
    done = run("-m", "pytest", "tests/engine/compat/cases", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_what_is_in_use_is_not_exchanged():
    script = ("import sys, types; sys.modules['peft'] = types.ModuleType('peft')\n"
              "from engine.compat import install_as_peft\n"
              "try:\n    install_as_peft()\nexcept RuntimeError as error:\n    assert 'in use already' in str(error)\nelse:\n    sys.exit(1)")
    done = run("-c", script)
    assert done.returncode == 0, done.stderr
