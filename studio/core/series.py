"""Growing curves that stay cheap to draw: doubling arrays and a min/max pyramid over them.

A window of a million points is answered with at most two points a pixel, in which every peak is
kept. NaN stays NaN: a gap in the curve, never a made-up value.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

FACTOR = 8                                 # points of one level that share a bucket of the next


class _Growing:
    """A float64 array that doubles, so that appending costs the same at a hundred and at a million."""

    def __init__(self):
        self._data, self.count = np.empty(256), 0

    def resize(self, count: int) -> None:
        if count > len(self._data):
            bigger = np.empty(max(count, 2 * len(self._data)))
            bigger[:self.count] = self._data[:self.count]
            self._data = bigger
        self.count = count

    @property
    def view(self) -> np.ndarray:
        return self._data[:self.count]


@dataclass
class _Level:
    low: _Growing = field(default_factory=_Growing)
    high: _Growing = field(default_factory=_Growing)


class Series:
    """One curve: x ascending (steps), y any float. Points never change once written, except by going back to an earlier x."""

    def __init__(self):
        self._x, self._y, self._levels = _Growing(), _Growing(), []

    def __len__(self) -> int:
        return self._x.count

    @property
    def x(self) -> np.ndarray:
        """All x, float64; a view, not a copy."""
        return self._x.view

    @property
    def y(self) -> np.ndarray:
        """All y, float64; a view, not a copy."""
        return self._y.view

    def append(self, x: float, y: float) -> None:
        """Add one point. An x that is not beyond the last one rewrites from there: a resumed run repeats its own past."""
        self.extend([x], [y])

    def extend(self, x, y) -> None:
        """Add points, x strictly ascending among themselves. Raises `ValueError` if they are not, or differ in number."""
        x, y = np.asarray(x, float), np.asarray(y, float)
        if x.shape != y.shape or x.ndim != 1 or np.any(np.diff(x) <= 0):
            raise ValueError("x must ascend and be as long as y")
        if not len(x):
            return
        if len(self) and x[0] <= self._x.view[-1]:
            self.truncate(x[0])
        start = len(self)
        self._x.resize(start + len(x))
        self._y.resize(start + len(y))
        self._x.view[start:], self._y.view[start:] = x, y
        self._rebuild(start)

    def truncate(self, x: float) -> None:
        """Forget every point at or beyond ``x``."""
        keep = int(np.searchsorted(self._x.view, x, "left"))
        self._x.resize(keep)
        self._y.resize(keep)
        self._rebuild(max(0, keep - 1))

    def _rebuild(self, start: int) -> None:
        """Bring the pyramid up to date from point ``start`` on; touches one bucket a level for a single append."""
        low = high = self._y.view
        depth = 0
        while len(low) > FACTOR:
            if depth == len(self._levels):
                self._levels.append(_Level())
                start = 0
            level, first = self._levels[depth], start // FACTOR
            buckets = -(-len(low) // FACTOR)
            level.low.resize(buckets)
            level.high.resize(buckets)
            level.low.view[first:] = _reduce(np.fmin, low[first * FACTOR:])
            level.high.view[first:] = _reduce(np.fmax, high[first * FACTOR:])
            low, high, start, depth = level.low.view, level.high.view, first, depth + 1
        del self._levels[depth:]

    def window(self, left: float, right: float, points: int) -> tuple[np.ndarray, np.ndarray]:
        """What to draw between ``left`` and ``right``: at most about ``2 * points`` points, every extreme among them.

        One neighbour on each side is included, so that lines run to the edge of the picture.
        """
        first = max(0, int(np.searchsorted(self._x.view, left, "left")) - 1)
        last = min(len(self), int(np.searchsorted(self._x.view, right, "right")) + 1)
        if not self._levels or last - first <= 2 * max(points, 1):
            return self._x.view[first:last].copy(), self._y.view[first:last].copy()
        depth = 0
        while (last - first) / FACTOR ** (depth + 1) > points and depth + 1 < len(self._levels):
            depth += 1
        size = FACTOR ** (depth + 1)
        level, begin, end = self._levels[depth], first // size, -(-last // size)
        low, high = level.low.view[begin:end], level.high.view[begin:end]
        x = self._x.view[np.minimum(np.arange(begin, end) * size, len(self) - 1)]
        return np.repeat(x, 2), np.column_stack((low, high)).ravel()

    def thinned(self, points: int) -> tuple[np.ndarray, np.ndarray]:
        """Evenly picked points of a calm curve, the last one among them: at most about ``points``."""
        stride = max(1, -(-len(self) // max(points, 1)))
        picked = np.arange(len(self) - 1, -1, -stride)[::-1]
        return self._x.view[picked], self._y.view[picked]

    def best(self) -> tuple[float, float] | None:
        """(x, y) of the lowest y, the first of equals; None while there is no number."""
        if not len(self) or np.all(np.isnan(self._y.view)):
            return None
        index = int(np.nanargmin(self._y.view))
        return float(self._x.view[index]), float(self._y.view[index])


def _reduce(function: np.ufunc, values: np.ndarray) -> np.ndarray:
    """Reduce groups of FACTOR; a group that is not full yet counts what it has."""
    padded = np.full(-(-len(values) // FACTOR) * FACTOR, np.nan)
    padded[:len(values)] = values
    return function.reduce(padded.reshape(-1, FACTOR), axis=1)


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
        if np.isfinite(y):
            total, weight = self._keep * total + y, self._keep * weight + 1
        self._state.append((total, weight))
        self.series.append(x, total / weight if weight and np.isfinite(y) else np.nan)
