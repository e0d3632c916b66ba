"""Rows that are read when they are needed: an index of a few bytes a row stands for files of any size.

Eight bytes a row (the beginning of its SHA-256: its name and its lot for the split) and every 64th row's place in its file are
all that is held. Rows are never copied elsewhere; edits are applied as they are read.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from engine.data.table import Mark, Table

STRIDE = 64
KEY = 8                                    # bytes of a row's hash that name it


@dataclass(frozen=True)
class Row:
    """One example as chat messages; ``line`` is where it stands in its file, ``key`` the name of the row as it stands in the file."""

    messages: tuple[dict, ...]
    line: int
    key: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the content: the row's identity, wherever it stands."""
        return hashlib.sha256(json.dumps(self.messages, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


Watch = Callable[..., None]                # (stage, done, total = 0); see `engine.worker.talk`


def unwatched(stage: str, done: float, total: float = 0) -> None:
    """Nobody watches."""


class LeftOut(Exception):
    """Why one record is not a row; the text completes "3 rows were left out because …"."""


@dataclass
class Part:
    """One table and how its records become messages."""

    table: Table
    convert: Callable[[dict], list[dict]]
    shape: str = ""
    noun: str = ""
    roles: dict[str, str] = field(default_factory=dict)
    guessed: bool = False                  # what the columns mean was told from what stands in them
    rows: int = 0
    reasons: Counter = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)     # reason → line where it was met first

    def walk(self, mark: Mark, count: bool = False) -> Iterator[tuple[Mark, Row]]:
        """The usable rows from a mark on; ``count`` notes why others are left out."""
        for here, line, record in self.table.walk(mark):
            try:
                yield here, Row(tuple(self.convert(record)), line)
            except LeftOut as reason:
                if count:
                    self.reasons[str(reason)] += 1
                    self.first.setdefault(str(reason), line)

    def notes(self) -> list[str]:
        return self.table.notes + [f"{count} {'row was' if count == 1 else 'rows were'} left out because {reason} (first: line {self.first[reason]})."
                                   for reason, count in self.reasons.most_common()]


class Index:
    """All usable rows of some tables by number, or the first ``most`` of them (``whole``: there are no others). Reads every table once.

    ``watch(stage, rows)`` is told now and then and may raise; meanwhile each part's ``rows`` are those read so far.
    """

    def __init__(self, parts: list[Part], watch: Watch = unwatched, most: int = 0):
        self.parts, self.keys, self.whole = parts, bytearray(), True
        self._at, self._marks = array("q"), array("q")       # row number; part, place, line
        whole, number = hashlib.sha256(), 0
        for n, part in enumerate(parts):
            begin = number
            for mark, row in part.walk(part.table.start, count=True) if self.whole else ():
                if most and number == most:
                    self.whole = False
                    break
                if (number - begin) % STRIDE == 0:
                    self._at.append(number)
                    self._marks.extend((n, *mark))
                digest = row.digest
                whole.update(digest.encode())
                self.keys += bytes.fromhex(digest[:2 * KEY])
                number += 1
                if number % 1000 == 0:
                    part.rows = number - begin
                    watch("Reading the examples", number)
            part.rows = number - begin
        self.digest = whole.hexdigest()

    def __len__(self) -> int:
        return len(self.keys) // KEY

    def key(self, number: int) -> str:
        return self.keys[number * KEY:(number + 1) * KEY].hex()

    def walk(self, number: int = 0) -> Iterator[Row]:
        """Rows from a number on."""
        if not 0 <= number < len(self):
            return
        at = bisect_right(self._at, number) - 1
        part, place, line = self._marks[3 * at:3 * at + 3]
        skip, number = number - self._at[at], self._at[at]
        for n in range(part, len(self.parts)):
            table = self.parts[n].table
            for _, row in self.parts[n].walk((place, line) if n == part else table.start):
                if skip:
                    skip -= 1
                else:
                    yield Row(row.messages, row.line, self.key(number))
                number += 1

    def row(self, number: int) -> Row:
        return next(self.walk(number))


class Rows(Sequence):
    """The rows of an index that were not dropped, as edits leave them. Walking reads the files; nothing is held."""

    def __init__(self, index: Index, chosen: array | None = None, change: Callable[[Row], Row] | None = None):
        self._index, self._chosen, self._change = index, chosen, change

    def __len__(self) -> int:
        return len(self._index) if self._chosen is None else len(self._chosen)

    def __iter__(self) -> Iterator[Row]:
        return self.from_(0)

    def from_(self, place: int) -> Iterator[Row]:
        """Rows from a place on, in order."""
        if place >= len(self):
            return iter(())
        if self._chosen is None:
            rows = self._index.walk(place)
        else:
            rows = self._picked(place)
        return rows if self._change is None else map(self._change, rows)

    def _picked(self, place: int) -> Iterator[Row]:
        """Chosen rows: one walk, but a leap over more than a stride is a new one."""
        here, walk = -1, iter(())
        for number in islice(self._chosen, place, None):
            if here < 0 or number - here > 4 * STRIDE:
                walk, here = self._index.walk(number), number
            for _ in range(number - here):
                next(walk)
            here = number + 1
            yield next(walk)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[n] for n in range(*place.indices(len(self)))]
        if place < 0:
            place += len(self)
        if not 0 <= place < len(self):
            raise IndexError(place)
        row = self._index.row(self.number(place))
        return row if self._change is None else self._change(row)

    def number(self, place: int) -> int:
        """The row's number in the files."""
        return place if self._chosen is None else self._chosen[place]

    def key(self, place: int) -> str:
        """The name of a row, without reading it."""
        return self._index.key(self.number(place))

    @property
    def keys(self) -> "Keys":
        return Keys(self)

    def different(self) -> int:
        """How many rows are left if each is counted once."""
        names = np.frombuffer(self._index.keys, np.uint64)
        return len(np.unique(names if self._chosen is None else names[np.frombuffer(self._chosen, np.int64)]))

    def pick(self, places: Iterable[int]) -> "Rows":
        """Only these, in order."""
        return Rows(self._index, array("q", sorted(map(self.number, places)) if isinstance(places, (set, list)) else map(self.number, places)),
                    self._change)


class Keys(Sequence):
    """The names of rows, made as they are asked for."""

    def __init__(self, rows: Rows):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return map(self._rows.key, range(len(self._rows)))

    def __getitem__(self, place: int) -> str:
        return self._rows.key(place)
