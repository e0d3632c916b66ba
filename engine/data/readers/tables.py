"""Tables: csv and tsv, xlsx, parquet. Title lines above the header are passed over; a table without header names its columns by number."""

from __future__ import annotations

import csv
import datetime
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from engine.data.names import TEXT, fold, is_known
from engine.data.readers.archive import careful_zip, seekable
from engine.data.readers.text import Text, open_text
from engine.data.table import MAX_CELL, START, Mark, Table, Walk, bad_line, damaged, numbered
from engine.errors import BadData

_LOOK = 20                                 # rows that are looked at to find the header
Rows = Callable[[Mark], Iterator[tuple[Mark, int, list[str]]]]


# --- csv and tsv -------------------------------------------------------------------------------

def read_csv(path: Path, kind: str = "csv") -> Table:
    """csv with any separator, and tsv."""
    text = open_text(path)
    delimiter = "\t" if kind == "tsv" else _delimiter(text.head())

    def rows(mark: Mark) -> Iterator[tuple[Mark, int, list[str]]]:
        here, after = (max(mark[0], text.begin), mark[1]), [mark]

        def lines() -> Iterator[str]:
            for _, line, after[0] in text.lines(*mark):
                yield line
        csv.field_size_limit(MAX_CELL + 1)
        reader = csv.reader(lines(), delimiter=delimiter, strict=True, skipinitialspace=True)
        try:
            for cells in reader:
                if any(cell.strip(" :-") for cell in cells):       # nor the line below the names of a Markdown table
                    yield here, after[0][1] - 1, cells
                here = after[0]
        except csv.Error as problem:
            why = (f"A cell has more than {MAX_CELL:,} characters; probably a quotation mark is never closed." if "limit" in str(problem)
                   else "A quotation mark is never closed, or stands in the middle of a cell.")
            raise bad_line(path, after[0][1] - 1, why, "Look at this line, or save the file again from your program.", str(problem)) from problem
    return with_header(path, kind, rows)


def is_table(text: Text) -> bool:
    """Whether a text begins with the names of columns, as “Unicode text” from a spreadsheet does."""
    head = text.head()
    first = next((line for line in head.splitlines() if line.strip()), "")
    cells = next(csv.reader([first], delimiter=_delimiter(head)), [])
    return len(cells) > 1 and sum(map(is_known, cells)) > 1


def _delimiter(text: str) -> str:
    """The separator that cuts the first lines into the most columns, equally many in most of them; the comma last, for texts have commas, too."""
    if fold(next((line for line in text.splitlines() if line.strip()), "")) in TEXT:
        return "\x1f"                      # one column of texts: nothing separates

    def score(delimiter: str) -> tuple[float, int]:
        try:
            rows = [row for row, _ in zip(csv.reader(text.splitlines(True), delimiter=delimiter, skipinitialspace=True), range(20)) if row]
        except csv.Error:
            return 0.0, 0
        widths = [len(row) for row in rows]
        usual = max(set(widths), key=lambda width: (widths.count(width), width)) if widths else 0
        return (widths.count(usual) / len(widths), usual) if usual > 1 else (0.0, 0)

    return max(("\t", ";", "|", ","), key=score)


# --- the header, for every kind of table -------------------------------------------------------

def with_header(path: Path, kind: str, rows: Rows, start: Mark = START) -> Table:
    """Find the line that names the columns, and give every row after it these names.

    A cell beyond the last name was cut off another in a text (refused), but is a remark beside the table in a spreadsheet (passed over).
    """
    loose, first = kind in ("csv", "tsv"), list(islice(rows(start), _LOOK))
    if not first:
        raise BadData(f"The file {path.name} has no examples.", "It is empty.", "Choose a file with at least one example.", path=str(path))
    at, named = _header_row([cells for _, _, cells in first])
    columns = _names(first[at][2]) if named else [f"Column {n}" for n in range(1, len(first[at][2]) + 1)]

    def walk(mark: Mark) -> Walk:
        for number, (here, line, cells) in enumerate(rows(mark)):
            if mark == start and number < at + named:
                continue
            if loose and (extra := [cell for cell in cells[len(columns):] if cell.strip()]):
                raise bad_line(path, line, f"It has {len(cells)} cells, but the first line names {len(columns)} columns: "
                               f"“{extra[0][:40]}” belongs to none.",
                               "Put texts that contain a separator in quotation marks, or save the file again from your program.")
            yield here, line, dict(zip(columns, cells + [""] * (len(columns) - len(cells))))
    return Table(path, kind, columns, walk, start)


def _header_row(rows: list[list[str]]) -> tuple[int, bool]:
    """(number of the row, whether it names the columns): the first full row, or the one up to there with the most known names."""
    widths = [sum(bool(cell.strip()) for cell in cells) for cells in rows]
    usual = max(set(widths), key=lambda width: (widths.count(width), width))
    first = next(n for n, width in enumerate(widths) if width >= usual)
    known = [sum(map(is_known, cells)) * (width >= min(2, usual)) for cells, width in zip(rows[:first + 1], widths)]
    if any(known):                         # of “Customer | Us” above “Date | Question | Answer”, the wider one
        return max(range(first + 1), key=lambda number: (known[number], widths[number])), True
    cells = [cell.strip() for cell in rows[first]]
    return first, not any(len(cell) > 60 or cell.endswith(("?", ".", "!", "…")) for cell in cells)


def _names(cells: list[str]) -> list[str]:
    """Names of columns, none empty and none twice: “Note”, “Note 2”."""
    names: list[str] = []
    while cells and not cells[-1].strip():
        cells = cells[:-1]
    for number, cell in enumerate(cells, 1):
        name = " ".join(cell.split()).lstrip("\ufeff") or f"Column {number}"
        names.append(next(free for n in count(1) if (free := name if n == 1 else f"{name} {n}") not in names))
    return names


# --- xlsx --------------------------------------------------------------------------------------

def read_xlsx(path: Path) -> Table:
    """A workbook: the first of its sheets that name the most known columns, and every other sheet that has these, too."""
    from openpyxl import load_workbook

    careful_zip(path, "xl/workbook.xml")

    def sheets(formulas: bool = False) -> Iterator[tuple[str, Rows]]:
        book = opened(path, lambda: load_workbook(seekable(path), read_only=True, data_only=not formulas))
        try:
            for sheet in book.worksheets:
                sheet.reset_dimensions()   # what the file claims about its own size is not believed
                yield sheet.title, lambda _, sheet=sheet: _cells(path, sheet)
        finally:
            book.close()

    tables, uncounted = {}, False
    for (title, rows), (_, formulas) in zip(sheets(), sheets(formulas=True)):
        try:
            tables[title] = with_header(path, "xlsx", rows).columns
            uncounted = uncounted or _counted_nothing(formulas, rows)
        except BadData as problem:
            if "has no examples" not in problem.what:
                raise
    if not tables:
        raise BadData(f"The file {path.name} has no examples.", "No sheet of it has a filled cell.", "Choose a file with at least one example.",
                      path=str(path))
    columns = max(tables.values(), key=lambda names: (sum(map(is_known, names)), len(names) > 1))
    needed = set(filter(is_known, columns)) or set(columns)
    notes = [f"The sheet “{title}” was left out: it has other columns ({', '.join(names[:4])})."
             for title, names in tables.items() if not needed <= set(names)]
    if uncounted:
        notes.append("Formulas in it have no results, and their cells are taken for empty: open the file in its program and save it there.")

    def records() -> Iterator[tuple[int, dict[str, Any]]]:
        for title, rows in sheets():
            if needed <= set(tables.get(title, ())):
                yield from with_header(path, "xlsx", rows)
    return Table(path, "xlsx", columns, numbered(records), notes=notes)


def _counted_nothing(formulas: Rows, results: Rows) -> bool:
    """Whether one of the first rows has a formula whose result was never saved, as in a file that a program wrote."""
    shown = {line: cells for _, line, cells in islice(results(START), _LOOK)}
    return any(cell.startswith("=") and not (shown.get(line, []) + [""] * len(cells))[n]
               for _, line, cells in islice(formulas(START), _LOOK) for n, cell in enumerate(cells))


def _cells(path: Path, sheet) -> Iterator[tuple[Mark, int, list[str]]]:
    rows = _guarded(path, sheet.iter_rows(values_only=True))
    for line, row in enumerate(rows, 1):
        cells = [as_text(value) for value in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            yield (line, line), line, cells


def as_text(value: Any) -> str:
    """A cell as a person reads it: whole numbers without point, days without a midnight, nothing for a formula that went wrong."""
    if value is None or value in _ERRORS:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ", "minutes")
    return value.isoformat("minutes") if isinstance(value, datetime.time) else str(value)


_ERRORS = ("#N/A", "#REF!", "#NAME?", "#VALUE!", "#DIV/0!", "#NULL!", "#NUM!")      # what a formula gives that went wrong


def opened(path: Path, make: Callable[[], Any]) -> Any:
    """What a library makes of somebody's file: whatever it stumbles over is one sentence for the person."""
    try:
        return make()
    except MemoryError:
        raise
    except Exception as problem:
        raise damaged(path, f"{type(problem).__name__}: {problem}") from problem


def _guarded(path: Path, items: Iterator) -> Iterator:
    """`opened`, item by item."""
    while True:
        item = opened(path, lambda: next(items, _END))
        if item is _END:
            return
        yield item


_END = object()


# --- parquet -----------------------------------------------------------------------------------

def read_parquet(path: Path) -> Table:
    """Row groups are read in small batches; marks are row numbers."""
    from pyarrow import parquet

    file = opened(path, lambda: parquet.ParquetFile(seekable(path)))
    columns = list(file.schema_arrow.names)
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    file.close()

    def walk(mark: Mark) -> Walk:
        row, groups, skip = mark[0], list(range(len(sizes))), mark[0]
        while groups and skip >= sizes[groups[0]]:
            skip -= sizes[groups.pop(0)]
        with opened(path, lambda: parquet.ParquetFile(seekable(path))) as file:
            for batch in _guarded(path, file.iter_batches(batch_size=256, row_groups=groups)):
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                for record in opened(path, batch.slice(skip).to_pylist):
                    yield (row, row + 1), row + 1, {name: _plain(value) for name, value in record.items()}
                    row += 1
                skip = 0
    return Table(path, "parquet", columns, walk)


def _plain(value: Any) -> Any:
    return as_text(value) if isinstance(value, (float, datetime.date, datetime.datetime, bytes)) else value
