"""Every sentence a person reads stands in a module of this package as a named `Phrase` or `Counted`.

    undo = Phrase("Undo")                          # text.frame.undo() -> "Undo"
    moved = Phrase("{name}, position {place}")     # text.frame.moved(name="Chef", place=2)
    adapters = Counted("{n} adapter", "{n} adapters")   # text.frame.adapters(3) -> "3 adapters"

A missing or misnamed value raises `KeyError`, so a wrong call cannot reach a person unseen. The English sentence is the key
of its translation (``resources/translations/<language>.json``); where there is none, English is shown. So are the signs of a number:
"1,234.5" is "1.234,5" in German. Numbers among the values are written so by themselves. No Qt here.
"""

from __future__ import annotations

import json

from engine.store.resources import resource

_table: dict[str, str] = {}
_language = "en"


def languages() -> list[str]:
    """Codes of the languages that can be chosen, English first."""
    return ["en", *sorted(file.stem for file in resource("translations").glob("*.json"))]


def use(language: str) -> None:
    """Speak this language from now on; panels that stand already keep their words until they are built anew."""
    global _language
    file = resource("translations") / f"{language}.json"
    _language = language if file.exists() else "en"
    _table.clear()
    if language != "en" and file.exists():
        _table.update(json.loads(file.read_text(encoding="utf-8")))


def language() -> str:
    """The language in use."""
    return _language


def number(value: float, digits: int | None = None) -> str:
    """A number as the language writes it, with so many digits behind the point, or as many as it has (six figures at most)."""
    return local(f"{value:,}" if isinstance(value, int) and not digits else f"{value:,.6g}" if digits is None else f"{value:,.{digits}f}")


def local(plain: str) -> str:
    """ "1,234.5" with the signs of the language."""
    signs = NUMBER()
    return plain.translate({ord(","): signs[1], ord("."): signs[-2]})


def _written(values: dict[str, object]) -> dict[str, object]:
    return {name: number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value for name, value in values.items()}


class Phrase:
    """One sentence; ``{names}`` in it are filled by keyword."""

    def __init__(self, english: str):
        self.english = english

    def __call__(self, **values: object) -> str:
        return _table.get(self.english, self.english).format_map(_written(values))


NUMBER = Phrase("1,234.5")


class Counted:
    """A sentence about ``n`` things, in the singular and the plural. ``shown`` replaces the digits of n."""

    def __init__(self, one: str, many: str):
        self.one, self.many = one, many

    def __call__(self, n: float, shown: str = "", **values: object) -> str:
        english = self.one if n == 1 else self.many
        return _table.get(english, english).format_map(_written({"n": shown or n, **values}))
