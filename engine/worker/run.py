"""From a spec to the generator that carries it out, the same for worker, command line and tests."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from collections.abc import Callable, Iterator

from engine.errors import InvalidSpec
from engine.events import Event
from engine.specs import Spec
from engine.store.record import Job, record
from engine.store.runs import RunFolder

JOBS: dict[str, str | Job] = {
    "train": "engine.train.train", "review": "engine.train.review.review", "rebuild": "engine.train.rebuild.rebuild",
    "find-speed": "engine.train.finder.find_speed",
    "export": "engine.export.export", "fetch": "engine.bases.fetch"}


def run_job(spec: Spec, run: RunFolder) -> Iterator[Event]:
    """Carry out ``spec`` in its run folder; yields its events, the last one final. Failures are events, not exceptions.

    Raises `InvalidSpec` for a spec that is no job, `Busy` when another process works in this folder.
    """
    if spec.kind not in JOBS:
        raise InvalidSpec(f"“{spec.kind}” is not a job.", do=f"Jobs are {', '.join(JOBS)}.")
    return record(lambda spec, run: resolve(JOBS[spec.kind])(spec.check(), run), spec, run)


def resolve(where: str | Callable) -> Callable:
    """The function of a dotted name, imported now; ``package.name`` may also be the function ``name`` in a module of that name."""
    if not isinstance(where, str):
        return where
    parent, name = where.rsplit(".", 1)
    found = getattr(import_module(parent), name, None)
    return getattr(import_module(where), name) if found is None or isinstance(found, ModuleType) else found
