"""Every sentence can be said, and every translation fills the same places."""

from __future__ import annotations

import importlib
import json
import pkgutil
import string

import pytest

from engine.store.resources import resource
from studio.core import text
from studio.core.text import Counted, Phrase, amounts, frame


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
    for module in (text, *(importlib.import_module(f"studio.core.text.{module.name}") for module in pkgutil.iter_modules(text.__path__))):
        for value in vars(module).values():
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


@pytest.mark.parametrize("bytes, said", [(0, "0 kB"), (999, "1 kB"), (1500, "2 kB"), (12_340_000, "12.3 MB"), (269_000_000, "269 MB"),
                                         (999_900_000, "1.0 GB"), (1.2e12, "1.2 TB")])
def test_sizes(bytes, said):
    assert amounts.size(bytes) == said


@pytest.mark.parametrize("things, said", [(7, "7"), (1_234, "1.2 k"), (134_500_000, "134 M"), (999_600_000, "1.0 B"), (1_711_000_000, "1.7 B")])
def test_counts(things, said):
    assert amounts.count(things) == said


def test_numbers_are_written_as_the_language_does(english):
    """In every sentence by itself, and in amounts; English is the key of the signs, too."""
    moved = lambda: frame.moved(name="a", place=1234, count=2_000_000)         # noqa: E731
    assert "1,234" in moved() and text.number(1234.5) == "1,234.5" and text.number(0.00038) == "0.00038" and text.number(7.0) == "7"
    text.use("de")
    assert "1.234" in moved() and "2.000.000" in moved()
    assert (text.number(1234.5), text.number(2.5, 2), text.number(1234, 1), text.number(0.00038)) == ("1.234,5", "2,50", "1.234,0", "0,00038")
    assert amounts.size(1.9e9) == "1,9 GB" and amounts.percent(0.1234, 1) == "12,3 %" and amounts.seconds(0.84) == "0,8 s"
    assert amounts.count(1.7e9) == "1,7 Mrd."
