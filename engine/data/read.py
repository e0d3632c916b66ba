"""A file, or the files of a folder or a zip, to tables: looks at the ending, and into the file where the ending does not say enough."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from engine.data.readers import archive, chats, documents, mails, pages, records, tables
from engine.data.readers.text import open_text
from engine.data.table import Table, checked
from engine.errors import BadData

KINDS = ("csv", "tsv", "xlsx", "json", "jsonl", "parquet", "txt", "md", "docx", "pdf", "html", "mbox", "eml", "zip")
_ALIASES = {"tab": "tsv", "ndjson": "jsonl", "text": "txt", "markdown": "md", "pq": "parquet", "xlsm": "xlsx", "log": "txt",
            "htm": "html", "xhtml": "html"}
_WAY_OUT = {                               # kinds that people have and that are not read, with the way to one that is
    "xls": "Open it in its program and save it as xlsx or CSV.", "ods": "Open it in its program and save it as xlsx or CSV.",
    "doc": "Open it in its program and save it as docx.", "odt": "Open it in its program and save it as docx.",
    "gz": "Unpack it first.", "7z": "Unpack it first, or pack it as zip.", "rar": "Unpack it first, or pack it as zip.", "tar": "Unpack it first.",
    "gguf": "This is a model. Choose the file with your examples.", "safetensors": "This is a model. Choose the file with your examples.",
}
_JSON = re.compile(r"\ufeff?\s*(?:\{\s*\"|\[\s*\{\s*\")")                # how objects begin, and no text
MAX_FILES = 10_000
_ABOUT = ("readme", "license", "licence", "changelog", "dataset_infos", "dataset_info", "dataset_dict")


def _read_txt(path: Path) -> Table:
    text = open_text(path)
    if _JSON.match(text.head(4096)):
        return records.read_json(path)
    return chats.read_chat_text(text) or (tables.read_csv(path) if tables.is_table(text) else documents.read_txt(path))


_READERS: dict[str, Callable[[Path], Table]] = {
    "csv": tables.read_csv, "tsv": lambda path: tables.read_csv(path, "tsv"), "xlsx": tables.read_xlsx, "parquet": tables.read_parquet,
    "json": records.read_json, "jsonl": records.read_jsonl, "txt": _read_txt, "md": documents.read_md, "docx": documents.read_docx,
    "pdf": documents.read_pdf, "html": pages.read_html, "mbox": mails.read_mbox, "eml": mails.read_eml,
}


def kind_of(path: Path) -> str:
    """The kind that a file's ending says; empty if it says none."""
    ending = path.suffix.lower().lstrip(".")
    return _ALIASES.get(ending, ending)


def read(path: Path | archive.Inside | str) -> Table:
    """Recognise one file. Raises `BadData`: no such file, empty, unreadable, cut off, protected, of a kind that is not read."""
    path = Path(path) if isinstance(path, str) else path
    if not path.exists():
        raise BadData(f"The file {path.name} does not exist.", f"It was looked for in {path.parent}.", "Choose it again.", path=str(path))
    if path.is_dir():
        raise BadData(f"{path.name} is a folder, not a file.", do="Choose one file with examples.", path=str(path))
    kind = kind_of(path)
    try:
        if path.stat().st_size == 0:
            raise BadData(f"The file {path.name} is empty.", do="Choose a file with at least one example.", path=str(path))
        if kind not in _READERS:
            what = f"Files of the kind “.{kind}” cannot be read here." if kind else f"The file {path.name} has no ending that says what it is."
            raise BadData(what, do=_WAY_OUT.get(kind, f"Save it as one of {', '.join(KINDS)}."), path=str(path))
        table = checked(_READERS[kind](path))
    except OSError as problem:
        raise BadData(f"The file {path.name} cannot be opened.", str(problem.strerror or problem), "Check that you may read it.",
                      path=str(path)) from problem
    if not table.head(1):
        raise BadData(f"The file {path.name} has no examples.", "It holds a header at most.", "Choose a file with at least one example.",
                      path=str(path))
    return table


def passed(file: Path | archive.Inside, problem: BadData) -> str:
    """The sentence about a file of several that is left out for this reason."""
    note = f"{file.name} was passed over: {' '.join(filter(None, (problem.what, problem.why)))}"
    return note


def read_all(path: Path | str) -> tuple[list[Table], list[str]]:
    """The tables of a file, or of all files in a folder or a zip (letters in it together), and sentences about what was passed over.

    Raises `BadData` if nothing in it can be read.
    """
    path = Path(path)
    if not path.is_dir() and (kind_of(path) != "zip" or not path.exists()):
        return [read(path)], []
    files, notes = _in_folder(path) if path.is_dir() else _in_zip(path)
    what = "folder" if path.is_dir() else "archive"
    if len(files) > MAX_FILES:
        raise BadData(f"The {what} {path.name} holds {len(files):,} files.", f"At most {MAX_FILES:,} can be read at once.",
                      "Choose the folder with your examples only.", path=str(path))
    about = [file for file in files if file.name.partition(".")[0].lower() in _ABOUT]
    if any(kind_of(file) in _READERS and file not in about for file in files):     # what describes the files is none of them
        notes += [f"{file.name} was passed over: it tells about the other files." for file in about]
        files = [file for file in files if file not in about]
    found, letters = [], [file for file in files if kind_of(file) == "eml"]
    for file in files:
        if kind_of(file) in _READERS and kind_of(file) != "eml":
            try:
                found.append(read(file))
            except BadData as problem:
                notes.append(passed(file, problem))
    if letters:
        found.append(mails.mail_folder(path, letters))
    others = [file.name for file in files if kind_of(file) not in _READERS]
    if others:
        notes.append(f"{len(others)} other file{'s were' if len(others) > 1 else ' was'} passed over: {', '.join(others[:3])}"
                     f"{' …' if len(others) > 3 else '.'}")
    if not found:
        raise BadData(f"The {what} {path.name} has no file that can be read.", " ".join(notes[:3]), f"Read are {', '.join(KINDS)}.", path=str(path))
    return found, notes


def _in_folder(path: Path) -> tuple[list[Path | archive.Inside], list[str]]:
    """The files below a folder, archives opened, and what was passed over."""
    files, notes = [], []
    for file in sorted(file for file in path.rglob("*") if _is_meant(file.relative_to(path).parts) and file.is_file()):
        if kind_of(file) == "zip":
            try:
                inside, passed_over = _in_zip(file)
            except BadData as problem:
                inside, passed_over = [], [passed(file, problem)]
            files += inside
            notes += passed_over
        else:
            files.append(file)
    return files, notes


def _in_zip(path: Path) -> tuple[list[archive.Inside], list[str]]:
    """The files in an archive, and what was passed over. Raises `BadData`."""
    try:
        files, astray = archive.members(path, lambda name: kind_of(name) in _READERS and _is_meant(name.parts))
    except OSError as problem:
        raise BadData(f"The file {path.name} cannot be opened.", str(problem.strerror or problem), "Check that you may read it.",
                      path=str(path)) from problem
    files = [file for file in files if _is_meant(file.parts)]
    notes = [f"{name[:80]} was passed over: its name leads out of the archive." for name in astray[:3]]
    notes += [f"{file.name} was passed over: an archive inside an archive is not opened." for file in files if kind_of(file) in _ARCHIVES]
    return [file for file in files if kind_of(file) not in _ARCHIVES], notes


_ARCHIVES = ("zip", "gz", "7z", "rar", "tar", "xz", "bz2")


def _is_meant(parts: tuple[str, ...]) -> bool:
    """Not what programs leave behind: hidden files, locks of office programs, a Mac's extra files."""
    return not any(part.startswith((".", "~$", "__MACOSX")) for part in parts)
