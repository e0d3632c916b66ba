"""Which rows are held back for testing: decided by their content alone.

A row's SHA-256 is its lot. With enough rows, those whose lot is below ``holdout`` of the range are held back: nothing else in
the file can change that. Where this gives fewer than 8 or more than 200 rows, the lowest lots are taken up to that bound.
Law: adding rows never moves a learned row into the held-out part (but in tiny files, where half of the rows is the bound); equal
rows are always on one side.
"""

from __future__ import annotations

from itertools import groupby

from engine.data.shapes import Row

AT_LEAST, AT_MOST = 8, 200


def held_out(digests: list[str], holdout: float) -> set[int]:
    """Indices of the rows that are never learned: about ``holdout`` of them, 8 to 200, never more than half; none if 0."""
    if holdout <= 0:
        return set()
    below = sum(int(digest[:16], 16) < holdout * 2**64 for digest in digests)
    wanted, half = min(max(below, AT_LEAST), AT_MOST), len(digests) // 2
    order = sorted(range(len(digests)), key=digests.__getitem__)
    chosen: set[int] = set()
    for _, group in groupby(order, key=digests.__getitem__):
        same = list(group)                 # equal rows stay together: one that was learned would be no test
        if len(chosen) >= wanted:
            break
        if len(chosen) + len(same) <= half:
            chosen.update(same)
    return chosen


def split(rows: list[Row], holdout: float) -> tuple[list[Row], list[Row]]:
    """Rows to learn and rows to test with, each in file order."""
    chosen = held_out([row.digest for row in rows], holdout)
    return [r for i, r in enumerate(rows) if i not in chosen], [r for i, r in enumerate(rows) if i in chosen]
