"""HTML: pages that a browser saved, tables that a spreadsheet wrote, chats that Telegram exported, and the words of mail.

lxml reads them: it mends what is broken, in time that grows with the page, and neither scripts nor links are followed. A page is read
piece by piece and never held.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from lxml import etree

from engine.data.names import is_known
from engine.data.readers.chats import Said, chat_table
from engine.data.readers.documents import document
from engine.data.readers.tables import with_header
from engine.data.readers.text import Text, open_text
from engine.data.table import Mark, Table
from engine.errors import BadData

_MUTE = frozenset("head style script noscript template svg math select button nav iframe object title".split())
_HEADINGS = frozenset("h1 h2 h3 h4 h5 h6 dt summary caption".split())
_BLOCKS = _HEADINGS | frozenset("p div li ul ol dl dd table tr section article header footer main aside blockquote pre figure hr details "
                                "address body html tbody thead".split())
_CHARSET = re.compile(r"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE)


@dataclass
class _Piece:
    """What stands in one place of a page: a paragraph, a heading, the ``cells`` of a row of table number ``table``, or a message."""

    text: str = ""
    heading: bool = False
    cells: list[str] = field(default_factory=list)
    table: int = 0
    said: Said | None = None


class _Page:
    """Told by the parser what begins and ends, it puts pieces into ``found``. ``quote`` stands before quoted lines."""

    def __init__(self, quote: str = ""):
        self.found: deque[_Piece] = deque()
        self._quote, self._mute, self._quoted = quote, 0, 0
        self._words: list[str] = []
        self._heading = self._keep = 0
        self._tables, self._rows, self._count = [], [], 0      # open tables by number, open rows of cells, each a list of paragraphs
        self._kinds: list[str] = []        # of the open divisions: message, who, text, other (all within a message) or nothing
        self._message: dict[str, Any] = {}     # service, who, when, and text as a list of paragraphs
        self._who, self._messages = "", 0

    # --- what the parser calls ---

    def start(self, tag, attributes) -> None:
        if tag in _MUTE:
            self._mute += 1
        elif tag == "br":
            self._words.append("\n")
        elif tag in ("td", "th"):
            self._flush()
            if self._rows:
                self._rows[-1].append([])
        elif tag in _BLOCKS:
            self._flush()
            if tag == "table":
                self._count += 1
                self._tables.append(self._count)
            elif tag == "tr" and self._tables:
                self._rows.append([])
            self._quoted += tag == "blockquote"
            self._heading += tag in _HEADINGS
            self._keep += tag == "pre"
            if tag == "div":
                self._division(attributes)

    def end(self, tag) -> None:
        if tag in _MUTE:
            self._mute = max(0, self._mute - 1)
        elif tag in _BLOCKS or tag in ("td", "th"):
            self._flush()
            if tag == "tr" and self._rows:
                if any(cells := ["\n".join(cell).strip() for cell in self._rows.pop()]):
                    self.found.append(_Piece(cells=cells, table=self._tables[-1] if self._tables else 0))
            elif tag == "table" and self._tables:
                self._tables.pop()
            self._quoted = max(0, self._quoted - (tag == "blockquote"))
            self._heading = max(0, self._heading - (tag in _HEADINGS))
            self._keep = max(0, self._keep - (tag == "pre"))
            if tag == "div" and self._kinds and self._kinds.pop() == "message":
                self._said()

    def data(self, words) -> None:
        if not self._mute:
            self._words.append(words if self._keep else re.sub(r"\s+", " ", words))

    def comment(self, _text) -> None: ...

    def pi(self, _target, _data=None) -> None: ...

    def close(self) -> None:
        self._flush()

    # --- what is made of it ---

    def _flush(self) -> None:
        """The words so far are a paragraph, a cell, or part of a message."""
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.strip(" ") if not self._keep else line.rstrip()
                                                   for line in "".join(self._words).split("\n"))).strip("\n")
        self._words.clear()
        if not text.strip():
            return
        kind = self._kinds[-1] if self._kinds else ""
        if kind == "who":
            self._message.setdefault("who", text)      # a second name is that of a forwarded message's writer
        elif kind == "text":
            self._message.setdefault("text", []).append(text)
        elif self._rows and self._rows[-1]:
            self._rows[-1][-1].append(text)
        elif not kind:
            text = "\n".join(f"{self._quote}{line}" for line in text.split("\n")) if self._quoted and self._quote else text
            self.found.append(_Piece(text=text, heading=bool(self._heading)))

    def _division(self, attributes) -> None:
        """Telegram's pages: <div class="message default"> with <div class="from_name">, "text" and a "date" whose title is the time."""
        classes = (attributes.get("class") or "").split()
        around = self._kinds[-1] if self._kinds else ""
        kind = ("message" if "message" in classes and {"default", "service"} & set(classes) else "" if not around else "who" if "from_name" in classes
                else "text" if "text" in classes or around == "text" else "other")
        self._kinds.append(kind)
        if kind == "message":
            self._message = {"service": "yes"} if "service" in classes else {}
        if "date" in classes and kind:
            self._message["when"] = attributes.get("title") or ""

    def _said(self) -> None:
        said, self._message = self._message, {}
        self._messages += 1
        if "service" not in said:
            self._who = said.get("who", self._who).strip()
            if self._who and said.get("text"):
                self.found.append(_Piece(said=Said(self._messages, _when(said.get("when", "")), self._who, "\n".join(said["text"]).strip())))


def _when(title: str) -> datetime | None:
    try:
        return datetime.strptime(title[:19], "%d.%m.%Y %H:%M:%S")
    except ValueError:
        return None


def pieces(blocks: Iterable[str], quote: str = "") -> Iterator[_Piece]:
    """What stands on a page, in order, while it is being read."""
    page = _Page(quote)
    parser = etree.HTMLParser(target=page, encoding="utf-8", recover=True, huge_tree=False, no_network=True)
    for block in blocks:
        parser.feed(block.replace("\0", "").encode("utf-8", "replace"))
        while page.found:
            yield page.found.popleft()
    try:
        parser.close()
    except etree.LxmlError:                # nothing that could be read
        pass
    page.close()
    yield from page.found


def html_text(markup: str) -> str:
    """The words of an HTML mail, without styles and scripts; what it quotes is marked with “>”."""
    found = []
    for piece in pieces([markup], quote="> "):
        found.append("\n".join(cell for cell in piece.cells if cell) if piece.cells else piece.said.what if piece.said else piece.text)
    return "\n".join(found).strip()


def read_html(path: Path) -> Table:
    """A page: a chat, a table with known columns, questions with answers below them, or passages of text."""
    text = _written(open_text(path))

    def read() -> Iterator[_Piece]:
        return pieces(text.blocks())
    if sum(piece.said is not None for piece in islice(read(), 400)) >= 2:
        return chat_table(path, lambda: (piece.said for piece in read() if piece.said))
    if table := _data_table(path, read):
        return table

    def paragraphs() -> Iterator[tuple[int, str, bool]]:
        for number, piece in enumerate(read(), 1):
            if words := piece.text or " | ".join(cell for cell in piece.cells if cell):
                yield number, words, piece.heading
    if next(paragraphs(), None) is None:
        raise BadData(f"The page {path.name} has no text.", "What it shows is made by a program when it is opened.",
                      "Choose another file of the same export, for example its JSON file.", path=str(path))
    return document(path, "html", paragraphs)


def _data_table(path: Path, read: Callable[[], Iterator[_Piece]]) -> Table | None:
    """The tables whose first rows name known columns, as one; or the only large table of a page that has little else."""
    heads: dict[int, list[list[str]]] = {}
    for piece in islice(read(), 20_000):
        if piece.cells and len(heads.setdefault(piece.table, [])) < 5:
            heads[piece.table].append(piece.cells)
    named = next((number for number, rows in heads.items() if any(sum(is_known(cell) for cell in cells) >= 2 for cells in rows)), None)
    if named is None:
        return None

    def rows(mark: Mark) -> Iterator[tuple[Mark, int, list[str]]]:
        line = 0
        for piece in read():
            if piece.cells and piece.table == named:
                line += 1
                if line >= mark[1]:
                    yield (line, line), line, piece.cells
    return with_header(path, "html", rows)


def _written(text: Text) -> Text:
    """What the page itself says of its encoding counts where its bytes do not say enough."""
    said = _CHARSET.search(text.head(4096))
    if text.encoding != "utf-8" and not text.begin and said:
        try:
            b" ".decode(said[1], "replace")
        except (LookupError, ValueError):  # no encoding, or none for texts
            return text
        return Text(text.path, said[1])
    return text
