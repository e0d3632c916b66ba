"""What the window says of a method and of its settings has a German word, and no German word is left over."""

import json

from engine.methods import registry
from engine.specs import TrainSpec, describe_fields
from engine.store.resources import resource

PARTS = ("label", "help", "unit")


def test_every_setting_of_every_method_has_its_german_words():
    engine, settings = (json.loads((resource("translations") / kind / "de.json").read_text(encoding="utf-8")) for kind in ("engine", "settings"))
    methods = [method for method in registry.describe().methods if method["peft_type"] in registry._BUILT_IN]     # other people's have their own
    said = {method["help"] for method in methods} | {field[part] for method in methods for field in method["fields"] for part in PARTS}
    said |= {field[part] for field in describe_fields(TrainSpec) for part in PARTS}
    assert len(said) > 400 and not said - {"", None} - settings.keys() - engine.keys()
    assert not settings.keys() - said
    assert not [english for english, german in settings.items() if not german.strip() or german.endswith(".") != english.endswith(".")]
