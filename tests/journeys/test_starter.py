"""The main job on the real starter model, as a person runs it without a window: teach two skills, mix, export, verify."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.store.home import Home

ROOT = Path(__file__).parents[2]


@pytest.mark.starter
@pytest.mark.xdist_group("starter")
@pytest.mark.timeout(1800)
def test_the_sample_teaches_mixes_exports_and_verifies(starter_folder: Path, tmp_path: Path):
    home = Home(tmp_path / "home").prepare()
    shutil.copytree(starter_folder, home.starter)
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    environment.pop("OMP_NUM_THREADS", None)                   # the tests' own thrift
    done = subprocess.run([sys.executable, "-m", "engine.cli", "sample", "--quick", "--home", str(home.root)], cwd=ROOT, env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((home.runs / "sample-summary.json").read_text(encoding="utf-8"))
    assert summary["passed"] and summary["export"]["verified"]
    for kind, adapter in summary["adapters"].items():
        assert adapter["error_after"] < 0.8 * adapter["error_before"], kind
        assert (Path(adapter["adapter"]) / "recipe.json").is_file()
    assert (Path(summary["export"]["path"]) / "model.safetensors").stat().st_size > 200_000_000
