"""Answers that say nothing, or break off."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable

_NOTHING = frozenset("n/a na none null nil nan tbd todo - – — . … ... ? ?? ??? x xx xxx k.a. k. a. keine angabe leer empty siehe oben see above "
                     "undefined [deleted] [removed] #n/a #nv #ref! #wert! #value! néant".split()
                     + ["k. a.", "keine angabe", "keine antwort", "siehe oben", "see above", "no answer", "voir ci-dessus", "sans réponse",
                        "aucune réponse", "pas de réponse", "ver arriba", "sin respuesta", "vedi sopra", "nessuna risposta"])
_ENDS = ".!?…)]}\"'”“’‘»«›`*_~>:;|。！？」』）"
_OPEN = {"(": ")", "[": "]", "{": "}", "„": "“", "“": "”", "«": "»"}
_GOES_ON = re.compile(r"(?:[,;:–—-]|(?:^|\s)(?:and|or|the|a|an|of|to|with|for|in|but|that|und|oder|der|die|das|ein|eine|mit|für|von|zu|aber|dass|"
                      r"et|ou|le|la|les|un|une|de|du|avec|pour|mais|que))$", re.IGNORECASE)
_SENTENCE_BEFORE = re.compile(r"[a-zà-ÿ]{3}[.!?…]\s+\S")
FINISHED = 0.8                             # part of the answers that must end with a sign before one without is odd


def says_nothing(answer: str) -> bool:
    """Whether an answer is a placeholder, or has no visible letter at all."""
    plain = answer.strip().casefold()
    return plain in _NOTHING or not any(unicodedata.category(c)[0] in "LNS" for c in plain)


def is_finished(text: str) -> bool:
    """Whether a text ends as texts end: with a sign, a symbol (an emoji), or as code."""
    end = text.rstrip()[-1:]
    return end in _ENDS or unicodedata.category(end or ".")[0] in "SP" and end not in ",-–—(" or "```" in text


def breaks_off(text: str, finished: float, longest: Counter, lengths: int, fragment: Callable[[str], bool] = lambda word: False) -> bool:
    """Whether an answer was cut.

    Args:
        finished: part of the file's long answers that `is_finished`. longest: length → how many unfinished answers have it.
        lengths: number of answers in the file. fragment: whether a word is only the beginning of one that the file has elsewhere.
    """
    text = text.rstrip()
    if text.count("```") % 2:
        return True
    if len(text) < 20 or is_finished(text):
        return False
    if longest[len(text)] >= 3 and len(text) >= 100:       # several stop at the same letter: a cell was too small
        return True
    words = text.split()
    if _GOES_ON.search(text[-12:]) or len(words) >= 4 and (_unclosed(text) or fragment(words[-1].casefold())):
        return True                        # a few words without a full stop are a note, not a sentence
    return finished >= FINISHED and lengths >= 10 and (len(words) >= 8 or bool(_SENTENCE_BEFORE.search(text)))


def _unclosed(text: str) -> bool:
    return any(text.count(a) > text.count(b) for a, b in _OPEN.items())
