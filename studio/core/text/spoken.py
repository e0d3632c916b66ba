"""The engine's own sentences in the person's language: errors, notes, stages, findings.

The engine speaks English and knows no window. Its sentence is the key, as everywhere in this package, with ``{0}``, ``{1}`` … where
values stand (``resources/translations/engine/<language>.json``); what stood there is carried over, and translated too if it is a sentence.
So an error that was written into a job's folder a year ago is German in today's window. A sentence without a translation stays English.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache, partial
from typing import NamedTuple

from engine.store.resources import resource
from studio.core import text

_ENDS = re.compile(r"(?<=[.!?:…])\s+")
MOST = 6                                   # sentences that may belong together
LONGEST, LONGEST_VALUE = 4000, 1000        # letters; longer is no sentence of ours, but what a library or a server said
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+)")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d.,])")


class _Form(NamedTuple):
    pieces: list[str]                      # what stands between the values
    translated: str

    def values(self, said: str) -> list[str] | None:
        """What stands where the values are, each as short as can be; None if the sentence is another one."""
        first, *inner, last = self.pieces
        if not said.startswith(first) or not said.endswith(last):
            return None
        found, begin, end = [], len(first), len(said) - len(last)
        for piece in inner:
            if (at := said.find(piece, begin + 1, end)) < 0:
                return None
            found.append(said[begin:at])
            begin = at + len(piece)
        return [*found, said[begin:end]] if begin < end else None

    def filled(self, values: list[str], language: str) -> str:
        """The translation with these values; columns are called what they are called, though “messages” is a word of ours, too."""
        names = next((n for n, piece in enumerate(self.pieces) if "column" in piece), len(values))
        return self.translated.format(*(value if n >= names else _value(value, language) for n, value in enumerate(values)))


def _table(kind: str, language: str) -> dict[str, str]:
    file = resource("translations") / kind / f"{language}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


@lru_cache(4)
def _forms(language: str) -> tuple[dict[str, str], list[_Form]]:
    """(sentences without values, those with values: the most telling first)."""
    table = _table("engine", language)
    fixed = {english.format(): translated.format() for english, translated in table.items() if "{0}" not in english}
    open_ = sorted((english for english in table if "{0}" in english), key=lambda english: -len(re.sub(r"\{\d\}", "", english)))
    return fixed, [_Form([piece.format() for piece in re.split(r"\{\d\}", english)], table[english]) for english in open_]


def spoken(*said: str) -> str:
    """A sentence of the engine, or several, or part of one, in the language in use. What was said apart is looked for apart."""
    return " ".join(part if len(part) > LONGEST or text.language() == "en" else _spoken(part, text.language()) for part in said if part)


_settings = lru_cache(4)(partial(_table, "settings"))


def spoken_setting(said: str) -> str:
    """What a setting or a method is called, its help, or its unit, in the language in use (``resources/translations/settings``).

    A table of its own: a column or an adapter may be called “Group”, too, and stays as it is called.
    """
    return said if text.language() == "en" else _settings(text.language()).get(said) or spoken(said)


@lru_cache(512)
def _spoken(said: str, language: str) -> str:
    if (whole := _whole(said, language)) is not None:
        return whole
    pieces, done, here = _ENDS.split(said.strip()), [], 0
    while here < len(pieces):              # the longest run of sentences that is known, then on from there
        for end in range(min(len(pieces), here + MOST), here, -1):
            if end - here < len(pieces) and (known := _whole(" ".join(pieces[here:end]), language)) is not None:
                done.append(known)
                here = end
                break
        else:
            done.append(pieces[here])
            here += 1
    return " ".join(done)


def _whole(said: str, language: str) -> str | None:
    fixed, forms = _forms(language)
    if said in fixed:
        return fixed[said]
    found = ((form, values) for form in forms if (values := form.values(said)) is not None)
    spare = None                           # where a value has a colon within, the colon may be that of a form further down
    for form, values in found:
        if not any(": " in value for value in values):
            return form.filled(values, language)
        spare = spare or (form, values)
    return spare[0].filled(spare[1], language) if spare else None


def _value(value: str, language: str) -> str:
    """A name stays as it is, a sentence is translated, a number is written as here."""
    if _NUMBER.fullmatch(value):
        return text.local(value)
    if len(value) <= LONGEST_VALUE and (" " in value or value.isalpha()):
        if (whole := _whole(value, language)) is not None:
            return whole
        if _ENDS.search(value):            # several sentences
            return _spoken(value, language)
        if ", " in value or ". " in value:
            return _THOUSANDS.sub(lambda n: text.local(n[0]), ", ".join(_whole(part, language) or part for part in value.split(", ")))
    return value
