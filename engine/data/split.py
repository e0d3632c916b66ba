"""Which rows are held back for testing: decided by their content alone.

A row's SHA-256 is its lot. With enough rows, those whose lot is below ``holdout`` of the range are held back: nothing else in
the file can change that. Where this gives fewer than 8 or more than 200 rows, the lowest lots are taken up to that bound.
Law: adding rows never moves a learned row into the held-out part (but in tiny files, where half of the rows is the bound); equal
rows are always on one side.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import groupby

from engine.data.rows import Row, Rows

AT_LEAST, AT_MOST = 8, 200


def held_out(digests: Sequence[str], holdout: float) -> set[int]:
    """Indices of the rows that are never learned: about ``holdout`` of them, 8 to 200, never more than half; none if 0.

    ``digests``: hexadecimal, of at least 16 digits. Holds a few hundred of them at a time, however many there are.
    """
    if holdout <= 0:
        return set()
    below = sum(int(digest[:16], 16) < holdout * 2**64 for digest in digests)
    wanted, half = min(max(below, AT_LEAST), AT_MOST), len(digests) // 2
    looked_at = 4 * AT_MOST
    while True:                            # the lowest lots are enough, unless many rows are equal
        chosen = _lowest(digests, wanted, half, looked_at)
        if len(chosen) >= wanted or looked_at >= len(digests):
            return chosen
        looked_at *= 8


def _lowest(digests: Sequence[str], wanted: int, half: int, looked_at: int) -> set[int]:
    """Of the ``looked_at`` lowest lots, group by group of equal rows, as many as are wanted. An unfinished last group is left out."""
    order = heapq.nsmallest(looked_at, range(len(digests)), key=digests.__getitem__)
    chosen: set[int] = set()
    for _, group in groupby(order, key=digests.__getitem__):
        same = list(group)                 # equal rows stay together: one that was learned would be no test
        if len(chosen) >= wanted or same[-1] == order[-1] and looked_at < len(digests):
            break
        if len(chosen) + len(same) <= half:
            chosen.update(same)
    return chosen


def split(rows: Sequence[Row], holdout: float) -> tuple[Sequence[Row], Sequence[Row]]:
    """Rows to learn and rows to test with, each in file order; of `Rows` two that are read when they are needed."""
    if isinstance(rows, Rows):
        chosen = held_out(rows.keys, holdout)
        return rows.pick(n for n in range(len(rows)) if n not in chosen), rows.pick(chosen)
    chosen = held_out([row.digest for row in rows], holdout)
    return [r for i, r in enumerate(rows) if i not in chosen], [r for i, r in enumerate(rows) if i in chosen]
