"""What was taught, from the run folders alone: runs, the checkpoints in them, and the files of examples they learned from. No Qt, no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import StudioError
from engine.events import Failed, Finished, Stopped
from engine.specs import TrainSpec
from engine.store.home import Home
from engine.store.library import AdapterInfo, folder_bytes
from engine.store.runs import RunFolder


@dataclass(frozen=True)
class Checkpoint:
    """A state that a training can go on from. ``run`` is its folder."""

    path: Path
    step: int
    bytes: int
    made: float                            # seconds since the epoch
    run: Path


@dataclass(frozen=True)
class Run:
    """One training. ``state`` is one of finished, failed, cancelled, paused, or empty while it has no outcome (it runs, or was killed)."""

    path: Path
    spec: TrainSpec
    state: str
    result: dict
    made: float
    checkpoints: tuple[Checkpoint, ...]    # the newest first

    @property
    def name(self) -> str:
        return Path(self.spec.out).name

    @property
    def bytes(self) -> int:
        """What it takes on the disk, as far as that is worth telling."""
        return sum(checkpoint.bytes for checkpoint in self.checkpoints)


@dataclass(frozen=True)
class DataSet:
    """A file or folder of examples that somebody taught from, or may. ``used_by``: names of adapters and runs."""

    path: Path
    there: bool
    used_by: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.name


def read_run(folder: Path) -> Run | None:
    """The training in a run folder; None for another job, or what cannot be read. Reading is safe while it runs."""
    run = RunFolder(folder)
    try:
        spec, outcome = run.spec(), run.outcome()
        made = (folder / "spec.json").stat().st_mtime
        saved = tuple(filter(None, (_checkpoint(path, folder) for path in sorted(run.checkpoints.glob("step-*"), reverse=True))))
    except (OSError, StudioError, ValueError):
        return None
    if not isinstance(spec, TrainSpec):
        return None
    match outcome:
        case Finished(result=result):
            return Run(folder, spec, "finished", result if isinstance(result, dict) else {}, made, saved)
        case Stopped(reason=reason):
            return Run(folder, spec, "paused" if reason == "pause" else "cancelled", {}, made, saved)
    return Run(folder, spec, "failed" if isinstance(outcome, Failed) else "", {}, made, saved)


def _checkpoint(path: Path, run: Path) -> Checkpoint | None:
    """None for what was dropped for a newer one while it was looked at."""
    try:
        return Checkpoint(path, int(path.name.removeprefix("step-")), folder_bytes(path), path.stat().st_mtime, run)
    except OSError:
        return None


def read_runs(home: Home) -> tuple[Run, ...]:
    """All trainings, the newest first."""
    folders = [entry for entry in home.runs.iterdir() if entry.is_dir()] if home.runs.is_dir() else []
    return tuple(sorted(filter(None, map(read_run, folders)), key=lambda run: -run.made))


def datasets(home: Home, runs: Iterable[Run], adapters: Iterable[AdapterInfo]) -> tuple[DataSet, ...]:
    """What runs and recipes name, what was pasted, and answers that were put right, by name."""
    users: dict[str, dict[str, None]] = {}
    for name, data in [*((run.name, run.spec.data) for run in runs), *((adapter.name, _data(adapter)) for adapter in adapters)]:
        if isinstance(data, str) and data:
            users.setdefault(os.path.normpath(data), {})[name] = None
    for folder in (home.root / "pasted", home.corrections):
        for file in folder.iterdir() if folder.is_dir() else ():
            if file.is_file() and not file.name.startswith("."):
                users.setdefault(os.path.normpath(file), {})
    return tuple(sorted((DataSet(Path(path), Path(path).exists(), tuple(sorted(names))) for path, names in users.items()),
                        key=lambda found: (found.name.casefold(), str(found.path))))


def _data(adapter: AdapterInfo) -> object:
    """It may come from anywhere: looked at before it is believed."""
    spec = adapter.recipe.get("spec")
    return spec.get("data") if isinstance(spec, dict) else None
