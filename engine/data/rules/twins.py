"""Rows that say the same: near-duplicates by MinHash, in time that grows with the rows and not with their pairs.

Broder 1997 (resemblance of documents as the Jaccard index of their shingles); bands of minima as in Leskovec, Rajaraman, Ullman,
*Mining of Massive Datasets*, 3.4. Candidates are then compared exactly.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from zlib import crc32

import numpy as np

BANDS, MINIMA = 16, 4                      # a pair of resemblance 0.72 shares a band with probability 0.993, one of 0.4 with 0.34
ALIKE = 0.72                               # resemblance from which on two rows are near-duplicates
_WORD = re.compile(r"\w+")
_draw = np.random.default_rng(20240229)
_A = _draw.integers(1, 1 << 63, BANDS * MINIMA, dtype=np.uint64) | np.uint64(1)
_B = _draw.integers(0, 1 << 63, BANDS * MINIMA, dtype=np.uint64)
_MIX = _draw.integers(1, 1 << 63, MINIMA, dtype=np.uint64) | np.uint64(1)
_NEXT = np.uint64(0x9E3779B97F4A7C15)


def plain_words(text: str) -> list[str]:
    """The words of a text without case, accents' spelling and punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def shingles(words: list[str]) -> np.ndarray:
    """Hashes of all neighbouring pairs of words, each once. uint64 [n ≥ 1]."""
    hashes = np.fromiter((crc32(word.encode()) for word in words), np.uint64, len(words)) if words else np.zeros(1, np.uint64)
    pairs = hashes[:-1] * _NEXT + hashes[1:] if len(hashes) > 1 else hashes
    pairs = (pairs ^ (pairs >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.unique(pairs)


def hashes(words: Iterable[str]) -> np.ndarray:
    """The different words as sorted numbers. uint32 [n]."""
    return np.unique(np.fromiter((crc32(word.encode()) for word in words), np.uint32))


def bands(pairs: np.ndarray) -> np.ndarray:
    """Signature of a row: equal numbers in one place mean probably alike. uint32 [BANDS]."""
    minima = ((pairs[:, None] * _A + _B) >> np.uint64(16)).min(axis=0).reshape(BANDS, MINIMA)
    return ((minima * _MIX).sum(axis=1) >> np.uint64(32)).astype(np.uint32)


def candidates(signatures: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of places in ``signatures`` [n, BANDS] that share a band: each with the first of its band and with its neighbour there."""
    found: set[tuple[int, int]] = set()
    for band in range(signatures.shape[1]):
        order = np.argsort(signatures[:, band], kind="stable")
        sorted_ = signatures[order, band]
        edges = np.flatnonzero(np.r_[True, sorted_[1:] != sorted_[:-1], True])
        for start, end in zip(edges[:-1][np.diff(edges) > 1], edges[1:][np.diff(edges) > 1]):
            group = order[start:end].tolist()
            found.update((group[0], other) for other in group[1:])
            found.update(zip(group, group[1:]))
    return sorted(found)


def resemblance(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard index of two sets of shingles."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)


def numbers(words: list[str]) -> list[str]:
    """What must be the same in two texts that say the same: everything with a digit."""
    return sorted(word for word in words if any(map(str.isdigit, word)))


def groups(pairs: list[tuple[int, int]]) -> list[list[int]]:
    """Rows that hang together by pairs, each group in order."""
    parent: dict[int, int] = {}

    def root(a: int) -> int:
        while parent.setdefault(a, a) != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        return a
    for a, b in pairs:
        parent[max(root(a), root(b))] = min(root(a), root(b))
    found: dict[int, list[int]] = {}
    for a in sorted(parent):
        found.setdefault(root(a), []).append(a)
    return list(found.values())
