"""Teach an adapter again from its own recipe, and say whether it came out the same. A job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from engine.events import Event, Finished, Note
from engine.specs import RebuildSpec
from engine.store.atomic import write_json
from engine.store.recipe import plan_of, read_recipe
from engine.store.runs import RunFolder
from engine.train import train
from engine.train.course import FILE as COURSE
from engine.train.finish import versions


def rebuild(spec: RebuildSpec, run: RunFolder) -> Iterator[Event]:
    """Train with the recipe's plan, number format and turns on the way; events and errors as of `engine.train.loop.train`.

    ``Finished.result`` has two entries more: identical (whether the weights file is the same to the byte) and original (the folder).
    Raises `BadAdapter` if the adapter has no recipe.
    """
    recipe = read_recipe(spec.check().adapter)
    if not (run.path / "precision.json").exists():
        write_json(run.path / COURSE, recipe.get("course", []))
        write_json(run.path / "precision.json", recipe["precision"])       # measured anew, it might come out differently
    if others := [f"{name} {old} then, {versions()[name]} now" for name, old in recipe.get("versions", {}).items() if versions().get(name) != old]:
        yield Note(f"The file may differ in its last digits: {'; '.join(others)}.", "warning")
    for event in train(replace(plan_of(recipe), out=spec.out), run):
        if isinstance(event, Finished):
            same = event.result["fingerprint"] == recipe["result"]["fingerprint"]
            yield Note(f"The second “{Path(spec.adapter).name}” is {'the same to the last byte' if same else 'not the same file'}.",
                       "info" if same else "warning")
            event = Finished({**event.result, "identical": same, "original": spec.adapter})
        yield event
