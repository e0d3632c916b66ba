"""Try a built program as a person would: window, training, reloading, answering, export. Run with the Python of the clone:

    .venv/bin/python packaging/smoke.py dist/adapter-studio/adapter-studio
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def try_out(program: Path, folder: Path) -> None:
    """Raises `subprocess.CalledProcessError` or `AssertionError` at the first thing that does not work."""
    from tests.support.tiny import save_base

    save_base(folder / "base")
    rows = [{"question": f"What costs number {n}?", "answer": f"It costs {n} euros."} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    environment = {**os.environ, "ADAPTER_STUDIO_HOME": str(folder / "home"), "QT_QPA_PLATFORM": "offscreen", "HF_HUB_OFFLINE": "1"}

    def run(*words: str) -> str:
        print("  " + " ".join(words[:2]), "…", flush=True)
        done = subprocess.run([str(program), *words], env=environment, capture_output=True, text=True, timeout=600, cwd=folder)
        if done.returncode:
            print(done.stdout[-3000:], done.stderr[-3000:])
        done.check_returncode()
        return done.stdout

    run("--shots", str(folder / "pictures"))
    assert len(list((folder / "pictures").glob("*.png"))) >= 6
    spec = {"kind": "train", "base": str(folder / "base"), "data": str(folder / "rows.jsonl"), "out": str(folder / "adapter"), "passes": 1.0}
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    run("cli", "train", str(folder / "spec.json"))
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    run("cli", "inspect", str(folder / "adapter"))
    export = {"kind": "export", "base": str(folder / "base"), "out": str(folder / "model"), "stack": [{"adapter": str(folder / "adapter")}]}
    (folder / "export.json").write_text(json.dumps(export), encoding="utf-8")
    run("cli", "export", str(folder / "export.json"))
    assert (folder / "model" / "model.safetensors").exists()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        try_out(Path(sys.argv[1]).resolve(), Path(place))
    print("The built program draws its window, teaches, reads back and exports.")
