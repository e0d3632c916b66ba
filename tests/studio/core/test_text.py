"""Every sentence can be said, and every translation fills the same places."""

from __future__ import annotations

import importlib
import json
import pkgutil
import string

import pytest

from engine.store.resources import resource
from studio.core import text
from studio.core.text import Counted, Phrase, frame


def phrases() -> dict[str, set[str]]:
    """Each English sentence of all modules with the names it needs."""
    found: dict[str, set[str]] = {}

    def collect(value: object) -> None:
        for english in ([value.english] if isinstance(value, Phrase) else [value.one, value.many] if isinstance(value, Counted) else []):
            found[english] = {name for _, name, _, _ in string.Formatter().parse(english) if name}
        if isinstance(value, dict):
            for inner in value.values():
                collect(inner)
        if isinstance(value, (tuple, list)):
            for inner in value:
                collect(inner)
    for module in pkgutil.iter_modules(text.__path__):
        for value in vars(importlib.import_module(f"studio.core.text.{module.name}")).values():
            collect(value)
    return found


@pytest.fixture
def english():
    yield
    text.use("en")


@pytest.mark.parametrize("language", [code for code in text.languages() if code != "en"])
def test_translations_fill_the_same_places(language):
    table, known = json.loads((resource("translations") / f"{language}.json").read_text(encoding="utf-8")), phrases()
    for english, translated in table.items():
        assert english in known, f"{language}.json translates a sentence that nobody says: {english!r}"
        assert {name for _, name, _, _ in string.Formatter().parse(translated) if name} <= known[english] | {"n"}, translated
        assert translated.strip(), english


def test_german_covers_the_whole_frame(english):
    said = {v.english for v in vars(frame).values() if isinstance(v, Phrase)} | {w for v in vars(frame).values() if isinstance(v, Counted)
                                                                                 for w in (v.one, v.many)}
    table = json.loads((resource("translations") / "de.json").read_text(encoding="utf-8"))
    assert said - set(table) == set()
    text.use("de")
    assert frame.undo() == "Rückgängig"
    assert frame.places(1) == "1 Stelle" and frame.places(3) == "3 Stellen"


def test_an_unknown_language_is_english(english):
    text.use("xx")
    assert frame.undo() == "Undo"


def test_a_wrong_name_cannot_pass():
    with pytest.raises(KeyError):
        frame.moved(nam="a", place=1, count=2)


@pytest.mark.parametrize("number, said", [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (269_000_000, "269 MB"), (1.2e12, "1.2 TB")])
def test_sizes(number, said):
    assert frame.size(number) == said


@pytest.mark.parametrize("seconds, said", [(5, "less than a minute left"), (60, "about 1 minute left"), (840, "about 14 minutes left"),
                                           (7500, "about 2 h 5 min left")])
def test_times(seconds, said):
    assert frame.time_left(seconds) == said
