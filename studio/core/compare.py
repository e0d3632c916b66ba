"""Where two answers differ, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

ALIKE = 0.25                               # with a smaller share of common words, marking would mark everything

Pieces = list[tuple[str, bool]]            # (text, differs); joined they are the answer again


def differing(first: str, second: str) -> tuple[Pieces, Pieces]:
    """Both texts in pieces. Answers that share hardly a word, or are equal, come back in one unmarked piece."""
    a, b = _words(first), _words(second)
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    if first == second or not _alike(matcher, a, b):
        return [(first, False)], [(second, False)]
    left: Pieces = []
    right: Pieces = []
    for kind, a0, a1, b0, b1 in matcher.get_opcodes():
        for pieces, words in ((left, a[a0:a1]), (right, b[b0:b1])):
            if words:
                pieces.append(("".join(words), kind != "equal"))
    return left, right


def _alike(matcher: SequenceMatcher, a: list[str], b: list[str]) -> bool:
    common = sum(len(word.strip()) > 0 for block in matcher.get_matching_blocks() for word in a[block.a:block.a + block.size])
    return common >= ALIKE * max(1, max(sum(map(_solid, a)), sum(map(_solid, b))))


def _solid(word: str) -> bool:
    return bool(word.strip())


def _words(text: str) -> list[str]:
    """Words with the blanks before them, so that nothing is lost."""
    return re.findall(r"\s*\S+|\s+$", text)
