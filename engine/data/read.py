"""Files to records: csv, tsv, json, jsonl and txt, in the encodings people really have.

A record is a dict of column name → value, as it stands in the file. What the columns *mean* is the business of
`engine.data.shapes`. Every way in which a file can be wrong ends in one `BadData` sentence with the way out.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import BadData

MAX_FILE = 1 << 30                         # bytes; beyond this a file must be split (it is read into memory as a whole)
MAX_CELL = 1_000_000                       # characters in one cell or text; no example is that long
READERS = ("csv", "tsv", "json", "jsonl", "txt")

_FOREIGN = {                               # first bytes of files that are no text, whatever their name says
    b"PK": ("an office or zip file", "Open it in its own program and save it as CSV (UTF-8)."),
    b"%PDF": ("a PDF file", "Copy its text into a .txt file."),
    b"\xd0\xcf\x11\xe0": ("an old office file", "Open it in its own program and save it as CSV (UTF-8)."),
    b"PAR1": ("a parquet file", "Save it as CSV or JSON lines."),
    b"GGUF": ("a model", "Choose the file with your examples."),
    b"\x1f\x8b": ("a compressed file", "Unpack it first."),
}


@dataclass
class Table:
    """What a file holds: ``records`` in file order, ``lines`` their line (or item) numbers counted from 1."""

    path: Path
    columns: list[str]
    records: list[dict[str, Any]]
    lines: list[int]
    notes: list[str] = field(default_factory=list)


def read(path: Path | str) -> Table:
    """Read a data file into records. Raises `BadData`: no such file, empty, unreadable, cut off, not a text file."""
    path = Path(path)
    if not path.exists():
        raise BadData(f"The file {path.name} does not exist.", f"It was looked for in {path.parent}.", "Choose it again.", path=str(path))
    if path.is_dir():
        raise BadData(f"{path.name} is a folder, not a file.", do="Choose one file with examples.", path=str(path))
    kind = path.suffix.lower().lstrip(".")
    kind = {"tab": "tsv", "ndjson": "jsonl", "text": "txt", "md": "txt"}.get(kind, kind)
    try:
        if path.stat().st_size > MAX_FILE:
            raise BadData(f"The file {path.name} is larger than {MAX_FILE >> 30} GB.", do="Split it into smaller files.", path=str(path))
        raw = path.read_bytes()
    except OSError as problem:
        raise BadData(f"The file {path.name} cannot be opened.", str(problem.strerror or problem), "Check that you may read it.",
                      path=str(path)) from problem
    text = _decode(path, raw)
    if not text.strip():
        raise BadData(f"The file {path.name} is empty.", do="Choose a file with at least one example.", path=str(path))
    if kind not in READERS:
        raise BadData(f"Files of the kind “.{kind}” cannot be read here." if kind else f"The file {path.name} has no ending that says what it is.",
                      do="Save it as CSV, TSV, JSON, JSON lines (.jsonl) or plain text (.txt).", path=str(path))
    table = {"csv": _csv, "tsv": _csv, "json": _json, "jsonl": _jsonl, "txt": _txt}[kind](path, text)
    for line, record in zip(table.lines, table.records):
        for column, value in record.items():
            if isinstance(value, str) and len(value) > MAX_CELL:
                raise _bad(path, line, f"The column “{column}” holds {len(value):,} characters; at most {MAX_CELL:,} are allowed.",
                           "Shorten it or split it into several examples.")
    if not table.records:
        raise BadData(f"The file {path.name} has no examples.", "It holds a header at most.", "Choose a file with at least one example.",
                      path=str(path))
    return table


def _bad(path: Path, line: int, why: str, do: str) -> BadData:
    return BadData(f"Line {line} of {path.name} cannot be read.", why, do, path=str(path), line=line)


def _decode(path: Path, raw: bytes) -> str:
    """Bytes to text: a byte order mark decides; then UTF-8; then UTF-16 by its many zero bytes; then Windows-1252."""
    for start, (what, do) in _FOREIGN.items():
        if raw.startswith(start) and (b"\0" in raw[:4096] or start == b"%PDF"):
            raise BadData(f"The file {path.name} is {what}, not a text file.", do=do, path=str(path))
    for mark, encoding in ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if raw.startswith(mark):
            try:
                return raw.decode(encoding)
            except UnicodeDecodeError as problem:
                raise BadData(f"The file {path.name} is damaged.", f"It breaks off at byte {problem.start:,}.", "Get or save it again.",
                              path=str(path)) from problem
    head = raw[:4096]
    if b"\0" in head:
        for encoding, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[0::2])):
            if zeros.count(0) > len(zeros) * 0.6:
                try:
                    return raw.decode(encoding)
                except UnicodeDecodeError:
                    continue
        raise BadData(f"The file {path.name} is not a text file.", do="Save your examples as CSV (UTF-8), JSON or plain text.", path=str(path))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def _csv(path: Path, text: str) -> Table:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    delimiter = "\t" if path.suffix.lower() in (".tsv", ".tab") else _delimiter(text)
    previous = csv.field_size_limit(MAX_CELL + 1)
    table = Table(path, [], [], [])
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not table.columns:
                table.columns = _header(path, cells)
                continue
            if extra := [cell for cell in cells[len(table.columns):] if cell.strip()]:
                raise _bad(path, reader.line_num, f"It has {len(cells)} cells, but the first line names {len(table.columns)} columns: "
                           f"“{extra[0][:40]}” belongs to none.",
                           "Put texts that contain a separator in quotation marks, or save the file again from your program.")
            cells = cells + [""] * (len(table.columns) - len(cells))
            table.records.append(dict(zip(table.columns, cells)))
            table.lines.append(reader.line_num)
    except csv.Error as problem:
        why = (f"A cell has more than {MAX_CELL:,} characters; probably a quotation mark is never closed." if "limit" in str(problem)
               else "A quotation mark is never closed, or stands in the middle of a cell.")
        raise BadData(f"Line {reader.line_num} of {path.name} cannot be read.", why,
                      "Look at this line, or save the file again from your program.", details=str(problem), path=str(path)) from problem
    finally:
        csv.field_size_limit(previous)
    return table


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip().lstrip("\ufeff") for cell in cells]
    while names and not names[-1]:
        names.pop()
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadData(f"Two columns of {path.name} are both named “{twice}”." if twice else f"A column of {path.name} has no name.",
                      do="Give every column its own name in the first line.", columns=names, path=str(path))
    return names


def _delimiter(text: str) -> str:
    """The separator that cuts the first lines into the most columns, equally many in each."""
    def score(delimiter: str) -> tuple[float, int]:
        try:
            rows = [row for row, _ in zip(csv.reader(io.StringIO(text[:65536]), delimiter=delimiter, skipinitialspace=True), range(20)) if row]
        except csv.Error:
            return 0.0, 0
        widths = [len(row) for row in rows]
        return (sum(width == widths[0] for width in widths) / len(widths), widths[0]) if widths and widths[0] > 1 else (0.0, 0)

    return max((",", ";", "\t", "|"), key=score)


def _json(path: Path, text: str) -> Table:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as problem:
        if problem.msg == "Extra data" and text.lstrip().startswith("{"):
            return _jsonl(path, text)      # JSON lines under the wrong name
        raise _bad(path, problem.lineno, f"It is no valid JSON: {problem.msg}.", "Save the file again from the program it comes from.") from problem
    except RecursionError as problem:
        raise _bad(path, 1, "It is nested too deeply.", "Save the file again from the program it comes from.") from problem
    if isinstance(data, dict):             # {"data": [...]}: the one list inside is what is meant
        lists = [value for value in data.values() if isinstance(value, list) and value and isinstance(value[0], (dict, list))]
        data = lists[0] if len(lists) == 1 and "role" not in lists[0][0] and "from" not in lists[0][0] else [data]
    if not isinstance(data, list):
        raise BadData(f"The file {path.name} holds no list of examples.", do="It should be a list of objects, one for each example.", path=str(path))
    return _records(path, list(enumerate(data, 1)))


def _jsonl(path: Path, text: str) -> Table:
    items = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                items.append((number, json.loads(line)))
            except (json.JSONDecodeError, RecursionError) as problem:
                if number == 1 and text.lstrip().startswith("["):
                    return _json(path, text)
                raise _bad(path, number, f"It is no valid JSON: {getattr(problem, 'msg', 'nested too deeply')}.",
                           "Every line must be one complete JSON object.") from problem
    return _records(path, items)


def _records(path: Path, items: list[tuple[int, Any]]) -> Table:
    table = Table(path, [], [], [])
    columns: dict[str, None] = {}
    for number, item in items:
        if isinstance(item, list):         # a bare list of messages
            item = {"messages": item}
        elif isinstance(item, str):
            item = {"text": item}
        if not isinstance(item, dict):
            raise _bad(path, number, "It holds a single value, not an example.",
                       "Every example must be an object such as {\"question\": …, \"answer\": …}.")
        columns.update(dict.fromkeys(str(key) for key in item))
        table.records.append({str(key): value for key, value in item.items()})
        table.lines.append(number)
    table.columns = list(columns)
    return table


def _txt(path: Path, text: str) -> Table:
    """Plain text: every paragraph (a blank line ends it) is an example."""
    table = Table(path, ["text"], [], [])
    paragraph: list[str] = []
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n") + [""], 1):
        if line.strip():
            paragraph.append(line.rstrip())
        elif paragraph:
            table.records.append({"text": "\n".join(paragraph)})
            table.lines.append(number - len(paragraph))
            paragraph = []
    return table
