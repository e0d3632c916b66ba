"""How an adapter was made: ``recipe.json`` beside its weights, written by training, completed by reviews."""

from __future__ import annotations

from pathlib import Path

from engine.errors import BadAdapter
from engine.specs import TrainSpec
from engine.store.atomic import write_json
from engine.store.library import read_json

NAME = "recipe.json"


def read_recipe(adapter: Path | str) -> dict:
    """The recipe of an adapter folder. Raises `BadAdapter` if there is none that can be followed."""
    adapter = Path(adapter)
    missing = BadAdapter(f"The adapter “{adapter.name}” does not say how it was taught.", "It was not taught in this studio, or its recipe is lost.",
                         "Teach it again here to compare or to rebuild it.", path=str(adapter))
    if not (adapter / NAME).exists():
        raise missing
    recipe = read_json(adapter / NAME, BadAdapter)
    if not isinstance(recipe.get("spec"), dict) or not isinstance(recipe.get("result"), dict):
        raise missing
    return recipe


def plan_of(recipe: dict) -> TrainSpec:
    """The training plan in a recipe. Raises `InvalidSpec`."""
    return TrainSpec.from_dict(recipe["spec"]).check()


def add_to_recipe(adapter: Path | str, **entries: object) -> None:
    """Write more into a recipe, whole or not at all."""
    recipe = read_recipe(adapter)
    write_json(Path(adapter) / NAME, {**recipe, **entries})
