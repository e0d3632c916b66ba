"""Bytes to lines of text, in the encodings that people really have, without holding the file."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.data.table import MAX_CELL, Mark, bad_line
from engine.errors import BadData

MAX_LINE = 16 * MAX_CELL                   # characters; a whole conversation may stand on one line
_BLOCK = 1 << 18

FOREIGN = {                                # first bytes of files that are no text, whatever their name says
    b"PK\x03\x04": ("an office or zip file", "Give it its own ending (xlsx, docx), or unpack it first."),
    b"%PDF": ("a PDF file", "Give it the ending .pdf."),
    b"\xd0\xcf\x11\xe0": ("an old or password-protected office file", "Open it in its own program and save it as xlsx or docx, without a password."),
    b"PAR1": ("a parquet file", "Give it the ending .parquet."),
    b"GGUF": ("a model", "Choose the file with your examples."),
    b"\x1f\x8b": ("a compressed file", "Unpack it first."),
    b"SQLite format 3": ("a database", "Save the table with your examples as CSV."),
}


@dataclass(frozen=True)
class Text:
    """A text file and how it is written. Places are bytes."""

    path: Path
    encoding: str
    begin: int = 0                         # behind a byte order mark

    def lines(self, place: int = 0, number: int = 1) -> Iterator[tuple[Mark, str, Mark]]:
        """(its mark, a line ending in \\n, the mark of the next) from ``place`` on, which must be the beginning of line ``number``.

        Raises `BadData` for a line of more than `MAX_LINE` characters.
        """
        place = max(place, self.begin)
        with self.path.open("rb") as raw:
            raw.seek(place)
            reader = io.TextIOWrapper(raw, encoding=self.encoding, errors="replace", newline="")
            while line := reader.readline(MAX_LINE):
                if len(line) >= MAX_LINE:
                    raise bad_line(self.path, number, f"It has more than {MAX_LINE:,} characters.", "This is hardly a list of examples.")
                here, place, number = (place, number), place + len(line.encode(self.encoding, "replace")), number + 1
                yield here, line[:-2] + "\n" if line.endswith("\r\n") else line[:-1] + "\n" if line.endswith("\r") else line, (place, number)

    def blocks(self) -> Iterator[str]:
        """The text in pieces of about a quarter of a million letters."""
        with self.path.open("rb") as raw:
            raw.seek(self.begin)
            reader = io.TextIOWrapper(raw, encoding=self.encoding, errors="replace")
            while block := reader.read(_BLOCK):
                yield block

    def head(self, letters: int = 65536) -> str:
        with self.path.open("rb") as raw:
            raw.seek(self.begin)
            return io.TextIOWrapper(raw, encoding=self.encoding, errors="replace").read(letters)


def open_text(path: Path) -> Text:
    """Find out how a text file is written. Raises `BadData`: empty, no text, broken off."""
    text = _recognise(path)
    if not any(block.strip("\ufeff \t\r\n\0") for block in text.blocks()):
        raise BadData(f"The file {path.name} is empty.", do="Choose a file with at least one example.", path=str(path))
    return text


def _recognise(path: Path) -> Text:
    """A byte order mark decides; then UTF-8; then UTF-16 by its many zero bytes; then a guess by frequency of letters."""
    with path.open("rb") as file:
        head = file.read(4096)
    for start, (what, do) in FOREIGN.items():
        if head.startswith(start) and (b"\0" in head or start in (b"%PDF", b"PK\x03\x04")):
            raise BadData(f"The file {path.name} is {what}, not a text file.", do=do, path=str(path))
    for mark, encoding in ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF16_LE, "utf-16-le"),
                           (codecs.BOM_UTF16_BE, "utf-16-be")):
        if head.startswith(mark):
            if (fault := _fault(path, encoding)) is not None:
                raise BadData(f"The file {path.name} is damaged.", f"It breaks off at byte {fault:,}.", "Get or save it again.", path=str(path))
            return Text(path, encoding, len(mark))
    if b"\0" in head:
        for encoding, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[0::2])):
            if zeros.count(0) > len(zeros) * 0.6 and _fault(path, encoding) is None:
                return Text(path, encoding)
        raise BadData(f"The file {path.name} is not a text file.", do="Save your examples as a table, JSON or plain text.", path=str(path))
    fault = _fault(path, "utf-8")
    return Text(path, "utf-8" if fault is None or fault >= path.stat().st_size - 3 else _guess(path))     # cut off within the last letter


def _fault(path: Path, encoding: str) -> int | None:
    """The first block of the file that is not in this encoding (as a byte), or None. Holds one block at a time."""
    decoder = codecs.getincrementaldecoder(encoding)()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as problem:
                return file.tell() - len(block) + problem.start
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return file.tell()
    return None


_LATIN = ("cp1252", "cp1250", "iso8859_15", "latin_1", "mac_roman", "cp1251", "koi8_r", "cp1253", "cp1254", "cp932", "gb18030", "big5", "euc_kr")


def _guess(path: Path) -> str:
    """Encoding of a text that is no Unicode, by those of its lines that are not plain ASCII. Western European when in doubt."""
    from charset_normalizer import from_bytes

    sample, size = [], 0
    with path.open("rb") as file:
        for line in file:
            if not line.isascii():
                sample.append(line[:2000])
                size += len(sample[-1])
                if size > 20_000:
                    break
    found = from_bytes(b"".join(sample), cp_isolation=list(_LATIN)).best()
    if found is None or found.encoding in ("latin_1", "iso8859_15", "mac_roman", "cp1250", "cp1254") and _is_western(b"".join(sample)):
        return "cp1252"                    # what Windows writes; the others differ in signs that these texts do not have
    return found.encoding


def _is_western(raw: bytes) -> bool:
    """Whether, read as Windows-1252, all letters beyond ASCII are those of western languages and stand within words."""
    try:
        signs = [c for c in raw.decode("cp1252") if ord(c) > 127]
    except UnicodeDecodeError:
        return False
    usual = "äöüÄÖÜßéèêëàâáçîïíôóùûúñÉÈÀÇ„“”‚‘’–—…€«»°´§"
    return sum(c in usual for c in signs) >= 0.9 * len(signs)
