"""One quiet, equal world for every test: no screen, no network, no home of a person, one thread of arithmetic, nothing left behind."""

from __future__ import annotations

import os

os.environ |= {                            # before anything imports torch, Qt or transformers
    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0",
    "QT_SCALE_FACTOR": "1", "QT_FONT_DPI": "96", "QT_ENABLE_HIGHDPI_SCALING": "0", "QT_ACCESSIBILITY": "1"}
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("OMP_NUM_THREADS", "1")
for stranger in ("HF_ENDPOINT", "HF_TOKEN", "QT_STYLE_OVERRIDE", "QT_QPA_PLATFORMTHEME", "XDG_CURRENT_DESKTOP"):
    os.environ.pop(stranger, None)

import hashlib
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

PERSONS_HOME = os.environ.get("ADAPTER_STUDIO_HOME")    # only to save a download: nothing else of it is looked at
GRACE = 5.0                                # seconds that a thread or process may take to end after its test
TOLERATED_THREADS = ("tqdm", "TMonitor", "Dummy-")     # other people's helpers that end with the interpreter
TOLERATED_PROCESSES = ("resource_tracker", "forkserver")


@pytest.fixture(autouse=True)
def studio_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The studio's home of this very test: an empty place that only it writes to."""
    home = tmp_path / "home"
    monkeypatch.setenv("ADAPTER_STUDIO_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def same_chance() -> None:
    """Whatever a test draws by chance, it draws the same every time; UI tests load no torch for it."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory):
    """A tiny base model folder for the whole session. Only to be read: a test that changes it fails the session."""
    from tests.support.tiny import save_base

    folder = save_base(tmp_path_factory.mktemp("shared") / "base")
    before = _digest(folder)
    yield folder
    assert _digest(folder) == before, "a test has changed the shared base_folder"


@pytest.fixture(scope="session")
def starter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real starter model, fetched once a session (or taken from the library of ``ADAPTER_STUDIO_HOME``). Only to be read."""
    from engine.bases.fetch import fetch
    from engine.errors import Unreachable
    from engine.specs import FetchSpec
    from engine.store.home import Home
    from engine.store.runs import RunFolder

    if PERSONS_HOME and (Home(Path(PERSONS_HOME)).starter / "config.json").exists():
        return Home(Path(PERSONS_HOME)).starter
    home = Home(tmp_path_factory.mktemp("starter"))
    spec = FetchSpec(out=str(home.starter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTER_STUDIO_HOME", str(home.root))
        try:
            for _ in fetch(spec, RunFolder.create(home.runs / "fetch", spec)):
                continue
        except Unreachable as error:
            pytest.skip(f"the starter model cannot be had here: {error}")
    return home.starter


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest):
    """No thread and no child process outlives its test (fixtures of a wider scope made theirs before, and are not counted)."""
    threads, children = set(threading.enumerate()), set(psutil.Process().children(recursive=True))
    yield
    until = time.monotonic() + GRACE
    while left := _new_threads(threads) + _new_children(children):
        if time.monotonic() > until:
            pytest.fail(f"left behind after the test: {', '.join(left)}", pytrace=False)
        time.sleep(0.02)


def _new_threads(before: set) -> list[str]:
    return [f"thread {t.name}" for t in set(threading.enumerate()) - before if t.is_alive() and not t.name.startswith(TOLERATED_THREADS)
            and type(t).__name__ not in TOLERATED_THREADS]


def _new_children(before: set) -> list[str]:
    left = []
    for child in set(psutil.Process().children(recursive=True)) - before:
        try:
            words = " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and not any(known in words for known in TOLERATED_PROCESSES):
                left.append(f"process {child.pid} {words[:120]}")
        except psutil.NoSuchProcess:
            continue                       # it ended while we looked
    return left


def _digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(f.name.encode() + f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file())).hexdigest()
