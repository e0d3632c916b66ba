"""Written texts: txt, md, docx, pdf. Questions with answers where they are written as such, else passages to learn a style from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from engine.data.names import ANSWERS, QUESTIONS, fold, is_known
from engine.data.readers.archive import careful_zip, seekable
from engine.data.readers.tables import is_table, opened, read_csv
from engine.data.readers.text import open_text
from engine.data.table import START, Mark, Table, Walk, damaged, numbered
from engine.errors import BadData

PASSAGE = 2000                             # letters at which a passage of a document ends, at the next paragraph
MAX_PAGES = 5000
_LABEL = re.compile(r"(?:\*\*|__)?\s{0,3}([^\W\d_]{1,16})\s{0,3}\d{0,4}\s{0,3}(?:\*\*|__)?\s{0,3}[:：]\s*(?:\*\*|__)?\s*(.*)$", re.DOTALL)
_COPIED = re.compile(r"^\s*(?:(You|Du|Sie)|ChatGPT|Claude|Gemini)\s(?:said|hast gesagt|haben gesagt|hat gesagt)\s?:\s*$")       # out of a window
_HEADING = re.compile(r"#{1,6}\s+(.*)$")
Paragraph = tuple[int, str, bool]          # line or number, text, whether it is a heading


def read_txt(path: Path) -> Table:
    """Plain text: every paragraph (a blank line ends it, or its length) is an example, unless questions stand above their answers."""
    text = open_text(path)

    def paragraphs(mark: Mark) -> Iterator[tuple[Mark, int, str]]:
        start, lines = mark, []
        for here, line, _ in text.lines(*mark):
            if lines and (not line.strip() or sum(map(len, lines)) > PASSAGE):
                yield start, start[1], "\n".join(lines)
                lines = []
            if line.strip():
                start = start if lines else here
                lines.append(line.rstrip())
        if lines:
            yield start, start[1], "\n".join(lines)

    def walk(mark: Mark) -> Walk:
        for here, line, paragraph in paragraphs(mark):
            yield here, line, {"text": paragraph}
    all_lines = lambda: ((here[1], line.rstrip("\n"), False) for here, line, _ in text.lines())    # noqa: E731
    return _asked(path, "txt", all_lines) or _headed(path, "txt", lambda: ((line, paragraph, False) for _, line, paragraph in paragraphs(START))) \
        or Table(path, "txt", ["text"], walk)


def read_md(path: Path) -> Table:
    """Markdown: a table with known columns is one; headings that ask are questions, what stands below answers them; else sections."""
    text = open_text(path)
    if is_table(text):
        return read_csv(path, "md")

    def paragraphs() -> Iterator[Paragraph]:
        fence, lines, start = False, [], 1
        for here, line, _ in text.lines():
            fence ^= line.lstrip().startswith("```")
            heading = None if fence else _HEADING.match(line.strip())
            if (heading or not line.strip()) and not fence:
                if lines:
                    yield start, "\n".join(lines), False
                lines = []
                if heading:
                    yield here[1], heading[1].rstrip("#").rstrip(), True
            else:
                start = start if lines else here[1]
                lines.append(line.rstrip())
        if lines:
            yield start, "\n".join(lines), False
    return document(path, "md", paragraphs)


def read_docx(path: Path) -> Table:
    """Word: tables that name known columns, or that ask on the left and answer on the right, are such; else like markdown, by its headings."""
    careful_zip(path, "word/document.xml")
    import docx

    source = seekable(path)
    word = opened(path, lambda: docx.Document(str(source) if isinstance(source, Path) else source))
    parts = opened(path, lambda: [_cells(part) if hasattr(part, "rows") else (part.text.strip(), _is_heading(part))
                                  for part in word.iter_inner_content()])
    tables = [part for part in parts if isinstance(part, list) and part]
    around = ["The text around the tables was left out."] if any(not isinstance(part, list) and part[0] for part in parts) else []
    columns = next((rows[0] for rows in tables if len(rows) > 1 and sum(map(is_known, rows[0])) >= 2), None)
    pairs, known = [cells for rows in tables for cells in rows if len(cells) == 2], {}
    if columns:
        records = [cells for rows in tables if rows[0] == columns for cells in rows[1:]]
    elif len(pairs) > 1 and sum(_asks(question) for question, _ in pairs) > len(pairs) / 2:
        columns, records, known = ["question", "answer"], pairs, {"question": "question", "answer": "answer"}
    if columns:
        return Table(path, "docx", columns, numbered(lambda: ((n, dict(zip(columns, cells))) for n, cells in enumerate(records, 2 - bool(known)))),
                     notes=around, known=known)
    paragraphs = [(number, text, heading) for number, (text, heading) in enumerate((one for part in parts for one in (
        [(" | ".join(cells), False) for cells in part if any(cells)] if isinstance(part, list) else [part])), 1) if text]
    if not paragraphs:
        raise BadData(f"The file {path.name} has no text.", "Pictures and drawings cannot be learned.", "Choose another file.", path=str(path))
    return document(path, "docx", lambda: paragraphs)


def _is_heading(paragraph) -> bool:
    """By its style, or because all of it is bold: so most people write a heading."""
    text = paragraph.text.strip()
    return (paragraph.style.name or "").startswith(("Heading", "Title", "Überschrift", "Titre")) or (
        0 < len(text) <= 200 and all(run.bold for run in paragraph.runs if run.text.strip()))


def _cells(table) -> list[list[str]]:
    """The rows of a table; a cell that spans several columns stands in the first of them."""
    return [[cell.text.strip() if n == 0 or cell._tc is not cells[n - 1]._tc else "" for n, cell in enumerate(cells)]
            for cells in (row.cells for row in table.rows)]


def read_pdf(path: Path) -> Table:
    """The plain text of a PDF, page by page; words cut at a line's end are joined."""
    import logging

    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    with path.open("rb") as file:
        if b"%PDF" not in file.read(1024):
            raise damaged(path, "it does not begin as a PDF")
    source = seekable(path)
    reader = opened(path, lambda: pypdf.PdfReader(source))
    if reader.is_encrypted and not _opens(reader):
        raise BadData(f"The file {path.name} is protected by a password.", do="Save it without a password.", path=str(path))
    pages = opened(path, lambda: len(reader.pages))
    if pages > MAX_PAGES:
        raise BadData(f"The file {path.name} has {pages:,} pages; at most {MAX_PAGES:,} can be read.", do="Split it.", path=str(path))

    def paragraphs() -> Iterator[Paragraph]:
        for number in range(pages):
            for paragraph in _page(opened(path, lambda number=number: reader.pages[number].extract_text() or "")):
                yield number + 1, paragraph, False
    if next(paragraphs(), None) is None:
        raise BadData(f"The file {path.name} has no text.", "Its pages are pictures, as from a scanner.", "Have the text recognised first (OCR).",
                      path=str(path))
    return document(path, "pdf", paragraphs)


def _opens(reader) -> bool:
    try:
        return bool(reader.decrypt(""))
    except Exception:                      # an unknown or missing cipher: locked, as far as a person is concerned
        return False


def _page(text: str) -> list[str]:
    """Paragraphs of a page: a blank line ends one, so does a short line that ends a sentence, and “Answer:” begins one."""
    text = re.sub(r"(\w)-\n(?=[a-zà-ÿ])", r"\1", text.replace("\r\n", "\n").replace("\0", ""))
    found, lines = [], []
    width = max((len(line) for line in text.split("\n")), default=0)
    for line in text.split("\n") + [""]:
        if lines and _label(line)[0]:
            found.append(" ".join(lines))
            lines = []
        if line.strip():
            lines.append(line.strip())
        if lines and (not line.strip() or len(line) < 0.7 * width and line.rstrip().endswith((".", "?", "!", ":"))):
            found.append(" ".join(lines))
            lines = []
    return found


# --- what the paragraphs say -------------------------------------------------------------------

def document(path: Path, kind: str, paragraphs: Callable[[], Iterable[Paragraph]]) -> Table:
    """Questions and answers if they are marked, or stand above each other; else passages of about `PASSAGE` letters."""
    return _asked(path, kind, paragraphs) or _headed(path, kind, paragraphs) or \
        Table(path, kind, ["text"], numbered(lambda: _passages(paragraphs())), known={"text": "text"})


def _headed(path: Path, kind: str, paragraphs: Callable[[], Iterable[Paragraph]]) -> Table | None:
    """What asks, and below it what answers: if most headings ask, or every third paragraph or more does or begins so."""
    first = list(islice(paragraphs(), 5000))
    headings, by_headings = [_asks(text) for _, text, heading in first if heading], True
    if len(headings) < 2 or sum(headings) <= len(headings) / 2:
        by_headings, asking = False, [heading for _, _, heading in _cut(first)]
        if sum(asking) < max(3, len(first) / 3) or (True, True) in pairwise(asking):
            return None
    return Table(path, kind, ["question", "answer"], numbered(lambda: _by_headings(paragraphs() if by_headings else _cut(paragraphs()))),
                 known={"question": "question", "answer": "answer"})


def _cut(paragraphs: Iterable[Paragraph]) -> Iterator[Paragraph]:
    """A question that begins a paragraph is a heading, what follows it in the paragraph is not."""
    for number, text, heading in paragraphs:
        first, _, rest = text.partition("\n")
        if asks := _asks(first):
            yield number, first, True
        if rest or not asks:
            yield number, rest if asks else text, heading and not asks


def _asks(text: str) -> bool:
    return len(text) <= 200 and text.rstrip(" *_").endswith("?")


def _asked(path: Path, kind: str, lines: Callable[[], Iterable[Paragraph]]) -> Table | None:
    """“Q: … A: …”, “Frage: … Antwort: …”: records, if the text begins so and goes on so."""
    roles = [role for _, text, _ in islice(lines(), 400) for part in text.split("\n") if (role := _label(part)[0])]
    if roles.count("question") < 2 or roles.count("answer") < 2 or roles[0] != "question":
        return None

    def records() -> Iterator[tuple[int, dict[str, Any]]]:
        here, found, role = 1, {"question": "", "answer": ""}, ""
        for number, text, _ in lines():
            for part in text.split("\n"):
                label, rest = _label(part)
                if label == "question":
                    if role == "answer":
                        yield here, {key: value.strip() for key, value in found.items()}
                    if role != "question":
                        here, found = number, {"question": "", "answer": ""}
                role = label or role
                if role:
                    found[role] += ("\n" if found[role] else "") + rest.strip()
        if role:
            yield here, {key: value.strip() for key, value in found.items()}
    return Table(path, kind, ["question", "answer"], numbered(records), known={"question": "question", "answer": "answer"})


def _label(line: str) -> tuple[str, str]:
    """("question" or "answer" or nothing, what follows the label)."""
    if match := _COPIED.match(line):
        return ("question" if match[1] else "answer"), ""
    if match := _LABEL.match(line.lstrip()):
        word = fold(match[1])
        if word in _Q or word in _A:
            return ("question" if word in _Q else "answer"), match[2]
    return "", line


_Q = (QUESTIONS | {"q", "f"}) - {fold(w) for w in ("input", "thema", "problem", "message", "mail", "email", "task", "prompt", "request")}
_A = (ANSWERS | {"a", "r"}) - {fold(w) for w in ("output", "ergebnis", "ziel", "target", "suite", "model", "shop", "we", "wir", "agent")}


def _by_headings(paragraphs: Iterable[Paragraph]) -> Iterator[tuple[int, dict[str, Any]]]:
    question, line, answer = "", 1, []
    for number, text, heading in paragraphs:
        if heading:
            if question and answer:
                yield line, {"question": question, "answer": "\n\n".join(answer)}
            question, line, answer = (re.sub(r"^\(?\d{1,3}[.)]\s+", "", text.strip(" *_")) if _asks(text) else ""), number, []
        elif question:
            answer.append(text)
    if question and answer:
        yield line, {"question": question, "answer": "\n\n".join(answer)}


def _passages(paragraphs: Iterable[Paragraph]) -> Iterator[tuple[int, dict[str, Any]]]:
    line, held = 1, []
    for number, text, heading in paragraphs:
        if held and (heading and any(not h for _, h in held) or sum(len(t) for t, _ in held) + len(text) > PASSAGE):
            yield line, {"text": "\n\n".join(t for t, _ in held)}
            held = []
        line = line if held else number
        held.append((text, heading))
    if held and not all(h for _, h in held):
        yield line, {"text": "\n\n".join(t for t, _ in held)}
