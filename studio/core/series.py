"""Growing curves that stay cheap to draw: a min/max pyramid over their points.

A window of a million points is answered with at most two points a pixel, in which every peak is
kept. NaN stays NaN: a gap in the curve, never a made-up value.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

FACTOR = 8                                 # points of one level that share a bucket of the next
Points = tuple[Sequence[float], Sequence[float]]


class Series:
    """One curve: x ascending (steps), y any float. Points never change once written, except by going back to an earlier x."""

    def __init__(self):
        self.x, self.y = array("d"), array("d")
        self._levels: list[tuple[array, array]] = []           # lowest and highest of each bucket; each level over the one before

    def __len__(self) -> int:
        return len(self.x)

    def append(self, x: float, y: float) -> None:
        """Add one point. An x that is not beyond the last one rewrites from there: a resumed run repeats its own past."""
        self.extend([x], [y])

    def extend(self, x: Iterable[float], y: Iterable[float]) -> None:
        """Add points, x strictly ascending among themselves. Raises `ValueError` if they are not, or differ in number."""
        x, y = array("d", x), array("d", y)
        if len(x) != len(y) or any(later <= sooner for sooner, later in zip(x, x[1:])):
            raise ValueError("x must ascend and be as long as y")
        if not len(x):
            return
        if len(self) and x[0] <= self.x[-1]:
            self.truncate(x[0])
        start = len(self)
        self.x.extend(x)
        self.y.extend(y)
        self._rebuild(start)

    def truncate(self, x: float) -> None:
        """Forget every point at or beyond ``x``."""
        keep = bisect_left(self.x, x)
        del self.x[keep:], self.y[keep:]
        self._rebuild(max(0, keep - 1))

    def _rebuild(self, start: int) -> None:
        """Bring the pyramid up to date from point ``start`` on; touches one bucket a level for a single append."""
        below, depth = (self.y, self.y), 0
        while len(below[0]) > FACTOR:
            if depth == len(self._levels):
                self._levels.append((array("d"), array("d")))
                start = 0
            start //= FACTOR
            for level, points, extreme in zip(self._levels[depth], below, (min, max)):
                del level[start:]
                level.extend(_of(extreme, points[at:at + FACTOR]) for at in range(start * FACTOR, len(points), FACTOR))
            below, depth = self._levels[depth], depth + 1
        del self._levels[depth:]

    def window(self, left: float, right: float, points: int) -> Points:
        """What to draw between ``left`` and ``right``: at most about ``2 * points`` points, every extreme among them.

        One neighbour on each side is included, so that lines run to the edge of the picture.
        """
        first = max(0, bisect_left(self.x, left) - 1)
        last = min(len(self), bisect_right(self.x, right) + 1)
        if not self._levels or last - first <= 2 * max(points, 1):
            return self.x[first:last], self.y[first:last]
        depth = 0
        while (last - first) / FACTOR ** (depth + 1) > points and depth + 1 < len(self._levels):
            depth += 1
        size, (low, high) = FACTOR ** (depth + 1), self._levels[depth]
        buckets = range(first // size, -(-last // size))
        return [self.x[bucket * size] for bucket in buckets for _ in (0, 1)], [level[bucket] for bucket in buckets for level in (low, high)]

    def thinned(self, points: int) -> Points:
        """Evenly picked points of a calm curve, the last one among them: at most about ``points``."""
        stride = max(1, -(-len(self) // max(points, 1)))
        first = (len(self) - 1) % stride
        return self.x[first::stride], self.y[first::stride]

    def best(self) -> tuple[float, float] | None:
        """(x, y) of the lowest y, the first of equals; None while there is no number."""
        lowest = _of(min, self.y)
        return None if math.isnan(lowest) else (self.x[self.y.index(lowest)], lowest)


def _of(extreme, values: Iterable[float]) -> float:
    """The lowest or highest number; NaN if there is none."""
    return extreme((value for value in values if value == value), default=math.nan)


class Smooth:
    """A running mean that starts unbiased: the calm line over a noisy curve. Follows rewinds of its source."""

    def __init__(self, keep: float = 0.8):
        self.series, self._keep, self._state = Series(), keep, []

    def append(self, x: float, y: float) -> None:
        """Add the next raw point; a number that is none leaves the mean as it was and the curve with a gap."""
        while len(self.series) and self.series.x[-1] >= x:
            self.series.truncate(self.series.x[-1])
            self._state.pop()
        total, weight = self._state[-1] if self._state else (0.0, 0.0)
        if math.isfinite(y):
            total, weight = self._keep * total + y, self._keep * weight + 1
        self._state.append((total, weight))
        self.series.append(x, total / weight if weight and math.isfinite(y) else math.nan)
