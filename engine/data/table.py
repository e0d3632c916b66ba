"""What a reader makes of a file: columns, and records that can be walked through as often as one likes without being held.

A record is a dict of column name → value, as it stands in the file; what the columns *mean* is the business of
`engine.data.shapes`. Every way in which a file can be wrong ends in one `BadData` sentence with the way out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

from engine.errors import BadData

MAX_CELL = 1_000_000                       # characters in one cell or text; no example is that long
Mark = tuple[int, int]                     # where a walk can begin: the reader's own place, and the line (or item) counted from 1
START: Mark = (0, 1)
Walk = Iterator[tuple[Mark, int, dict[str, Any]]]


@dataclass
class Table:
    """A file that was recognised. ``walk(mark)`` yields (mark of this record, line, record) from there to the end, each time anew.

    ``kind`` is the file's kind (csv, xlsx, chat …). ``known`` is set where the kind alone says what the columns mean:
    column → role. ``speakers``: the columns are people of one conversation.
    """

    path: Path
    kind: str
    columns: list[str]
    walk: Callable[[Mark], Walk]
    start: Mark = START
    notes: list[str] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)
    speakers: bool = False

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for _, line, record in self.walk(self.start):
            yield line, record

    def head(self, records: int) -> list[dict[str, Any]]:
        """The first few records."""
        return [record for _, record in islice(self, records)]


def numbered(make: Callable[[], Iterable[tuple[int, dict[str, Any]]]]) -> Callable[[Mark], Walk]:
    """A walk for readers that can only begin at the beginning: a mark is the number of records to pass over."""
    def walk(mark: Mark) -> Walk:
        for number, (line, record) in zip(count(mark[0]), islice(make(), mark[0], None)):
            yield (number, line), line, record
    return walk


def checked(table: Table) -> Table:
    """The table with a walk that stops at a cell longer than `MAX_CELL`."""
    inner = table.walk

    def walk(mark: Mark) -> Walk:
        for place, line, record in inner(mark):
            for column, value in record.items():
                if isinstance(value, str) and len(value) > MAX_CELL:
                    raise bad_line(table.path, line, f"The column “{column}” holds {len(value):,} characters; at most {MAX_CELL:,} are allowed.",
                                   "Shorten it or split it into several examples.")
            yield place, line, record
    table.walk = walk
    return table


def bad_line(path: Path, line: int, why: str, do: str, details: str = "") -> BadData:
    return BadData(f"Line {line} of {path.name} cannot be read.", why, do, details=details, path=str(path), line=line)


def damaged(path: Path, problem: BaseException | str, do: str = "Get or save it again.") -> BadData:
    """The file is not what its name says, or is broken."""
    return BadData(f"The file {path.name} is damaged or is not what its name says.", "", do, details=str(problem)[:2000], path=str(path))
